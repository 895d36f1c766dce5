"""A language model with the paper's dropout: python docs/examples/language_model.py [EPOCHS]

Word types, inputs, recurrent connections and outputs are dropped, each by one mask per sequence. It
reads the documentation that CPython carries. `bayesrnn train` is the same with schedule,
checkpoints and resumption.
"""

import math
import sys

import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda.experiments.language.text import lanes, load_corpus, windows

STEPS, BATCH, SAMPLES = 35, 20, 100
State = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Logits of the next word."""

    def __init__(self, vocabulary: int, size: int = 100, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = brnn.BayesianEmbedding(vocabulary, size, dropout=dropout)
        self.lstm = brnn.BayesianLSTM(size, size, input_dropout=dropout, recurrent_dropout=dropout)
        self.output_dropout = brnn.LockedDropout(dropout)
        self.decoder = nn.Linear(size, vocabulary)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens [T, B] and the state so far -> logits [T, B, V] and the state after them."""
        h, state = self.lstm(self.embedding(tokens), state)
        return self.decoder(self.output_dropout(h)), state


def train_epoch(model: LanguageModel, text: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One pass over text [steps, BATCH], window by window; the state goes on, its history ends."""
    model.train()
    state = None
    for tokens, targets in windows(text, STEPS):
        logits, state = model(tokens, state)
        state = tuple(part.detach() for part in state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def perplexity(model: LanguageModel, text: Tensor) -> float:
    """exp of the mean negative log-likelihood of a word of text [steps, BATCH]; no masks."""
    model.eval()
    state, loss, count = None, 0.0, 0
    for tokens, targets in windows(text, STEPS):
        logits, state = model(tokens, state)
        loss += nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        ).item()
        count += targets.numel()
    return math.exp(loss / count)


def main(epochs: int) -> None:
    torch.manual_seed(1)
    corpus = load_corpus(None, None)
    print(corpus.describe())
    train, valid, test = (lanes(part, BATCH) for part in (corpus.train, corpus.valid, corpus.test))
    model = LanguageModel(len(corpus.vocabulary))
    groups = brnn.weight_decay_groups(
        model, length_scale=0.1, num_data=train.numel(), dropout={"decoder": 0.2}
    )
    optimizer = torch.optim.Adam(groups, lr=5e-3)
    for epoch in range(1, epochs + 1):
        train_epoch(model, train, optimizer)
        print(f"epoch {epoch}: validation perplexity {perplexity(model, valid):.1f}")
    print(f"test perplexity: {perplexity(model, test):.1f}")

    tokens = test[:20, 0]  # each of the first 19 is to predict the next one
    result = brnn.mc_predict(
        model, tokens[:-1].unsqueeze(1), samples=SAMPLES, likelihood="categorical"
    )
    mean, std, entropy, information = (part[:, 0] for part in result if part is not None)
    print(f"{'next word':<16}{'probability':<18}entropy  mutual information (nats)")
    for step, token in enumerate(tokens[1:].tolist()):
        probability = f"{mean[step, token]:.3f} +- {std[step, token]:.3f}"
        doubt = f"{entropy[step]:<9.2f}{information[step]:.2f}"
        print(f"{corpus.vocabulary.words[token]:<16}{probability:<18}{doubt}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
