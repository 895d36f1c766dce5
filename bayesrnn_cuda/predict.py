"""Prediction with uncertainty: dropout that stays on, averages over masks (paper, eq. 5)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .checks import check_integer, check_module, check_size
from .masks import DropoutModule

_TORCH_DROPOUT = (nn.modules.dropout._DropoutNd, nn.RNNBase)
_LIKELIHOODS = ("gaussian", "categorical")

# Of the repeated inputs in one call of mc_predict that chooses its chunks: 32 MiB of float32.
CHUNK_ELEMENTS = 1 << 23
# What an index or a short vector counts for: the layers inside make a vector of about this size.
CHUNK_WIDTH = 256


@contextmanager
def mc_dropout(module: nn.Module) -> Iterator[nn.Module]:
    """Within the block, every dropout inside `module` draws masks although `module.eval()`.

    Serves this package's modules, torch's nn.Dropout family and the dropout inside nn.LSTM and
    nn.GRU; a call of torch.nn.functional.dropout it cannot see. Batch norm and the like stay as
    `eval()` left them. Nests, and restores what it found.
    """
    ours = [m for m in module.modules() if isinstance(m, DropoutModule)]
    torchs = [m for m in module.modules() if isinstance(m, _TORCH_DROPOUT)]
    before = [m.mc for m in ours], [m.training for m in torchs]
    for m in ours:
        m.mc = True
    for layer in torchs:
        layer.training = True
    try:
        yield module
    finally:
        for m, mc in zip(ours, before[0], strict=True):
            m.mc = mc
        for layer, training in zip(torchs, before[1], strict=True):
            layer.training = training


class MCPrediction(NamedTuple):
    """Averages over sampled masks, in the shape of one output (entropies: less its last dim)."""

    mean: Tensor  # of the outputs, or of the class probabilities
    std: Tensor  # standard deviation over the samples, 1/S under the root
    entropy: Tensor | None  # of the mean probabilities, in nats; None for gaussian
    mutual_information: Tensor | None  # entropy minus the samples' mean entropy, in nats; likewise


def mc_predict(
    module: nn.Module,
    *inputs: Tensor,
    samples: int = 100,
    likelihood: str = "gaussian",
    batch_dim: int | None = None,
    output_batch_dim: int | None = None,
    chunk: int | None = None,
) -> MCPrediction:
    """MC dropout: the predictive distribution over `samples` mask sets (paper, eq. 5, section 4.3).

    The samples run as batch: every input is repeated along its batch dimension, so that a sequence
    meets S different mask sets in one call, or in a few where one would take much memory (`chunk`).
    No gradients are kept. But for dropout the module runs as in `eval()`, and is left in the mode
    it was in.

    Args:
        module: takes `inputs`, returns a tensor or a tuple whose first entry is taken (nn.LSTM).
        inputs: tensors with the same batch dimension, size B there.
        samples: S >= 1.
        likelihood: "gaussian": the output is a value, mean and std are its own;
            "categorical": the output is logits over its last dimension, and probabilities
            (softmax) are averaged, never logits.
        batch_dim: of the inputs; None: as the modules inside say (`batch_first`), else 0.
        output_batch_dim: of the output; None: the only dimension of size S * B, or of several that
            of the inputs, where the dimensions before it are those of the first input.
        chunk: samples per call, to bound memory. None: as many as keep the repeated inputs within
            CHUNK_ELEMENTS, where an index or a vector (last dimension) counts for at least
            CHUNK_WIDTH elements; never below 1. A wide output may want fewer, a GPU may like more.

    Raises:
        ValueError: not an nn.Module, samples or chunk below 1, unknown likelihood, no input, one
            that is no tensor, different batch sizes, or a batch dimension that cannot be told.
    """
    check_module(module)
    check_size("samples", samples)
    if chunk is not None:
        check_size("chunk", chunk)
    if output_batch_dim is not None:
        check_integer("output_batch_dim", output_batch_dim)
    if likelihood not in _LIKELIHOODS:
        raise ValueError(
            f"likelihood: expected one of {', '.join(_LIKELIHOODS)}, got {likelihood!r}"
        )
    if batch_dim is None:
        batch_dim = _batch_dim(module)
    batch = _batch_size(inputs, batch_dim)
    sizes = _chunk_sizes(samples, chunk or _default_chunk(inputs, samples, batch_dim))
    repeat = _Repeat(inputs, batch_dim, samples)
    moments = _Moments()
    entropies = _Moments()
    with torch.no_grad(), _evaluating(module), mc_dropout(module):
        for size in sizes:
            repeated = repeat(size)
            output = module(*repeated)
            output = output[0] if isinstance(output, tuple | list) else output
            # one answer for all chunks: the last may be smaller, and fit another dimension too
            if output_batch_dim is None:
                output_batch_dim = _infer_dim(output, size * batch, repeated[0], batch_dim)
            dim = _check_dim(output, size * batch, output_batch_dim)
            draws = output.unflatten(dim, (size, batch)).movedim(dim, 0)
            if likelihood == "categorical":
                draws = draws.softmax(dim=-1)
                entropies.add(_entropy(draws))
            moments.add(draws)
    if likelihood == "gaussian":
        return MCPrediction(moments.mean, moments.std(), None, None)
    total = _entropy(moments.mean)
    # rounding can push a difference of equal numbers below its true bound of 0
    information = (total - entropies.mean).clamp_min(0)
    return MCPrediction(moments.mean, moments.std(), total, information)


class _Moments:
    """Mean and spread over dim 0 of chunks that arrive one by one (Chan et al., 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.tensor(0.0)
        self._squares = torch.tensor(0.0)  # sum of squared deviations from the mean

    def add(self, draws: Tensor) -> None:
        count = draws.shape[0]
        mean = draws.mean(dim=0)
        squares = (draws - mean).square().sum(dim=0)
        if self.count == 0:
            self.count, self.mean, self._squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self.mean
        self._squares = self._squares + squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def std(self) -> Tensor:
        return (self._squares / self.count).sqrt()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """`eval()` within the block; every submodule is left in the mode it was in."""
    before = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


def _entropy(p: Tensor) -> Tensor:
    """-sum p log p over the last dimension, 0 log 0 = 0."""
    return torch.special.entr(p).sum(dim=-1)


def _batch_dim(module: nn.Module) -> int:
    """0 or 1 by the `batch_first` of the modules inside, 0 if none has any."""
    found = (getattr(m, "batch_first", None) for m in module.modules())
    flags = {flag for flag in found if isinstance(flag, bool)}
    if len(flags) > 1:
        raise ValueError(
            "batch_dim: expected to be given, since the module has both batch_first=True and "
            "batch_first=False inside, got None"
        )
    return 1 if flags == {False} else 0


def _batch_size(inputs: Sequence[Tensor], batch_dim: int) -> int:
    check_integer("batch_dim", batch_dim)
    if not inputs:
        raise ValueError("inputs: expected at least 1 tensor, got 0")
    for x in inputs:
        if not isinstance(x, Tensor):
            raise ValueError(f"inputs: expected tensors, got {type(x).__name__}")
        if not -x.dim() <= batch_dim < x.dim():
            raise ValueError(f"batch_dim: expected a dimension of {list(x.shape)}, got {batch_dim}")
    sizes = [x.shape[batch_dim] for x in inputs]
    if len(set(sizes)) > 1:
        raise ValueError(f"inputs: expected one size in dimension {batch_dim}, got {sizes}")
    return sizes[0]


def _check_dim(output: Tensor, size: int, dim: int) -> int:
    if not -output.dim() <= dim < output.dim() or output.shape[dim] != size:
        raise ValueError(
            f"output_batch_dim: expected a dimension of size {size} in {list(output.shape)}, "
            f"got {dim}"
        )
    return dim % output.dim()


def _infer_dim(output: Tensor, size: int, x: Tensor, batch_dim: int) -> int:
    """Where the batch of `size` stands in the output for x, which has it in `batch_dim`."""
    matches = [d for d, length in enumerate(output.shape) if length == size]
    if len(matches) == 1:
        return matches[0]
    dim = batch_dim % x.dim()
    if dim in matches and output.shape[:dim] == x.shape[:dim]:
        return dim
    raise ValueError(
        f"output_batch_dim: expected to be given, since {len(matches)} dimensions of the "
        f"output {list(output.shape)} have size {size} (samples * batch), got None"
    )


def _default_chunk(inputs: Sequence[Tensor], samples: int, batch_dim: int) -> int:
    """Samples per call within CHUNK_ELEMENTS, in calls of about one size."""
    whole = max(1, CHUNK_ELEMENTS // max(1, sum(_elements(x, batch_dim) for x in inputs)))
    calls = -(-samples // whole)
    return -(-samples // calls)


def _elements(x: Tensor, batch_dim: int) -> int:
    """What one sample of x counts for: its vectors, or its indices, by CHUNK_WIDTH or more."""
    vectors = x.is_floating_point() and batch_dim % x.dim() != x.dim() - 1
    width = x.shape[-1] if vectors else 1
    return x.numel() // max(1, width) * max(CHUNK_WIDTH, width)


def _chunk_sizes(samples: int, chunk: int) -> list[int]:
    return [min(chunk, samples - start) for start in range(0, samples, chunk)]


class _Repeat:
    """The inputs repeated for a chunk: made once for chunks of one size, unless written into.

    What a module writes into its input (nn.Dropout(inplace=True)) must not reach the next chunk.
    """

    def __init__(self, inputs: Sequence[Tensor], dim: int, samples: int) -> None:
        self._inputs, self._dim, self._samples = inputs, dim, samples
        self._size = 0
        self._repeated: list[Tensor] = []
        self._versions: list[object] = []

    def __call__(self, size: int) -> list[Tensor]:
        versions = [_version(x) for x in self._repeated]
        if size != self._size or versions != self._versions:
            self._repeated.clear()  # the caller's list: frees what it holds before there is more
            self._repeated += [_repeat(x, size, self._dim) for x in self._inputs]
            if size == 1 < self._samples:
                self._repeated[:] = [x.clone() for x in self._repeated]
            self._size, self._versions = size, [_version(x) for x in self._repeated]
        return self._repeated


def _version(x: Tensor) -> object:
    """Changes with every write; an inference tensor keeps no count, and equals nothing."""
    return object() if x.is_inference() else x._version


def _repeat(x: Tensor, samples: int, dim: int) -> Tensor:
    """x repeated as [..., S*B, ...], sample by sample, without a copy where B = 1 or S = 1."""
    dim %= x.dim()
    shape = (*x.shape[:dim], samples, *x.shape[dim:])
    return x.unsqueeze(dim).expand(shape).flatten(dim, dim + 1)
