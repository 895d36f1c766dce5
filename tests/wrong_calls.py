"""Random wrong calls of everything public, for test_properties.py and fuzz.py.

A call is right but for one or a few arguments. It must raise an error that names one of them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cases
import torch
from cases import Case
from hypothesis import strategies as st
from torch import Tensor, nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda import LayerMasks, LayerWeights, functional

T, B, I, H = 3, 2, 5, 4  # noqa: E741
CELLS = {
    cell: Case(cell, T, B, I, H, lengths=True, resets="random") for cell in ("lstm", "gru", "rnn")
}
MODULES = {"lstm": brnn.BayesianLSTM, "gru": brnn.BayesianGRU, "rnn": brnn.BayesianRNN}
STATES = {"lstm": ("h0", "c0"), "gru": ("h0",), "rnn": ("h0",)}

# What an error may be. IndexError: torch's own for a word out of the vocabulary.
ERRORS = (ValueError, RuntimeError, TypeError, IndexError)
# Torch's own answers: it has no such op for sparse and other layouts, or for no tensor at all.
NO_OP = ("Could not run 'bayesrnn::", "There were no tensor arguments to this function")
# A size that no machine has: whoever allocates refuses, and knows no argument.
HUGE = 2**55
OUT_OF_MEMORY = re.compile(r"memory|overflow", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """Something public, and a right call of it."""

    call: Callable[..., object]
    arguments: dict[str, Any]
    kinds: dict[str, str]  # argument -> key of EXPRESSIONS
    free: frozenset = frozenset()  # (argument, dimension) whose size the others do not fix
    # what else an error about the argument may name: what it fixes for others, or its parts
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class WrongCall:
    """`changes`: (argument, what comes in its place: an expression of the right value t)."""

    target: str
    changes: tuple[tuple[str, str], ...]


# ---- Wrong values, as expressions of the right one


def freed(t: Tensor) -> Tensor:
    """A tensor whose memory was given back, as sharding does between uses."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


OBJECTS = ("'abc'", "3", "2.5", "[t]", "[]", "{{}}", "object()", "torch.float32", "nn.Linear(1, 1)")
DTYPES = (
    "float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool",
    "complex64", "float8_e4m3fn",
)  # fmt: skip


def wrong_tensors(t: Tensor, free: set[int]) -> list[str]:
    """None may be right somewhere: see `wrong_values`."""
    found = ["t[None]", "t.sum()", "t.new_empty(0)", "t.to('meta')", "t.to_sparse()"]
    found += [f"t.to(torch.{d})" for d in DTYPES if getattr(torch, d) != t.dtype]
    found += [*OBJECTS, "t.tolist()", "t.numpy()"]
    if t.is_floating_point():
        found.append("t.to_mkldnn()")
    if t.dim() > 1:
        found += ["t[0]", "t.flatten()"]
    for dim in set(range(t.dim())) - free:
        found.append(f"torch.cat([t, t], {dim})")
        found.append(f"t.narrow({dim}, 0, 0)")
        shape = ", ".join(["HUGE" if d == dim else str(n) for d, n in enumerate(t.shape)])
        found.append(f"t.new_zeros(()).expand({shape})")
    return found


def wrong_of_layer(t: Tensor, free: set[int]) -> list[str]:
    """Of a layer's own tensors; torch's ops, which do the rest, crash on freed memory."""
    return [*wrong_tensors(t, free), "freed(t)"]


def wrong_lengths(t: Tensor, free: set[int]) -> list[str]:
    values = ("10**6", "-1", "-2**63", "2**63 - 1", f"{T + 1}")
    return [*wrong_of_layer(t, free), *(f"torch.full_like(t, {v})" for v in values)]


def wrong_masks(t: Tensor, free: set[int]) -> list[str]:
    return [*wrong_of_layer(t, free), "torch.cat([t, t])[:2]", "t[:0]", "~t.to(torch.uint8)"]


def always(*expressions: str) -> Callable[[Any, set[int]], list[str]]:
    return lambda t, free: list(expressions)


