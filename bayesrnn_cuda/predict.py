"""Prediction with uncertainty: dropout that stays on, averages over masks (paper, eq. 5)."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import blocks, repeats, switch
from .checks import (
    check_flag,
    check_integer,
    check_module,
    check_not_negative,
    check_size,
    shown,
)
from .moments import Moments, at_least_float32, entropy
from .prediction import HeteroscedasticPrediction, MCPrediction
from .switch import DropoutModule

_TORCH_DROPOUT = (nn.modules.dropout._DropoutNd, nn.RNNBase)
_LIKELIHOODS = ("gaussian", "heteroscedastic", "categorical")


@contextmanager
def mc_dropout(module: nn.Module, *, hold: bool = False) -> Iterator[nn.Module]:
    """Within the block, every dropout inside `module` draws masks although `module.eval()`.

    Serves this package's modules, torch's nn.Dropout family and the dropout inside nn.LSTM and
    nn.GRU; a call of torch.nn.functional.dropout it cannot see. Batch norm and the like stay as
    `eval()` left them.

    The block sets the `training` flag of each dropout (of this package's modules: that of their
    `mask_dropout`) and at its end restores what it found. `train()` and `eval()` within the block
    act on every dropout as elsewhere, until the block ends. Blocks nest, overlap and run in several
    threads: while one is open that began later, dropout stays on. A copy that is made within keeps
    the flags that it found.

    Args:
        module: the model, or a part of it.
        hold: as within `hold_masks` too.
    """
    check_module(module)
    check_flag("hold", hold)
    with ExitStack() as stack:
        if hold:
            stack.enter_context(hold_masks(module))
        dropouts = [m for m in module.modules() if isinstance(m, _TORCH_DROPOUT)]
        stack.enter_context(blocks.flags([(m, "training", True) for m in dropouts]))
        yield module


@contextmanager
def hold_masks(module: nn.Module) -> Iterator[nn.Module]:
    """Within the block, each layer's first call draws masks, and later calls reuse them.

    So that a rollout step by step, or any code that calls a model several times, is one sampled
    model and not a new one at each call. Whether masks are drawn at all is not its matter:
    `train()`, or `mc_dropout(module, hold=True)`. Holds for this package's modules (torch's
    nn.Dropout draws anew), in the thread or task that opened the block; an inner block has masks of
    its own. `masks=` and `keep=` go before. Backward through a checkpoint belongs within.

    Args:
        module: the model, or a part of it.

    Raises:
        ValueError: at the call of a layer with another number of sequences than its first, or on
            another device.
        TypeError: not an nn.Module.
    """
    check_module(module)
    layers = [m for m in module.modules() if isinstance(m, DropoutModule)]
    if torch.compiler.is_compiling():
        with blocks.flags([(layer, "_traced", {}) for layer in layers]):
            yield module
        return
    with _drawing(blocks.MaskBlock(layers, hold=True)):
        yield module


@contextmanager
def _drawing(block: blocks.MaskBlock) -> Iterator[blocks.MaskBlock]:
    """The layers of `block` draw as it says, in compiled graphs too."""
    layers = [m for m in block.layers.values() if isinstance(m, DropoutModule)]
    for layer in layers:
        switch.register(layer)
    flags = [(layer, "_in_block", True) for layer in layers]
    with blocks.flags(flags), blocks.entered(block):
        yield block


def mc_predict(
    module: nn.Module,
    *inputs: Any,
    samples: int = 100,
    likelihood: str = "gaussian",
    noise: float | Tensor | None = None,
    keep_draws: bool = False,
    share_masks: bool = False,
    hold: bool = False,
    output: str | int | Callable[[Any], Any] | None = None,
    module_kwargs: Mapping[str, Any] | None = None,
    batch_dim: int | None = None,
    output_batch_dim: int | None = None,
    chunk: int | None = None,
) -> MCPrediction:
    """MC dropout: the predictive distribution over `samples` mask sets (paper, eq. 5, section 4.3).

    The samples run as batch: every input is repeated along its batch dimension, so that a sequence
    meets S different mask sets in a few calls. The first sample runs alone, and the rest is held
    against it: every dropout layer must see as many sequences more as there are samples, and one
    dimension of the output must grow so. No gradients are kept. But for dropout the module runs as
    in `eval()`, and is left in the mode it was in. Moments are kept in float32 at least.

    Args:
        module: takes `inputs`, returns a tensor, a tuple whose first entry is taken (nn.LSTM), or a
            dict with "logits" or a single tensor (transformers).
        inputs: tensors with the same batch dimension, size B there, or dicts and lists of such; or
            None. A vector beside others is an entry for each sequence (lengths), and the states
            that a recurrent layer is called with have their batch in dimension 1.
        samples: S >= 1.
        likelihood: "gaussian": the output is a value, mean and std are its own;
            "heteroscedastic": it is a mean and the log of the variance of the noise, the two halves
            of its last dimension, or a tuple of two tensors;
            "categorical": the output is logits over its last dimension, and probabilities
            (softmax) are averaged, never logits.
        noise: for "gaussian" the standard deviation of the observations around the true function,
            >= 0, a number or a tensor that broadcasts to the mean, as from `fit_noise`.
        keep_draws: keep all S outputs; without it memory does not grow with S.
        share_masks: one mask set for the whole batch in each sample: one function of all inputs.
        hold: masks are held over the calls of a layer within one call of the module (`hold_masks`),
            so that a rollout inside the module is one sampled model.
        output: which part of the module's output is meant: a key, an index, or a function of it.
        module_kwargs: keyword arguments of the module; tensors among them are repeated as inputs.
        batch_dim: of the inputs; None: as the modules inside say (`batch_first`), else 0, and where
            the layers see another, the other one of 0 and 1.
        output_batch_dim: of the output; None: the dimension that grows with the samples.
        chunk: samples per call, to bound memory. None: as many as keep the repeated inputs within
            repeats.CHUNK_ELEMENTS, where an index or a vector (last dimension) counts for at least
            repeats.CHUNK_WIDTH elements; never below 1. A wide output may want fewer, a GPU may
            like more. 1: nothing is repeated, and the module may do with its batch what it likes.

    Returns:
        MCPrediction in the shape of one output.

    Raises:
        ValueError: a bad argument, no input, different batch sizes, a batch dimension that the
            layers or the output contradict, an output of integers.
        TypeError: an argument of another type, an output that is no tensor.

    Warns:
        UserWarning: no dropout drew masks, and all samples are equal.
    """
    check_module(module)
    check_size("samples", samples)
    if chunk is not None:
        check_size("chunk", chunk)
    for name, value in (("batch_dim", batch_dim), ("output_batch_dim", output_batch_dim)):
        if value is not None:
            check_integer(name, value)
    for name, value in (("keep_draws", keep_draws), ("share_masks", share_masks), ("hold", hold)):
        check_flag(name, value)
    _check_likelihood(likelihood, noise)
    calls = repeats.Repeats(
        module, inputs, module_kwargs, samples=samples, chunk=chunk, batch_dim=batch_dim,
        output_batch_dim=output_batch_dim, shared=share_masks,
    )  # fmt: skip
    layers = [m for m in module.modules() if isinstance(m, DropoutModule)]
    summary = _Summary(likelihood, keep_draws)

    def run(arguments: repeats.Arguments) -> tuple[list[Tensor], list[int]]:
        block = blocks.MaskBlock(layers, hold=hold, sets=arguments.samples if share_masks else None)
        with _drawing(block) if hold or share_masks else blocks.entered(block), watch.block(block):
            result = module(*arguments.inputs, **arguments.kwargs)
        return _parts(result, output, likelihood), block.sequences

    modes = [(m, "training", isinstance(m, _TORCH_DROPOUT)) for m in module.modules()]
    with torch.no_grad(), blocks.flags(modes), _Watch(module) as watch:
        for parts in calls.draws(run):
            summary.add(parts)
    prediction = summary.prediction(noise)
    if not watch.drew and samples > 1 and _is_nil(prediction, parts[0].dtype):
        warnings.warn(
            "mc_predict: no dropout drew masks, and all samples are equal; dropout is seen in "
            "modules with p > 0, not in calls of torch.nn.functional.dropout",
            UserWarning,
            stacklevel=2,
        )
    return prediction


class _Watch:
    """Notices the calls of torch's own dropouts and recurrent layers, and what ours tell a block.

    Compiled graphs tell nothing, nor do other threads.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = [
            m
            for m in module.modules()
            if isinstance(m, _TORCH_DROPOUT) and not isinstance(m, switch.MaskDropout)
        ]
        self._block: blocks.MaskBlock | None = None
        self.drew = False

    def __enter__(self) -> "_Watch":
        self._hooks = [m.register_forward_pre_hook(self._note) for m in self._modules]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def block(self, block: blocks.MaskBlock) -> Iterator[None]:
        """What is called now belongs to `block`."""
        self._block = block
        yield
        self.drew |= block.drew

    def _note(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or self._block is None or not blocks.is_open(self._block):
            return
        if not isinstance(module, nn.RNNBase):
            self._block.drew |= module.training and getattr(module, "p", 0.0) > 0
            return
        self._block.drew |= bool(module.training and module.dropout and module.num_layers > 1)
        x = arguments[0] if arguments else None
        if isinstance(x, PackedSequence):
            self._block.saw(int(x.batch_sizes[0]))
        elif isinstance(x, Tensor):
            self._block.saw(1 if x.dim() == 2 else x.shape[0 if module.batch_first else 1])


class _Summary:
    """What is kept of the draws as they arrive."""

    def __init__(self, likelihood: str, keep_draws: bool) -> None:
        self._likelihood = likelihood
        self._values = Moments()
        self._entropies = Moments()
        self._variances = Moments()  # of the noise
        self._keep = keep_draws
        self._kept: list[list[Tensor]] = []

    def add(self, parts: list[Tensor]) -> None:
        """The outputs of a few samples: [S', ...], for "heteroscedastic" mean and log variance."""
        parts = [at_least_float32(part) for part in parts]
        if self._likelihood == "categorical":
            parts = [parts[0].softmax(dim=-1)]
            self._entropies.add(entropy(parts[0]))
        if self._likelihood == "heteroscedastic":
            parts[1] = parts[1].exp()
            self._variances.add(parts[1])
        self._values.add(parts[0])
        if self._keep:
            self._kept.append(parts)

    def prediction(self, noise: float | Tensor | None) -> MCPrediction:
        mean, std = self._values.mean, self._values.std()
        kept = [torch.cat(parts) for parts in zip(*self._kept, strict=True)]
        draws = kept[0] if kept else None
        if self._likelihood == "categorical":
            total = entropy(mean)
            # rounding can push a difference of equal numbers below its true bound of 0
            information = (total - self._entropies.mean).clamp_min(0)
            return MCPrediction(mean, std, total, information, draws=draws)
        if self._likelihood == "heteroscedastic":
            by_noise = self._variances.mean.sqrt()
            each = kept[1].sqrt() if kept else None
            total = torch.hypot(std, by_noise)
            return HeteroscedasticPrediction(mean, std, None, None, total, by_noise, draws, each)
        prediction = MCPrediction(mean, std, None, None, std, None, draws)
        return prediction if noise is None else prediction.with_noise(noise)


def _check_likelihood(likelihood: str, noise: float | Tensor | None) -> None:
    if likelihood not in _LIKELIHOODS:
        error = ValueError if isinstance(likelihood, str) else TypeError
        raise error(f"likelihood: expected one of {', '.join(_LIKELIHOODS)}, got {likelihood!r}")
    if noise is None:
        return
    check_not_negative("noise", noise)
    if likelihood != "gaussian":
        raise ValueError(f"noise: expected None for likelihood {likelihood!r}, got {shown(noise)}")


def _parts(result: Any, output: Any, likelihood: str) -> list[Tensor]:
    """The tensors meant by a module's result: one, or mean and log variance."""
    chosen = result if output is None else _choose(result, output)
    if likelihood == "heteroscedastic":
        if isinstance(chosen, tuple | list) and len(chosen) == 2:
            parts = [_check_output(part) for part in chosen]
            if parts[0].shape == parts[1].shape:
                return parts
        mean = _check_output(_first(chosen))
        if mean.dim() == 0 or mean.shape[-1] % 2:
            raise ValueError(
                "output: expected mean and log variance, two tensors of one shape or the halves of "
                f"the last dimension, got {list(mean.shape)}"
            )
        return list(mean.chunk(2, dim=-1))
    return [_check_output(_first(chosen))]


def _choose(result: Any, output: Any) -> Any:
    if callable(output):
        return output(result)
    try:
        return result[output]
    except (KeyError, IndexError, TypeError) as cause:
        found = list(result) if isinstance(result, Mapping) else type(result).__name__
        error = TypeError if isinstance(cause, TypeError) else ValueError
        raise error(
            f"output: expected a key or an index of the module's output, {found}, got {output!r}"
        ) from None


def _first(result: Any) -> Any:
    """The tensor that a module's output is about."""
    if isinstance(result, tuple | list) and result:
        return result[0]
    if isinstance(result, Mapping):
        if "logits" in result:
            return result["logits"]
        tensors = [value for value in result.values() if isinstance(value, Tensor)]
        if len(tensors) != 1:
            raise ValueError(
                "output: expected to be given for a dict without logits, "
                f"one of {list(result)}, got None"
            )
        return tensors[0]
    return result


def _check_output(y: Any) -> Tensor:
    if not isinstance(y, Tensor):
        raise TypeError(
            "output: expected a tensor, or a way to one (a key, an index, a function), "
            f"got {type(y).__name__}"
        )
    if not y.is_floating_point():
        raise ValueError(
            "output: expected floating point numbers (logits, and not their argmax), got "
            f"{str(y.dtype).removeprefix('torch.')}"
        )
    return y


def _is_nil(prediction: MCPrediction, dtype: torch.dtype) -> bool:
    """Whether the samples differ by no more than rows of a batch do by rounding."""
    if prediction.std.numel() == 0:
        return False
    limit = 16 * torch.finfo(dtype).eps * prediction.mean.abs().max()
    return bool(prediction.std.max() <= limit)
