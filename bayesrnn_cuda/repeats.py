"""The samples of MC dropout as batch: inputs repeated, and what came back told apart again.

Sizes alone mislead: samples * batch may be the size of the time or of the classes too. So the first
sample runs alone, and in the calls after it the layers' sequences and the output's batch must grow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from .recurrent import RecurrentLayer

# Of the repeated inputs in one call of mc_predict that chooses its chunks: 16 MiB of float32. With
# more a CPU streams the gates of the batch from beyond its caches, with less it packs weights anew.
CHUNK_ELEMENTS = 1 << 22
# What an index or a short vector counts for: the layers inside make a vector of about this size.
CHUNK_WIDTH = 256


class Arguments(NamedTuple):
    """Of one call of the module."""

    inputs: Sequence[Any]
    kwargs: Mapping[str, Any]
    samples: int


# Calls the module; returns its outputs and how many sequences each of its layers saw.
Run = Callable[[Arguments], tuple[list[Tensor], list[int]]]


class Repeats:
    """The calls that make `samples` samples of a module's output.

    Args: as `mc_predict` has them, and `shared`: each sample has one mask set.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        *,
        samples: int,
        chunk: int | None,
        batch_dim: int | None,
        output_batch_dim: int | None,
        shared: bool,
    ) -> None:
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise TypeError(f"module_kwargs: expected a mapping, got {type(kwargs).__name__}")
        leaves, self._spec = pytree.tree_flatten(
            (tuple(inputs), dict(kwargs or {})), is_leaf=lambda x: isinstance(x, PackedSequence)
        )
        self._leaves = leaves
        self._axes = _axes(module, inputs, dict(kwargs or {}))
        self._samples, self._shared = samples, shared
        self._output_batch_dim = output_batch_dim
        self._cache = _Cache()
        self._dims: list[int] = []  # where the batch may be; the first is the best guess
        self._disagree = False  # the modules inside about it
        if samples == 1 or chunk == 1:  # nothing is repeated
            self._sizes = [1] * samples
            if batch_dim is not None:
                _check_dims(self._placed(), batch_dim)
            return
        _check_inputs(inputs)
        self._dims = self._candidates(module, batch_dim)
        rest = samples - 1
        default = _default_chunk(self._placed(), rest, self._dims[0])
        self._sizes = [1, *_chunk_sizes(rest, chunk or default)]

    def draws(self, run: Run) -> Iterator[list[Tensor]]:
        """The outputs of the calls, each with the samples in front: [S', ...]."""
        alone, alone_saw = run(self._arguments(1, 0))
        given = self._output_batch_dim
        for y in alone:
            if given is not None and not -y.dim() <= given < y.dim():
                raise ValueError(
                    f"output_batch_dim: expected a dimension of {list(y.shape)}, got {given}"
                )
        pending = alone
        out_dims: list[int] | None = None
        for size in self._sizes[1:]:
            if size == 1:
                outputs, _ = run(self._arguments(1, 0))
                draws = [y.unsqueeze(0) for y in outputs]
            else:
                outputs = self._grow(run, size, alone_saw)
                # one answer for all calls: the last may be smaller, and fit another dimension too
                if out_dims is None:
                    out_dims = self._output_dims(alone, outputs, size)
                draws = self._split(outputs, out_dims, size)
            if pending:
                first = [a.reshape(d.shape[1:]) for a, d in zip(pending, draws, strict=True)]
                pending = []
                yield [a.unsqueeze(0) for a in first]
            yield draws
        if pending:
            yield [a.unsqueeze(0) for a in pending]

    def _placed(self) -> list["_Placed"]:
        """The tensors with a batch."""
        return [
            _Placed(x, axis)
            for x, axis in zip(self._leaves, self._axes, strict=True)
            if isinstance(x, Tensor) and x.dim()
        ]

    def _batch(self) -> int:
        return self._placed()[0].size(self._dims[0])

    def _candidates(self, module: nn.Module, batch_dim: int | None) -> list[int]:
        placed = self._placed()
        if batch_dim is not None:
            _check_batch(placed, batch_dim)
            return [batch_dim]
        flags = _batch_first(module)
        self._disagree = len(flags) > 1
        least = min((x.tensor.dim() for x in placed if x.axis is None), default=2)
        dim = 1 if flags == {False} or (self._disagree and least > 1) else 0
        vectors = [x for x in placed if x.axis == 0]
        if dim >= least or any(x.size(dim) != placed[0].size(dim) for x in vectors):
            shapes = " and ".join(str(list(x.tensor.shape)) for x in placed)
            raise ValueError(
                "batch_dim: expected inputs with a batch dimension, 1 where batch_first=False, or "
                f"batch_dim= for other inputs, got {shapes}. A single sequence needs a batch "
                "dimension of size 1; chunk=1 repeats nothing"
            )
        _check_batch(placed, dim)
        other = 1 - dim
        fits = len({x.size(other) if x.has(other) else -1 for x in placed}) == 1
        return [dim, other] if fits and placed[0].has(other) else [dim]

    def _arguments(self, size: int, dim: int) -> Arguments:
        def make() -> list[Any]:
            if self._samples == 1:
                return list(self._leaves)
            if size == 1:  # what the module writes must reach neither the caller nor the next call
                return [x.clone() if isinstance(x, Tensor) else x for x in self._leaves]
            return [
                _repeat(x, size, _Placed(x, axis).dim(dim))
                if isinstance(x, Tensor) and x.dim()
                else x
                for x, axis in zip(self._leaves, self._axes, strict=True)
            ]

        inputs, kwargs = pytree.tree_unflatten(self._cache.get((size, dim), make), self._spec)
        return Arguments(inputs, kwargs, size)

    def _grow(self, run: Run, size: int, alone: list[int]) -> list[Tensor]:
        """The outputs of `size` samples, in the first batch dimension that the layers confirm."""
        if self._disagree and not alone:
            raise ValueError(
                "batch_dim: expected to be given, since the module has both batch_first=True and "
                "batch_first=False inside, and no layer that knows its sequences, got None"
            )
        failed: list[str] = []
        cause = None
        while self._dims:
            dim, batch = self._dims[0], self._batch()
            try:
                outputs, saw = run(self._arguments(size, dim))
            except Exception as error:
                if not failed:
                    _add_note(
                        error,
                        f"mc_predict: one sample alone ran; {size} were repeated in "
                        f"dimension {dim} of the inputs (batch_dim=). chunk=1 repeats nothing",
                    )
                    raise
                cause = error  # the second guess is worse than the first
                break
            if _grew(saw, alone, size) and not (self._shared and set(saw) - {size * batch}):
                return outputs
            failed.append(
                f"dimension {dim} (size {batch}) they saw {_listed(alone)} for one sample and "
                f"{_listed(saw)} for {size}"
            )
            del self._dims[0]
        raise ValueError(
            "batch_dim: expected the dimension of the sequences, of which each dropout layer sees "
            "samples * batch; repeated in " + ", in ".join(failed) + ". A single sequence needs a "
            "batch dimension of size 1; only tensors are repeated, and chunk=1 repeats nothing"
        ) from cause

    def _output_dims(self, alone: list[Tensor], outputs: list[Tensor], size: int) -> list[int]:
        if self._output_batch_dim is None:
            pairs = zip(alone, outputs, strict=True)
            return [_grown_dim(a, y, size, self._batch()) for a, y in pairs]
        dims, batch = [], self._batch()
        for a, y in zip(alone, outputs, strict=True):
            dim = _check_dim(y, size * batch, self._output_batch_dim)
            if not _grows(a, y, dim, size, batch):
                raise ValueError(_not_grown(a, y, size, batch, self._output_batch_dim))
            dims.append(dim)
        return dims

    def _split(self, outputs: list[Tensor], dims: list[int], size: int) -> list[Tensor]:
        """[..., S' * B, ...] as [S', ..., B, ...]."""
        batch, draws = self._batch(), []
        for y, dim in zip(outputs, dims, strict=True):
            dim = _check_dim(y, size * batch, dim)
            draws.append(y.unflatten(dim, (size, batch)).movedim(dim, 0))
        return draws