NO_TENSOR = ("None", *OBJECTS)
EXPRESSIONS = {
    "tensor": lambda t, free: ["None", *wrong_of_layer(t, free)],
    "tensor or None": wrong_of_layer,
    "lengths": wrong_lengths,
    "mask": wrong_masks,
    "keep": wrong_tensors,
    "state": lambda t, free: ["None", *wrong_tensors(t, free)],
    "state or None": wrong_tensors,
    "number": always("None", "'1'", "[1.0]", "object()", "1j"),
    "flag": always("None", "'yes'", "2.5", "[]", "object()"),
    "flag of op": always("'yes'", "[]", "object()"),  # torch converts None and numbers
    "engine": always("None", "'gpu'", "3", "['cpu']", "''", "'cpu\\0'", "'grid'", "torch.float32"),
    "size": always(
        "0", "-1", "-2**63", "2**63", "2**80", "2.0", "float('nan')", "None", "'4'", "[4]",
        "True", "torch.tensor(2.5)", "torch.tensor([4, 4])", "HUGE",
    ),
    "count": always(
        "0", "-1", "-2**63", "2.0", "float('nan')", "None", "'4'", "[4]", "True",
        "torch.tensor([4, 4])",
    ),
    "probability": always(
        "-0.1", "1.5", "float('nan')", "float('inf')", "None", "'0.5'", "True", "[[0.5]]",
        "torch.tensor([0.5, 0.5])", "1j",
    ),
    "positive": always("0", "-1.0", "float('nan')", "None", "'1'", "[1]", "1j"),
    "anything": always(*NO_TENSOR),
    "module": always("None", "'abc'", "3", "[]", "torch.zeros(1)", "object()"),
    "dtype": always("'float32'", "torch.int64", "3", "'abc'"),
    "device": always("'abc'", "3.5", "[]", "'cpu:x'"),
    "cell": always("None", "'mlp'", "3", "['lstm']", "''"),
    "dimension": always("7", "-9", "'0'", "1.5", "[0]"),
}  # fmt: skip


def wrong_values(target: Target, argument: str) -> list[str]:
    free = {dim for name, dim in target.free if name == argument}
    found = EXPRESSIONS[target.kinds[argument]](target.arguments[argument], free)
    return [text.replace("{{}}", "{}") for text in found]


# ---- Right calls


def op_target(name: str, cell: str) -> Target:
    make = cases.backward_arguments if name.endswith("backward") else cases.op_arguments
    op, values = make(CELLS[cell], cases.sample(CELLS[cell], torch.float32))
    schema = op.default._schema
    arguments = dict(zip((a.name for a in schema.arguments), values, strict=True))
    by_type = {"Tensor": "tensor", "float": "number", "bool": "flag of op", "str": "engine"}
    kinds = {a.name: by_type.get(str(a.type), "tensor or None") for a in schema.arguments}
    kinds |= {"keep_x": "mask", "keep_h": "mask", "lengths": "lengths"}
    free = frozenset() if name.endswith("backward") else frozenset({("x", 0)})
    everything = tuple(arguments)
    return Target(op, arguments, kinds, free, {"x": everything, "h0": everything})


def functional_target(cell: str, engine: str) -> Target:
    inputs = cases.sample(CELLS[cell], torch.float32)
    function = getattr(functional, cell)
    tensors = inputs.tensors()

    def call(**given):
        def part(kind):
            return kind(**{k: given.pop(k) for k in kind._fields})

        weights = part(LayerWeights) if "weights" not in given else given.pop("weights")
        masks = part(LayerMasks) if "masks" not in given else given.pop("masks")
        return function(weights=weights, masks=masks, **given)

    arguments = tensors | {"scale_x": inputs.masks.scale_x, "scale_h": inputs.masks.scale_h}
    arguments |= {"reverse": False, "engine": engine}
    kinds = dict.fromkeys(tensors, "tensor") | {"bias_ih": "tensor or None"}
    kinds |= {"bias_hh": "tensor or None", "keep_x": "mask", "keep_h": "mask"}
    kinds |= {"lengths": "lengths", "resets": "tensor or None"}
    kinds |= {"scale_x": "number", "scale_h": "number"}
    kinds |= {"reverse": "flag", "engine": "engine"}
    if cell == "gru":
        arguments["reset_after"], kinds["reset_after"] = True, "flag"
    everything = tuple(arguments)
    also = {"x": everything, "h0": everything}
    return Target(call, arguments, kinds, frozenset({("x", 0)}), also)


