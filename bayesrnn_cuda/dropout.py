"""Dropout of words and of outputs: one mask per sequence, for all its time steps."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .checks import (
    ArgumentError,
    check_flag,
    check_integer,
    check_keep,
    check_probability,
    check_size,
    check_tensor,
    dtype_name,
)
from .masks import apply_mask, sample_keep
from .settings import Settings
from .switch import DropoutModule, single


class BayesianEmbedding(Settings, DropoutModule):
    """torch.nn.Embedding that drops word types: a repeated word is dropped everywhere it stands
    in its sequence (paper, section 3.2). Kept vectors are scaled by 1 / (1 - dropout).

    Masks are drawn for the words that occur, not for the vocabulary.

    Args:
        num_embeddings, embedding_dim, padding_idx: as torch.nn.Embedding.
        dropout: probability of dropping a word type.
        batch_first: tokens are [B, T] instead of [T, B].
    """

    settings: ClassVar = {
        "num_embeddings": check_size,
        "embedding_dim": check_size,
        "dropout": check_probability,
        "batch_first": check_flag,
    }
    fixed = frozenset({"num_embeddings", "embedding_dim"})

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dropout: float = 0.0,
        padding_idx: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.dropout = dropout
        self.batch_first = batch_first
        self.weight = nn.Parameter(
            torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "padding_idx" and value is not None:
            value, count = check_integer(name, value), self.num_embeddings
            if not -count <= value < count:
                raise ValueError(
                    f"{name}: expected a value within num_embeddings ({count}), got {value}"
                )
            value %= count
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """N(0, 1), the padding vector zero, as torch.nn.Embedding."""
        nn.init.normal_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].fill_(0)

    def dropout_of_parameters(self) -> Iterator[tuple[nn.Parameter, float]]:
        """(parameter, probability of dropping it): the prior of the weights."""
        yield self.weight, self.dropout

    def sample_mask(
        self, batch_size: int, *, shared: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """A mask over the vocabulary, to hold over several calls: bool [B, num_embeddings].

        `shared`: one mask for all B sequences.
        """
        draw = self._shared if check_flag("shared", shared) else self._fresh
        return single(draw(batch_size, 0, self.weight.device, generator))

    def _largest_dropout(self) -> float:
        return self.dropout

    def _replace_dropout(self, p: float) -> None:
        self.dropout = check_probability("p", p)

    def _mask_shapes(self, sequences, features):
        return [(sequences, self.num_embeddings)]

    def _fresh(self, sequences, features, device, generator=None):
        (shape,) = self._mask_shapes(sequences, features)
        return [sample_keep(shape, self.dropout, device=device, generator=generator)]

    def forward(self, tokens: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """Vectors [T, B, embedding_dim] ([B, T, embedding_dim] if batch_first).

        Args:
            tokens: integer [T, B], [B, T] if batch_first, or [T]: one sequence.
            keep: bool [B, num_embeddings] from `sample_mask`, used in every mode.

        Raises:
            ValueError: tokens of another rank or dtype, or a mask of another shape (a RuntimeError
                too, as torch has it).
            IndexError: a token that is not in the vocabulary.
        """
        if (leaf := self._as_leaf(tokens, keep=keep)) is not None:
            return leaf  # type: ignore[return-value]
        check_tensor("tokens", tokens)
        if tokens.dtype not in (torch.int64, torch.int32):
            dtype = dtype_name(tokens.dtype)
            raise ArgumentError(f"tokens: expected dtype int64 or int32, got {dtype}")
        if tokens.dim() not in (1, 2):
            raise ArgumentError(f"tokens: expected 1 or 2 dimensions, got {tokens.dim()}")
        vectors = nn.functional.embedding(tokens, self.weight, self.padding_idx)
        # one column per sequence: [T, B]
        columns = tokens.unsqueeze(1) if tokens.dim() == 1 else tokens
        columns = columns.transpose(0, 1) if self.batch_first and tokens.dim() == 2 else columns
        self._saw(columns.shape[1], drew=keep is not None)
        if keep is None:
            if self.dropout == 0.0 or not self.mask_dropout.training:
                return vectors
            held = self._sample(columns.shape[1], 0, tokens.device)
            keep = None if held is None else single(held)
        if keep is None:
            kept = _keep_word_types(columns, self.dropout)
        else:
            check_keep(keep, (columns.shape[1], self.num_embeddings), tokens.device)
            kept = keep.gather(1, columns.transpose(0, 1).long()).transpose(0, 1)
        kept = kept.transpose(0, 1) if self.batch_first else kept
        return apply_mask(vectors, kept.reshape(tokens.shape).unsqueeze(-1), self.dropout)

    def extra_repr(self) -> str:
        parts = [f"{self.num_embeddings}, {self.embedding_dim}, dropout={self.dropout}"]
        parts += [] if self.padding_idx is None else [f"padding_idx={self.padding_idx}"]
        return ", ".join(parts + (["batch_first=True"] if self.batch_first else []))


def _keep_word_types(tokens: Tensor, p: float) -> Tensor:
    """bool [T, B], equal wherever tokens [T, B] are equal within a column.

    Sorting brings equal words together and the first of each run draws for all of it: shapes do
    not depend on the data, and the cost is T log T, not the size of the vocabulary.
    """
    ordered, order = tokens.sort(dim=0)
    position = torch.arange(tokens.shape[0], device=tokens.device).unsqueeze(1)
    # One expression: Inductor cannot assign to a slice of a bool tensor.
    changes = ordered[1:] != ordered[:-1]
    starts_run = torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), changes])
    run_start = torch.where(starts_run, position, 0).cummax(dim=0).values
    drawn = sample_keep(tokens.shape, p, device=tokens.device).gather(0, run_start)
    return torch.empty_like(drawn).scatter(0, order, drawn)


class LockedDropout(Settings, DropoutModule):
    """Dropout with one mask per sequence, the same at every time step (paper, section 3).

    Args:
        p: probability of dropping a feature; kept ones are scaled by 1 / (1 - p).
        batch_first: the input is [B, T, F] instead of [T, B, F].
    """

    settings: ClassVar = {"p": check_probability, "batch_first": check_flag}

    def __init__(self, p: float = 0.5, *, batch_first: bool = False) -> None:
        super().__init__()
        self.p = p
        self.batch_first = batch_first

    def sample_mask(
        self,
        batch_size: int,
        features: int,
        *,
        shared: bool = False,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A mask to hold over several calls: bool [B, F]. `shared`: one for all B sequences."""
        draw = self._shared if check_flag("shared", shared) else self._fresh
        return single(draw(batch_size, features, device, generator))

    def _largest_dropout(self) -> float:
        return self.p

    def _replace_dropout(self, p: float) -> None:
        self.p = check_probability("p", p)

    def _mask_shapes(self, sequences, features):
        return [(sequences, features)]

    def _fresh(self, sequences, features, device, generator=None):
        return [sample_keep((sequences, features), self.p, device=device, generator=generator)]

    def forward(self, x: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """x with features dropped, in its own shape.

        Args:
            x: [T, B, F], or [B, T, F] if batch_first.
            keep: bool [B, F] from `sample_mask`, used in every mode.

        Raises:
            ValueError: x of another rank or of integers, or a mask of another shape (a RuntimeError
                too).
        """
        if (leaf := self._as_leaf(x, keep=keep)) is not None:
            return leaf  # type: ignore[return-value]
        check_tensor("x", x)
        if not (x.is_floating_point() or x.is_complex()):
            raise ArgumentError(f"x: expected a floating-point dtype, got {dtype_name(x.dtype)}")
        if x.dim() != 3:
            # [B, F] and [T, F] look alike; taking one for the other would share a mask silently.
            raise ArgumentError(
                "x: expected 3 dimensions, time and batch among them (one step [B, F]: use "
                f"nn.Dropout; one sequence [T, F]: unsqueeze its batch), got {x.dim()}"
            )
        time = 1 if self.batch_first else 0
        shape = (x.shape[1 - time], x.shape[-1])
        self._saw(shape[0], drew=keep is not None)
        if keep is None:
            if self.p == 0.0 or not self.mask_dropout.training:
                return x
            held = self._sample(*shape, x.device)
            keep = single(self._fresh(*shape, x.device) if held is None else held)
        else:
            check_keep(keep, shape, x.device)
        return apply_mask(x, keep.unsqueeze(time), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}" + (", batch_first=True" if self.batch_first else "")
