"""BayesianLSTM where nn.LSTM was: python docs/examples/drop_in.py

The model, its packed input, its training and its checkpoints stay as they are: one line changes.
The task: noisy sequences of two frequencies, 15 per cent of their training labels wrong. nn.LSTM
learns the wrong labels by heart, dropout on inputs and recurrent connections keeps it from that.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bayesrnn_cuda as brnn

FEATURES, HIDDEN = 8, 32


def sequences(count: int, wrong: float = 0.0) -> tuple[PackedSequence, Tensor]:
    """Sequences [10 to 20, FEATURES], packed, and labels [count], a share of them wrong."""
    labels = torch.randint(2, (count,))
    waves = []
    for frequency in 0.10 + 0.05 * labels:
        t = torch.arange(int(torch.randint(10, 21, ())))
        wave = torch.sin(2 * torch.pi * (frequency * t + torch.rand(())))
        waves.append(wave.unsqueeze(1) + torch.randn(len(t), FEATURES))
    flipped = torch.where(torch.rand(count) < wrong, 1 - labels, labels)
    return pack_sequence(waves, enforce_sorted=False), flipped


class Classifier(nn.Module):
    """Two logits [B, 2] from the last state of a recurrent layer."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm
        self.linear = nn.Linear(HIDDEN, 2)

    def forward(self, x: PackedSequence) -> Tensor:
        _, (h_n, _) = self.lstm(x)
        return self.linear(h_n[-1])


def train(model: Classifier, x: PackedSequence, labels: Tensor, updates: int = 100) -> None:
    """Fits the model to all sequences at once; draws new masks at every update."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(updates):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: Classifier, x: PackedSequence, labels: Tensor) -> float:
    """Share of the labels that the model gives; no masks in eval()."""
    model.eval()
    return (model(x).argmax(1) == labels).float().mean().item()


def main() -> None:
    torch.manual_seed(1)
    training, test = sequences(200, wrong=0.15), sequences(500)
    before = Classifier(nn.LSTM(FEATURES, HIDDEN))
    after = Classifier(
        brnn.BayesianLSTM(FEATURES, HIDDEN, input_dropout=0.3, recurrent_dropout=0.3)
    )
    after.load_state_dict(before.state_dict())  # checkpoints fit, both ways
    with torch.no_grad():
        difference = (before(test[0]) - after.eval()(test[0])).abs().max()
    print(f"same weights, largest difference: {difference:.0e}")
    for name, model in (("nn.LSTM", before), ("BayesianLSTM", after)):
        train(model, *training)
        fitted, tested = accuracy(model, *training), accuracy(model, *test)
        print(f"{name}: accuracy {fitted:.3f} in training, {tested:.3f} on test")


if __name__ == "__main__":
    main()