def grouped_target(cell: str, engine: str) -> Target:
    """weights and masks as a whole."""
    inputs = cases.sample(CELLS[cell], torch.float32)
    arguments = {"x": inputs.x} | {name: getattr(inputs, name) for name in STATES[cell]}
    arguments |= {"weights": inputs.weights, "masks": inputs.masks, "engine": engine}
    return Target(
        getattr(functional, cell),
        arguments,
        {"weights": "weights", "masks": "masks"},
    )


EXPRESSIONS["weights"] = always(
    *NO_TENSOR, "t[:2]", "tuple(t)", "t._asdict()", "t.weight_ih", "(*t, None)"
)
EXPRESSIONS["masks"] = always(
    *OBJECTS, "tuple(t)", "t._asdict()", "t.keep_x", "[t.keep_x, t.keep_h]"
)


def constructor_target(cell: str) -> Target:
    arguments = {
        "input_size": I, "hidden_size": H, "num_layers": 2, "bias": True, "batch_first": False,
        "bidirectional": False, "input_dropout": 0.5, "dropout": 0.0, "proj_size": 0,
        "recurrent_dropout": 0.5, "tie_gates": False, "engine": "auto",
    }  # fmt: skip
    kinds = {
        "input_size": "size", "hidden_size": "size", "num_layers": "count", "bias": "flag",
        "batch_first": "flag", "bidirectional": "flag", "input_dropout": "input dropout",
        "dropout": "probability", "proj_size": "no projections",
        "recurrent_dropout": "probability", "tie_gates": "flag", "engine": "module engine",
    }  # fmt: skip
    if cell == "gru":
        arguments["reset_after"], kinds["reset_after"] = True, "flag"
    return Target(MODULES[cell], arguments, kinds)


EXPRESSIONS["input dropout"] = always(  # None is an answer
    "-0.1",
    "1.5",
    "float('nan')",
    "'0.5'",
    "True",
    "[[0.5]]",
    "[]",
    "[0.5] * 7",
    "1j",
    "{}",
    "torch.tensor([0.5, 0.5])",
)
EXPRESSIONS["no projections"] = always("3", "-1", "None", "2.5", "'0'", "False")
EXPRESSIONS["module engine"] = always("None", "'gpu'", "3", "['cpu']", "''", "torch.float32")


def forward_target(cell: str, engine: str) -> Target:
    module = MODULES[cell](I, H, input_dropout=0.5, recurrent_dropout=0.5, engine=engine)
    arguments = {"input": torch.randn(T, B, I)}
    for state in ("h_0", "c_0")[: len(STATES[cell])]:
        arguments[state] = torch.randn(1, B, H)
    masks = module.sample_masks(B)[0]
    arguments |= {"keep_x": masks.keep_x, "keep_h": masks.keep_h, "resets": torch.rand(T, B) < 0.5}

    def call(input, h_0, c_0=None, *, keep_x, keep_h, resets):
        hx = (h_0, c_0) if cell == "lstm" else h_0
        return module(input, hx, masks=[LayerMasks(keep_x, keep_h, 2.0, 2.0)], resets=resets)

    kinds = {"input": "tensor", "keep_x": "mask", "keep_h": "mask", "resets": "tensor or None"}
    # None is the state of zeros, where there is one: an LSTM has no hx with one None
    kinds |= {"h_0": "state", "c_0": "state"} if cell == "lstm" else {"h_0": "state or None"}
    also = {"input": ("x", *arguments, "h0"), "h_0": ("h0", "hx"), "c_0": ("c0", "hx")}
    return Target(call, arguments, kinds, frozenset({("input", 0)}), also)