class _Cache:
    """The arguments of the last call, made anew for another size, or if they were written into."""

    def __init__(self) -> None:
        self._key: tuple[int, int] | None = None
        self._leaves: list[Any] = []
        self._versions: list[object] = []

    def get(self, key: tuple[int, int], make: Callable[[], list[Any]]) -> list[Any]:
        if key != self._key or [_version(x) for x in self._leaves] != self._versions:
            self._leaves = []  # frees what it holds before there is more
            self._leaves = make()
            self._key, self._versions = key, [_version(x) for x in self._leaves]
        return self._leaves


def _version(x: Any) -> object:
    """Changes with every write; an inference tensor keeps no count, and equals nothing."""
    if not isinstance(x, Tensor):
        return None
    return object() if x.is_inference() else x._version


def _repeat(x: Tensor, samples: int, dim: int) -> Tensor:
    """x repeated as [..., S*B, ...], sample by sample, without a copy where B = 1."""
    dim %= x.dim()
    shape = (*x.shape[:dim], samples, *x.shape[dim:])
    return x.unsqueeze(dim).expand(shape).flatten(dim, dim + 1)


def _check_inputs(inputs: Sequence[Any]) -> None:
    """Positional ones are tensors, or hold nothing else; keywords may be anything."""
    leaves, _ = pytree.tree_flatten(tuple(inputs), is_leaf=lambda x: isinstance(x, PackedSequence))
    for x in leaves:
        if x is None:  # an optional one that is left out
            continue
        if isinstance(x, PackedSequence):
            raise ValueError(
                "inputs: expected padded tensors, or chunk=1, which repeats nothing, "
                "got PackedSequence"
            )
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs: expected tensors, got {type(x).__name__}")


class _Placed(NamedTuple):
    """A tensor that is repeated, and where its batch is if the inputs' is in dimension `dim`."""

    tensor: Tensor
    axis: int | None  # where it is all the same; see _axes

    def dim(self, dim: int) -> int:
        return dim if self.axis is None else self.axis

    def has(self, dim: int) -> bool:
        return -self.tensor.dim() <= self.dim(dim) < self.tensor.dim()

    def size(self, dim: int) -> int:
        return self.tensor.shape[self.dim(dim)]


