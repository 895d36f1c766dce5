"""A forecast with its uncertainty: python docs/examples/time_series.py [FOLDER]

Learns a noisy seasonal series, forecasts the 100 steps after it by feeding each prediction back,
and draws FOLDER/time_series.png. One set of masks is one model drawn from the approximate
posterior: it is held over the whole forecast, and 100 of them give its mean and standard deviation.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

HISTORY, FUTURE, SAMPLES = 60, 100, 100
NOISE = 0.1  # standard deviation of the observations


def series(steps: int) -> Tensor:
    """Two seasons and noise: [steps]."""
    t = torch.arange(steps)
    seasons = torch.sin(2 * torch.pi * t / 25) + 0.5 * torch.sin(2 * torch.pi * t / 60)
    return seasons + NOISE * torch.randn(steps)


class Forecaster(nn.Module):
    """Predicts the next value at every step, and goes on alone for `future` steps."""

    def __init__(self, hidden: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.lstm = brnn.BayesianLSTM(1, hidden, recurrent_dropout=dropout)
        self.linear = nn.Linear(hidden, 1)
        self.future = 0

    def forward(self, x: Tensor) -> Tensor:
        """x [T, B, 1] -> predictions of the steps 1 to T + future [T + future, B, 1]."""
        masks = self.lstm.sample_masks(x.shape[1]) if self.lstm.draws_masks else None
        h, state = self.lstm(x, masks=masks)
        predictions = [self.linear(h)]
        for _ in range(self.future):
            h, state = self.lstm(predictions[-1][-1:], state, masks=masks)
            predictions.append(self.linear(h))
        return torch.cat(predictions)


def train(model: Forecaster, data: Tensor, updates: int = 400, batch: int = 32) -> None:
    """Fits `model` to random windows of `data` [steps]."""
    groups = brnn.weight_decay_groups(model, length_scale=0.1, num_data=len(data))
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=updates)
    windows = data.unfold(0, HISTORY + 1, 1).t().unsqueeze(2)  # [HISTORY + 1, windows, 1]
    for _ in range(updates):
        window = windows[:, torch.randint(windows.shape[1], (batch,))]
        loss = (model(window[:-1]) - window[1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main(folder: Path) -> None:
    torch.manual_seed(1)
    data = series(1000)
    past, future = data[:-FUTURE], data[-FUTURE:]
    model = Forecaster()
    train(model, past)

    model.future = FUTURE - 1
    x = past[-HISTORY:].view(-1, 1, 1)
    prediction = brnn.mc_predict(model, x, samples=SAMPLES)
    mean, model_std = prediction.mean[-FUTURE:].flatten(), prediction.std[-FUTURE:].flatten()
    std = (model_std.square() + NOISE**2).sqrt()  # of an observation
    error = (future - mean).abs()
    print(f"root mean square error: {error.square().mean().sqrt():.3f}")
    print(f"standard deviation: {std[:10].mean():.3f} at first, {std[-10:].mean():.3f} at last")
    print(f"inside two standard deviations: {(error < 2 * std).float().mean():.2f}")

    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    steps = range(FUTURE)
    axes.plot(range(-HISTORY, FUTURE), data[-HISTORY - FUTURE :], "k.", label="observed")
    axes.plot(steps, mean, label=f"mean of {SAMPLES} forecasts")
    axes.fill_between(
        steps, mean - 2 * std, mean + 2 * std, alpha=0.3, label="two standard deviations"
    )
    axes.set(xlabel="step", ylabel="value", ylim=(-2.5, 2.5))
    axes.legend(frameon=False, ncols=3, loc="upper center")
    figure.savefig(folder / "time_series.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