def module_target(cell: str, engine: str) -> Target:
    """hx and masks as a whole."""
    module = MODULES[cell](I, H, input_dropout=0.5, engine=engine)
    hx = (torch.randn(1, B, H),) * 2
    arguments = {
        "input": torch.randn(T, B, I),
        "hx": hx if cell == "lstm" else hx[0],
        "masks": module.sample_masks(B),
    }
    return Target(module, arguments, {"hx": f"hx of {cell}", "masks": "list of masks"})


EXPRESSIONS["hx of lstm"] = always(*OBJECTS, "t[0]", "t[:1]", "(*t, t[0])", "{0: t}", "(t, t)")
EXPRESSIONS["hx of gru"] = EXPRESSIONS["hx of rnn"] = always(*OBJECTS, "(t,)", "(t, t)", "[t]")
EXPRESSIONS["list of masks"] = always(*OBJECTS, "t[0]", "t * 2", "[t]", "[tuple(t[0])]", "[None]")


def embedding_target() -> Target:
    module = brnn.BayesianEmbedding(7, 3, dropout=0.5)
    arguments = {"tokens": torch.zeros(T, B, dtype=torch.int64), "keep": module.sample_mask(B)}
    kinds = {"tokens": "tokens", "keep": "keep"}
    return Target(module, arguments, kinds, also={"tokens": ("keep",)})


EXPRESSIONS["tokens"] = lambda t, free: [
    "None", "t.float()", "t.bool()", "t[None]", "t.sum()", "t.to_sparse()",
    "t + 7", "t - 1", "torch.cat([t, t], 1)", *OBJECTS, "t.tolist()",
]  # fmt: skip


def locked_target() -> Target:
    module = brnn.LockedDropout(0.5)
    arguments = {"x": torch.randn(T, B, I), "keep": module.sample_mask(B, I)}
    kinds = {"x": "values", "keep": "keep"}
    return Target(module, arguments, kinds, also={"x": ("keep",)})


EXPRESSIONS["values"] = lambda t, free: [
    "None", "t[0]", "t[None]", "t.flatten()", "t.sum()", "torch.cat([t, t], 1)",
    "torch.cat([t, t], 2)", *OBJECTS, "t.tolist()",
]  # fmt: skip


def predict_target() -> Target:
    module = brnn.BayesianLSTM(I, H, input_dropout=0.5)
    arguments = {
        "module": module, "inputs": torch.randn(T, B, I), "samples": 2, "chunk": 1,
        "likelihood": "gaussian", "batch_dim": 1, "output_batch_dim": 1, "noise": 0.1,
        "keep_draws": False, "share_masks": False, "hold": False, "module_kwargs": {},
    }  # fmt: skip
    kinds = {
        "module": "module", "inputs": "anything", "samples": "count", "chunk": "chunk",
        "likelihood": "cell", "batch_dim": "dimension", "output_batch_dim": "dimension",
        "noise": "noise", "keep_draws": "flag", "share_masks": "flag", "hold": "flag",
        "module_kwargs": "kwargs",
    }  # fmt: skip

    def call(module, inputs, **options):
        return brnn.mc_predict(module, inputs, **options)

    return Target(call, arguments, kinds, also={"inputs": ("input",), "batch_dim": ("inputs",)})


def scale_target() -> Target:
    draws = torch.randn(4, B, 3)
    given = brnn.MCPrediction(draws.mean(0), draws.std(0), None, None, draws.std(0))
    arguments = {
        "prediction": given, "targets": torch.randn(B, 3), "level": 0.5, "joint": 1, "separate": (),
        "confidence": 0.5,
    }  # fmt: skip
    kinds = {
        "prediction": "prediction", "targets": "plain tensor", "level": "level",
        "joint": "dimensions", "separate": "dimensions", "confidence": "confidence",
    }  # fmt: skip
    return Target(brnn.conformal_scale, arguments, kinds, also={"targets": ("prediction",)})


