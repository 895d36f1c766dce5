"""A forecast whose intervals hold: python docs/examples/time_series.py [FOLDER]

Learns a noisy seasonal series, forecasts the 100 steps after it by feeding each prediction back,
and draws FOLDER/time_series.png. One set of masks, held over a whole forecast, is one model drawn
from the approximate posterior; the spread of 100 of them is the model's doubt. Windows that the
model was not trained on tell the rest: the noise of each step, and how far off all of it is.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

HISTORY, FUTURE, SAMPLES, LEVEL = 60, 100, 100, 0.9
NOISE = 0.1  # standard deviation of the observations


def series(steps: int) -> Tensor:
    """Two seasons and noise: [steps]."""
    t = torch.arange(steps)
    seasons = torch.sin(2 * torch.pi * t / 25) + 0.5 * torch.sin(2 * torch.pi * t / 60)
    return seasons + NOISE * torch.randn(steps)


class Forecaster(nn.Module):
    """Predicts the next value at every step; `forecast` of them more, each fed back."""

    def __init__(self, hidden: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.lstm = brnn.BayesianLSTM(1, hidden, recurrent_dropout=dropout)
        self.linear = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, forecast: int = 0) -> Tensor:
        """x [T, B, 1] -> the next value of each step [T, B, 1], or `forecast` steps after x."""
        h, state = self.lstm(x)
        predictions = [self.linear(h)]
        for _ in range(forecast - 1):
            h, state = self.lstm(predictions[-1][-1:], state)
            predictions.append(self.linear(h))
        return torch.cat(predictions)[-forecast:]


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


def predict(model: Forecaster, data: Tensor, every: int) -> tuple[brnn.MCPrediction, Tensor]:
    """Forecasts from windows of `data`, and what came: [FUTURE, windows, 1]."""
    windows = data.unfold(0, HISTORY + FUTURE, every).t().unsqueeze(2)
    prediction = brnn.mc_predict(
        model, windows[:HISTORY], samples=SAMPLES, hold=True, module_kwargs={"forecast": FUTURE}
    )
    return prediction, windows[HISTORY:]


def main(folder: Path) -> None:
    torch.manual_seed(1)
    data = series(6000)
    model = Forecaster()
    train(model, data[:1000])

    noise = brnn.fit_noise(*predict(model, data[1000:2000], every=7), separate=0)
    held_out, came = predict(model, data[2000:4000], every=7)
    scale = brnn.conformal_scale(held_out.with_noise(noise), came, LEVEL)
    prediction, targets = predict(model, data[4000:], every=20)
    prediction = prediction.with_noise(noise)

    interval = prediction.interval(scale=scale)
    doubt = (prediction.mean - 1.645 * prediction.std, prediction.mean + 1.645 * prediction.std)
    error = (targets - prediction.mean).square().mean().sqrt()
    print(f"root mean square error: {error:.3f}, of which noise: {NOISE}")
    for name, pair in (
        ("doubt of the model alone", doubt),
        ("with noise", prediction.interval(LEVEL)),
        ("with noise and conformal scale", interval),
    ):
        inside, width = brnn.coverage(pair, targets), brnn.interval_width(pair)
        print(f"{name}: {inside:.1%} of {LEVEL:.0%} inside, mean width {width:.2f}")
    print(f"continuous ranked probability score: {prediction.crps(targets).mean():.3f}")

    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    steps, last = range(FUTURE), targets.shape[1] - 1
    past = data[4000 + 20 * last :][: HISTORY + FUTURE]
    axes.plot(range(-HISTORY, FUTURE), past, "k.", label="observed")
    axes.plot(steps, prediction.mean[:, last, 0], label=f"mean of {SAMPLES} forecasts")
    for pair, alpha, name in (
        (interval, 0.2, f"{LEVEL:.0%} interval"),
        (doubt, 0.4, "doubt alone"),
    ):
        lower, upper = (end[:, last, 0] for end in pair)
        axes.fill_between(steps, lower, upper, alpha=alpha, label=name)
    axes.set(xlabel="step", ylabel="value", ylim=(-2.5, 2.5))
    axes.legend(frameon=False, ncols=4, loc="upper center")
    figure.savefig(folder / "time_series.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