def _axes(module: nn.Module, inputs: Sequence[Any], kwargs: dict[str, Any]) -> list[int | None]:
    """Of each leaf of the arguments the dimension of its batch, where that is not the inputs'.

    A vector beside tensors of more dimensions has an entry for each sequence (lengths). The states
    that a recurrent layer is called with are [layers, B, H], whatever batch_first says.
    """
    recurrent = isinstance(module, (RecurrentLayer, nn.RNNBase))
    named = [(str(i), x) for i, x in enumerate(inputs)] + list(kwargs.items())
    found: list[tuple[bool, int]] = []
    for name, value in named:
        for x in pytree.tree_leaves(value, is_leaf=lambda x: isinstance(x, PackedSequence)):
            rank = x.dim() if isinstance(x, Tensor) else 0
            found.append((recurrent and rank == 3 and name in ("1", "hx"), rank))
    beside = any(rank > 1 for _, rank in found)
    return [1 if state else 0 if rank == 1 and beside else None for state, rank in found]


def _add_note(error: Exception, note: str) -> None:
    if hasattr(error, "add_note"):  # from Python 3.11 on
        error.add_note(note)


def _check_dims(placed: Sequence[_Placed], batch_dim: int) -> None:
    for x in placed:
        if not x.has(batch_dim):
            shape = list(x.tensor.shape)
            raise ValueError(f"batch_dim: expected a dimension of {shape}, got {batch_dim}")


def _check_batch(placed: Sequence[_Placed], batch_dim: int) -> None:
    if not placed:
        raise ValueError("inputs: expected at least 1 tensor, got 0")
    _check_dims(placed, batch_dim)
    sizes = [x.size(batch_dim) for x in placed]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"inputs: expected one size in dimension {batch_dim}, got {sizes}; batch_dim= names "
            "another dimension, and chunk=1 repeats nothing"
        )


def _batch_first(module: nn.Module) -> set[bool]:
    """What the modules inside say of it."""
    found = (getattr(m, "batch_first", None) for m in module.modules())
    return {flag for flag in found if isinstance(flag, bool)}


def _grew(saw: list[int], alone: list[int], size: int) -> bool:
    """Whether each layer's call had `size` times the sequences of one sample.

    Where the number of calls depends on the data, each must be so many times one that was seen.
    """
    if len(saw) == len(alone):
        return saw == [size * n for n in alone]
    return set(saw) <= {size * n for n in alone}


def _listed(saw: list[int]) -> str:
    return " and ".join(map(str, sorted(set(saw)))) or "none"


def _grown_dim(alone: Tensor, output: Tensor, size: int, batch: int) -> int:
    """The dimension that has `batch` in one sample and `size * batch` in so many."""
    found = [d for d in range(output.dim()) if _grows(alone, output, d, size, batch)]
    if len(found) != 1:
        raise ValueError(_not_grown(alone, output, size, batch, None))
    return found[0]


def _grows(alone: Tensor, output: Tensor, dim: int, size: int, batch: int) -> bool:
    before, after = output.shape[:dim], output.shape[dim + 1 :]
    kept = alone.shape == (*before, batch, *after)
    squeezed = batch == 1 and alone.shape == (*before, *after)
    return output.shape[dim] == size * batch and (kept or squeezed)


def _not_grown(alone: Tensor, output: Tensor, size: int, batch: int, given: int | None) -> str:
    return (
        "output_batch_dim: expected one dimension of the output that grows from batch "
        f"({batch}) to samples * batch ({size * batch}) while the others stay, got {given} for "
        f"{list(alone.shape)} and {list(output.shape)}; return the output before it is flattened, "
        "or give chunk=1, which repeats nothing"
    )


def _check_dim(output: Tensor, size: int, dim: int) -> int:
    if not -output.dim() <= dim < output.dim() or output.shape[dim] != size:
        raise ValueError(
            f"output_batch_dim: expected a dimension of size {size} in {list(output.shape)}, "
            f"got {dim}"
        )
    return dim % output.dim()


def _default_chunk(placed: Sequence[_Placed], samples: int, batch_dim: int) -> int:
    """Samples per call within CHUNK_ELEMENTS, in calls of about one size."""
    elements = sum(_elements(x.tensor, x.dim(batch_dim)) for x in placed)
    whole = max(1, CHUNK_ELEMENTS // max(1, elements))
    calls = -(-samples // whole)
    return -(-samples // calls)


def _elements(x: Tensor, batch_dim: int) -> int:
    """What one sample of x counts for: its vectors, or its indices, by CHUNK_WIDTH or more."""
    vectors = x.is_floating_point() and batch_dim % x.dim() != x.dim() - 1
    width = x.shape[-1] if vectors else 1
    return x.numel() // max(1, width) * max(CHUNK_WIDTH, width)


def _chunk_sizes(samples: int, chunk: int) -> list[int]:
    return [min(chunk, samples - start) for start in range(0, samples, chunk)]