EXPRESSIONS["noise"] = always("-1", "float('nan')", "'0.1'", "[0.1]", "torch.ones(7, 7)", "{}")
EXPRESSIONS["kwargs"] = always("[1]", "'x'", "3")
EXPRESSIONS["dimensions"] = always("7", "-9", "'0'", "1.5", "[7]", "None")
EXPRESSIONS["level"] = always("0", "1", "90", "-0.1", "None", "'0.9'", "float('nan')", "True")
EXPRESSIONS["confidence"] = always("0", "1", "95", "-0.1", "'0.9'", "float('nan')", "True")
EXPRESSIONS["prediction"] = always("None", "t.mean", "(1, 2)", "3")
EXPRESSIONS["plain tensor"] = always("None", "3", "t[0]", "t[:1]", "t.tolist()")
EXPRESSIONS["chunk"] = always("0", "-1", "2.0", "'4'", "[4]")


def penalty_target(function: Callable) -> Target:
    arguments = {
        "module": nn.Sequential(nn.Linear(2, 2)), "length_scale": 0.1, "num_data": 10,
        "dropout": {"0": 0.5},
    }  # fmt: skip
    kinds = {
        "module": "module", "length_scale": "positive", "num_data": "positive",
        "dropout": "dropouts",
    }  # fmt: skip
    return Target(function, arguments, kinds)


EXPRESSIONS["dropouts"] = always(
    "{'1': 0.5}", "{'0': 2.0}", "{'0': None}", "['0']", "'0'", "3", "{0: 0.5}", "0.5"
)


def plan_target() -> Target:
    arguments = {
        "cell": "lstm", "T": T, "B": B, "I": I, "H": H, "dtype": torch.float32, "device": "cpu",
    }  # fmt: skip
    kinds = dict.fromkeys("TBIH", "planned size")
    kinds |= {"cell": "cell", "dtype": "no dtype", "device": "device"}
    return Target(brnn.plan, arguments, kinds)


EXPRESSIONS["planned size"] = always(
    "0", "-1", "-2**63", "2**63", "2**80", "2.0", "float('nan')", "None", "'4'", "[4]",
    "torch.tensor(2.5)", "torch.tensor([4, 4])",
)  # fmt: skip
EXPRESSIONS["no dtype"] = always("'float32'", "None", "3", "float")


def sampling_target(cell: str) -> Target:
    module = MODULES[cell](I, H, input_dropout=0.5)
    arguments = {"batch_size": B, "generator": torch.Generator()}
    kinds = {"batch_size": "batch size", "generator": "generator"}
    return Target(module.sample_masks, arguments, kinds, also={"batch_size": ("size",)})


EXPRESSIONS["batch size"] = always(
    "-1", "-2**63", "2**63", "2.0", "float('nan')", "None", "'4'", "[4]", "HUGE"
)
EXPRESSIONS["generator"] = always("3", "'abc'", "object()")


def simple_target(function: Callable, **arguments: tuple[Any, str]) -> Target:
    values = {name: value for name, (value, _) in arguments.items()}
    return Target(function, values, {name: kind for name, (_, kind) in arguments.items()})


EXPRESSIONS["seed"] = lambda t, free: [
    e
    for e in EXPRESSIONS["tensor"](t, free)
    if "meta" not in e  # whose mask is on meta too
]
EXPRESSIONS["count of op"] = always("-1", "-2**63", "2**63", "2.5", "None", "'4'", "[4]", "HUGE")
EXPRESSIONS["probability of op"] = always("-0.1", "1.5", "float('nan')", "None", "'0.5'", "1j")


TARGETS: dict[str, Callable[[], Target]] = {
    "op sample_keep": lambda: simple_target(
        torch.ops.bayesrnn.sample_keep,
        seed=(torch.tensor([1]), "seed"),
        count=(5, "count of op"),
        p=(0.5, "probability of op"),
    ),
    "op sample_layer_keep": lambda: simple_target(
        torch.ops.bayesrnn.sample_layer_keep,
        seeds=(torch.tensor([1, 2]), "seed"),
        **dict.fromkeys(("sets", "B", "I", "H"), (3, "count of op")),
        p_x=(0.5, "probability of op"),
        p_h=(0.5, "probability of op"),
    ),
    **{f"op {cell}": lambda cell=cell: op_target(cell, cell) for cell in CELLS},
    **{
        f"op {cell}_backward": lambda cell=cell: op_target(f"{cell}_backward", cell)
        for cell in CELLS
    },
    **{
        f"functional.{cell}, {engine}": lambda cell=cell, engine=engine: functional_target(
            cell, engine
        )
        for cell in CELLS
        for engine in ("auto", "reference")
    },
    **{
        f"functional.{cell} by groups, {engine}": lambda c=cell, e=engine: grouped_target(c, e)
        for cell in CELLS
        for engine in ("auto", "reference")
    },
    **{f"{MODULES[c].__name__}()": lambda c=c: constructor_target(c) for c in CELLS},
    **{
        f"{MODULES[cell].__name__}.forward, {engine}": lambda c=cell, e=engine: forward_target(c, e)
        for cell in CELLS
        for engine in ("auto", "reference")
    },
    **{
        f"{MODULES[cell].__name__}.forward by groups": lambda c=cell: module_target(c, "auto")
        for cell in CELLS
    },
    **{f"{MODULES[c].__name__}.sample_masks": lambda c=c: sampling_target(c) for c in CELLS},
    "BayesianEmbedding()": lambda: simple_target(
        brnn.BayesianEmbedding,
        num_embeddings=(7, "size"),
        embedding_dim=(3, "size"),
        dropout=(0.5, "probability"),
        padding_idx=(0, "dimension"),
        batch_first=(False, "flag"),
    ),
    "BayesianEmbedding.forward": embedding_target,
    "LockedDropout()": lambda: simple_target(
        brnn.LockedDropout, p=(0.5, "probability"), batch_first=(False, "flag")
    ),
    "LockedDropout.forward": locked_target,
    "mc_predict": predict_target,
    "conformal_scale": scale_target,
    "kl_penalty": lambda: penalty_target(brnn.kl_penalty),
    "weight_decay_groups": lambda: penalty_target(brnn.weight_decay_groups),
    "plan": plan_target,
}
_made: dict[str, Target] = {}


def target_of(name: str) -> Target:
    if name not in _made:
        torch.manual_seed(0)
        _made[name] = TARGETS[name]()
    return _made[name]


@st.composite
def wrong_calls(draw) -> WrongCall:
    name = draw(st.sampled_from(list(TARGETS)))
    target = target_of(name)
    arguments = st.lists(st.sampled_from(list(target.kinds)), min_size=1, max_size=2, unique=True)
    changes = [(a, draw(st.sampled_from(wrong_values(target, a)))) for a in draw(arguments)]
    return WrongCall(name, tuple(changes))


def every_wrong_call() -> list[WrongCall]:
    """Each wrong value of each argument alone."""
    return [
        WrongCall(name, ((argument, value),))
        for name in TARGETS
        for argument in target_of(name).kinds
        for value in wrong_values(target_of(name), argument)
    ]


def complaint(call: WrongCall) -> str | None:
    """What is wrong with the answer to a wrong call; None if it is as it should be."""
    target = target_of(call.target)
    arguments = dict(target.arguments)
    for name, text in call.changes:
        try:
            arguments[name] = eval(text, globals(), {"t": arguments[name]})
        except RuntimeError:
            return None  # torch has no such value
    try:
        target.call(**arguments)
    except ERRORS as error:
        return _unclear(error, target, call)
    except Exception as error:  # the wrong kind of error is what this looks for
        return f"expected {', '.join(e.__name__ for e in ERRORS)}, got {error!r}"
    return "expected an error, got none"


def _unclear(error: Exception, target: Target, call: WrongCall) -> str | None:
    message = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, IndexError) and call.target == "BayesianEmbedding.forward":
        return None
    if call.target.startswith("op ") and message.startswith(NO_OP):
        return None
    huge = any("HUGE" in text for _, text in call.changes)
    if huge and OUT_OF_MEMORY.search(message):
        return None
    names = {n for argument, _ in call.changes for n in (argument, *target.also.get(argument, ()))}
    if re.search(rf"\b({'|'.join(names)})\b", message):
        return None
    return f"expected one of {', '.join(sorted(names))} in {type(error).__name__}: {message[:200]}"
