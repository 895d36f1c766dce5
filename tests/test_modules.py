"""BayesianLSTM and BayesianGRU as drop-in replacements of nn.LSTM and nn.GRU."""

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import bayesrnn_cuda as brnn

PAIRS = {"lstm": (brnn.BayesianLSTM, nn.LSTM), "gru": (brnn.BayesianGRU, nn.GRU)}
CELLS = list(PAIRS)
T, B, I, H = 5, 3, 4, 6  # noqa: E741

LAYOUTS = [
    {"num_layers": layers, "bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    for layers, bias, batch_first, bidirectional in itertools.product(
        (1, 2, 3), (True, False), (False, True), (False, True)
    )
]


def layout_id(layout):
    flags = [name for name in ("batch_first", "bidirectional") if layout[name]]
    return "-".join([str(layout["num_layers"]), *flags, *([] if layout["bias"] else ["no_bias"])])


every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
every_cell = pytest.mark.parametrize("cell", CELLS)


def make_pair(cell, **layout):
    """Ours and torch's in float64 with the same weights."""
    torch.manual_seed(0)
    ours, theirs = (cls(I, H, **layout, dtype=torch.float64) for cls in PAIRS[cell])
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def states(cell, *shape):
    """A random hx of that shape in float64, as `cell` takes it."""
    tensors = tuple(torch.randn(shape, dtype=torch.float64) for _ in range(2))
    return tensors if cell == "lstm" else tensors[0]


def flat(value):
    """The tensors in nested tuples, None and the index tensors of packed ones left out."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, tuple | list):
        return [tensor for v in value for tensor in flat(v)]
    return [] if value is None else [value]


def with_grad(value):
    """A copy of nested tuples whose tensors are leaves that require a gradient."""
    if isinstance(value, PackedSequence):
        return value._replace(data=with_grad(value.data))
    if isinstance(value, tuple | list):
        return tuple(with_grad(v) for v in value)
    return None if value is None else value.detach().clone().requires_grad_()


def run(module, x, hx):
    """(outputs, gradients of a weighted sum of all of them by x, hx and every parameter)."""
    x, hx = with_grad(x), with_grad(hx)
    outputs = flat(module(x, hx))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.rand(out.shape, generator=generator, dtype=out.dtype)).sum() for out in outputs
    )
    return outputs, torch.autograd.grad(loss, [*flat((x, hx)), *module.parameters()])


def assert_same(ours, theirs, x, hx=None):
    """Outputs and all gradients of the two modules agree to float64 rounding."""
    for got, expected in zip(run(ours, x, hx), run(theirs, x, hx), strict=True):
        torch.testing.assert_close(list(got), list(expected), rtol=1e-10, atol=1e-12)


# Equal to torch's layers without dropout


@every_cell
@every_layout
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
def test_equals_torch(cell, layout, with_hx):
    ours, theirs = make_pair(cell, **layout)
    directions = layout["num_layers"] * (2 if layout["bidirectional"] else 1)
    x = torch.randn((B, T, I) if layout["batch_first"] else (T, B, I), dtype=torch.float64)
    assert_same(ours, theirs, x, states(cell, directions, B, H) if with_hx else None)


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
def test_equals_torch_unbatched(cell, batch_first, bidirectional, with_hx):
    ours, theirs = make_pair(
        cell, num_layers=2, batch_first=batch_first, bidirectional=bidirectional
    )
    x = torch.randn(T, I, dtype=torch.float64)
    assert_same(ours, theirs, x, states(cell, 4 if bidirectional else 2, H) if with_hx else None)


@every_cell
@pytest.mark.parametrize("shape", [(1, B, I), (T, 1, I), (1, 1, I)], ids=["T1", "B1", "T1B1"])
def test_equals_torch_at_the_smallest_sizes(cell, shape):
    ours, theirs = make_pair(cell, bidirectional=True)
    assert_same(ours, theirs, torch.randn(shape, dtype=torch.float64), states(cell, 2, shape[1], H))


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
@pytest.mark.parametrize("lengths", [[5, 3, 1], [3, 5, 1], [2, 2, 2]], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_equals_torch_on_packed_sequences(cell, bidirectional, with_hx, lengths, batch_first):
    # batch_first says nothing about a packed input; nn.LSTM ignores it there
    layout = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": batch_first}
    ours, theirs = make_pair(cell, **layout)
    padded = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64)
    x = pack_padded_sequence(padded, lengths, enforce_sorted=lengths == sorted(lengths)[::-1])
    hx = states(cell, 4 if bidirectional else 2, len(lengths), H) if with_hx else None

    assert_same(ours, theirs, x, hx)
    got, expected = ours(x, hx)[0], theirs(x, hx)[0]
    assert isinstance(got, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        got_index, expected_index = getattr(got, name), getattr(expected, name)
        assert (got_index is None) == (expected_index is None), name
        assert got_index is None or torch.equal(got_index, expected_index), name


@every_cell
def test_packed_equals_each_sequence_alone(cell):
    module, _ = make_pair(cell, bidirectional=True)
    sequences = [torch.randn(length, I, dtype=torch.float64) for length in (2, 5, 4)]
    packed, _ = module(pack_sequence(sequences, enforce_sorted=False))
    for got, x in zip(nn.utils.rnn.unpack_sequence(packed), sequences, strict=True):
        torch.testing.assert_close(got, module(x)[0], rtol=1e-10, atol=1e-12)


@every_cell
def test_empty_batch(cell):
    module, theirs = make_pair(cell, num_layers=2)
    x = torch.zeros(T, 0, I, dtype=torch.float64)
    assert [t.shape for t in flat(module(x))] == [t.shape for t in flat(theirs(x))]
    gradients = run(module, x, None)[1]
    assert all((g == 0).all() for g in gradients)


@every_cell
def test_input_may_have_any_strides(cell):
    module, _ = make_pair(cell)
    wide = torch.randn(B, 2 * T, I, dtype=torch.float64)
    strided = wide[:, ::2].transpose(0, 1)
    assert torch.equal(module(strided)[0], module(strided.contiguous())[0])


def test_hx_may_be_a_list():
    module, _ = make_pair("lstm")
    x, hx = torch.randn(T, B, I, dtype=torch.float64), states("lstm", 1, B, H)
    assert torch.equal(module(x, list(hx))[0], module(x, hx)[0])


def test_gru_reset_before_equals_the_reference():
    torch.manual_seed(0)
    gru = brnn.BayesianGRU(I, H, num_layers=2, reset_after=False, dtype=torch.float64)
    slow = brnn.BayesianGRU(
        I, H, num_layers=2, reset_after=False, dtype=torch.float64, engine="reference"
    )
    slow.load_state_dict(gru.state_dict())
    assert_same(gru, slow, torch.randn(T, B, I, dtype=torch.float64), states("gru", 2, B, H))
    after = brnn.BayesianGRU(I, H, num_layers=2, dtype=torch.float64)
    after.load_state_dict(gru.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    assert not torch.allclose(gru(x)[0], after(x)[0])


@every_cell
def test_second_backward_over_a_retained_graph(cell):
    module = PAIRS[cell][0](I, H, num_layers=2, input_dropout=0.5, recurrent_dropout=0.5)
    x = torch.randn(T, B, I, requires_grad=True)
    loss = module(x)[0].square().sum()
    leaves = [x, *module.parameters()]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_cell
def test_frozen_parameters_get_no_gradient(cell):
    module = PAIRS[cell][0](I, H)
    module.weight_hh_l0.requires_grad_(False)
    module(torch.randn(T, B, I))[0].sum().backward()
    assert module.weight_hh_l0.grad is None
    assert module.weight_ih_l0.grad is not None


# Parameters, state_dict, copies


@every_cell
@every_layout
def test_state_dict_interchange(cell, layout):
    ours, theirs = (cls(I, H, **layout) for cls in PAIRS[cell])
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    for source, target in ((theirs, ours), (ours, theirs)):
        source.reset_parameters()
        target.load_state_dict(source.state_dict(), strict=True)
        for a, b in zip(source.parameters(), target.parameters(), strict=True):
            assert torch.equal(a, b)


@every_cell
def test_state_dict_of_another_size_is_refused(cell):
    ours, _ = PAIRS[cell]
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        ours(I, H).load_state_dict(ours(I, H + 1).state_dict())


@every_cell
@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[-3]], ids=layout_id)
def test_same_seed_gives_the_same_initial_weights_as_torch(cell, layout):
    modules = []
    for cls in PAIRS[cell]:
        torch.manual_seed(3)
        modules.append(cls(I, H, **layout))
    for a, b in zip(*(m.parameters() for m in modules), strict=True):
        assert torch.equal(a, b)


@every_cell
def test_reset_parameters_is_uniform_in_its_bound(cell):
    torch.manual_seed(0)
    hidden = 100
    module = PAIRS[cell][0](I, hidden)
    bound = 1 / math.sqrt(hidden)
    for _ in range(2):  # as constructed, then after a reset
        weights = module.weight_hh_l0.detach().flatten()
        assert weights.abs().max() <= bound
        assert weights.abs().max() > 0.999 * bound
        sigma = bound / math.sqrt(3 * weights.numel())
        assert abs(weights.mean()) < 5 * sigma
        torch.testing.assert_close(weights.std().item(), bound / math.sqrt(3), rtol=0.02, atol=0)
        with torch.no_grad():
            module.weight_hh_l0.fill_(7.0)
        module.reset_parameters()


@every_cell
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_separate(cell, way):
    options = {
        "num_layers": 2,
        "input_dropout": (0.1, 0.2),
        "recurrent_dropout": 0.3,
        "tie_gates": True,
    }
    module = PAIRS[cell][0](I, H, **options)
    if way == "deepcopy":
        twin = copy.deepcopy(module)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert repr(twin) == repr(module)
    x = torch.randn(T, B, I)
    outputs = []
    for m in (module, twin):
        torch.manual_seed(5)
        outputs.append(m(x)[0])
    assert torch.equal(*outputs)
    with torch.no_grad():
        twin.weight_ih_l0.zero_()
    assert module.weight_ih_l0.abs().sum() > 0


@every_cell
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_changing_the_dtype(cell, dtype):
    """float16 has no fused engine on the CPU: the layer still runs, on the reference."""
    torch.manual_seed(0)
    module = PAIRS[cell][0](I, H, bidirectional=True, input_dropout=0.5)
    x = torch.randn(T, B, I)
    expected = module.eval()(x)[0]
    module = module.to(dtype)
    outputs = flat(module(x.to(dtype)))
    assert {out.dtype for out in outputs} == {dtype}
    # outputs lie in (-1, 1): a few units in the last place of the weights and of the output
    torch.testing.assert_close(
        outputs[0].float(), expected, rtol=0, atol=8 * max(1e-7, torch.finfo(dtype).eps)
    )
    module.train()(x.to(dtype))[0].sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in module.parameters())


@every_cell
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
def test_autocast(cell, with_hx):
    """As nn.LSTM: bfloat16 comes out, on a float32 input and behind a Linear alike."""
    torch.manual_seed(0)
    module, linear = PAIRS[cell][0](I, H, bidirectional=True), nn.Linear(I, I)
    hx = None
    if with_hx:
        h_0 = torch.randn(2, B, H)
        hx = (h_0, h_0) if cell == "lstm" else h_0
    x = torch.randn(T, B, I)
    for given in (lambda: x, lambda: linear(x)):
        expected = flat(module(given(), hx))
        with torch.autocast("cpu", torch.bfloat16):
            got = flat(module(given(), hx))
        assert {t.dtype for t in got} == {torch.bfloat16}
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.float(), b, rtol=0.03, atol=0.03)
    sum(t.float().sum() for t in got).backward()
    assert all(p.grad.dtype == torch.float32 for p in (*module.parameters(), linear.weight))


@every_cell
def test_meta_device_gives_shapes(cell):
    module = PAIRS[cell][0](I, H, bidirectional=True, input_dropout=0.5, device="meta")
    out = module(torch.empty(T, B, I, device="meta"))
    assert out[0].device.type == "meta"
    assert out[0].shape == (T, B, 2 * H)
    real = module.to_empty(device="cpu")
    real.reset_parameters()
    assert real(torch.randn(T, B, I))[0].isfinite().all()


@every_cell
def test_weights_on_meta_are_refused_for_a_real_input(cell):
    """Weights that were never loaded must not give results out of uninitialised memory."""
    module = PAIRS[cell][0](I, H, device="meta")
    with pytest.raises((RuntimeError, ValueError), match="meta"):
        module(torch.randn(T, B, I))


@every_cell
def test_functional_call_replaces_the_weights(cell):
    module = PAIRS[cell][0](I, H)
    x = torch.randn(T, B, I)
    zero = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert torch.func.functional_call(module, zero, (x,))[0].abs().max() == 0
    assert module(x)[0].abs().max() > 0


@every_cell
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_compiles_as_one_graph_whatever_the_shapes(cell, dropout):
    torch.compiler.reset()
    torch.manual_seed(0)
    module = PAIRS[cell][0](I, H, input_dropout=dropout, recurrent_dropout=dropout)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, batch in ((5, 3), (4, 2), (6, 7)):
        x = torch.randn(steps, batch, I, requires_grad=True)
        output, _ = compiled(x)
        assert output.shape == (steps, batch, H)
        output.sum().backward()
        if dropout == 0:
            torch.testing.assert_close(output, module(x)[0])


@every_cell
def test_activation_checkpointing_redraws_the_same_masks(cell):
    module = PAIRS[cell][0](I, H, input_dropout=0.5, recurrent_dropout=0.5)
    x = torch.randn(T, B, I)

    def gradients(forward):
        torch.manual_seed(7)
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(forward(leaf)[0].square().sum(), [leaf, *module.parameters()])

    plain = gradients(module)
    checkpoint = torch.utils.checkpoint.checkpoint
    again = gradients(lambda leaf: checkpoint(module, leaf, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_repr_shows_what_is_not_default():
    lstm = brnn.BayesianLSTM(I, H)
    assert repr(lstm) == "BayesianLSTM(4, 6)"
    gru = brnn.BayesianGRU(
        I, H, 2, False, True, True,
        input_dropout=(0.1, 0.2), recurrent_dropout=0.3, tie_gates=True, reset_after=False,
        engine="reference",
    )  # fmt: skip
    assert repr(gru) == (
        "BayesianGRU(4, 6, num_layers=2, bias=False, batch_first=True, bidirectional=True, "
        "input_dropout=(0.1, 0.2), recurrent_dropout=0.3, tie_gates=True, engine='reference', "
        "reset_after=False)"
    )


@every_cell
def test_flatten_parameters_exists(cell):
    PAIRS[cell][0](I, H).flatten_parameters()


# Errors: each names the argument, what was expected and what came


@every_cell
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 0}, r"input_size: expected .* at least 1, got 0"),
        ({"hidden_size": -1}, r"hidden_size: expected .* at least 1, got -1"),
        ({"hidden_size": 2.5}, r"hidden_size: expected an integer .*, got 2\.5"),
        ({"num_layers": 0}, r"num_layers: expected .* at least 1, got 0"),
        ({"num_layers": True}, r"num_layers: expected an integer .*, got True"),
        ({"input_dropout": -0.1}, r"input_dropout: expected .* in \[0, 1\], got -0\.1"),
        ({"input_dropout": 1.5}, r"input_dropout: expected .* in \[0, 1\], got 1\.5"),
        ({"recurrent_dropout": -0.1}, r"recurrent_dropout: expected .* \[0, 1\], got -0\.1"),
        ({"recurrent_dropout": 2}, r"recurrent_dropout: expected .* \[0, 1\], got 2"),
        ({"recurrent_dropout": math.nan}, r"recurrent_dropout: expected .* \[0, 1\], got nan"),
        ({"recurrent_dropout": "0.5"}, r"recurrent_dropout: expected .* \[0, 1\], got '0\.5'"),
        ({"recurrent_dropout": None}, r"recurrent_dropout: expected .* \[0, 1\], got None"),
        ({"recurrent_dropout": True}, r"recurrent_dropout: expected .* \[0, 1\], got True"),
        ({"num_layers": 2, "input_dropout": (0.1,)}, r"input_dropout: .* per layer \(2\), got 1"),
        ({"num_layers": 2, "input_dropout": []}, r"input_dropout: .* per layer \(2\), got 0"),
        ({"num_layers": 2, "input_dropout": (0.1, 1.1)}, r"input_dropout: .* \[0, 1\], got 1\.1"),
        ({"bidirectional": 0.5}, r"bidirectional: expected True or False, got 0\.5"),
        ({"bias": None}, r"bias: expected True or False, got None"),
        ({"batch_first": 1}, r"batch_first: expected True or False, got 1"),
        ({"tie_gates": "yes"}, r"tie_gates: expected True or False, got 'yes'"),
        ({"engine": "cudnn"}, r"engine: expected one of auto, .*, got 'cudnn'"),
    ],
)
def test_constructor_errors(cell, arguments, message):
    with pytest.raises(ValueError, match=message):
        PAIRS[cell][0](**({"input_size": I, "hidden_size": H} | arguments))


def test_dropout_in_the_place_of_nn_lstm_is_refused():
    """nn.LSTM's sixth positional argument is dropout; here it is bidirectional."""
    with pytest.raises(ValueError, match=r"bidirectional: expected True or False, got 0\.5"):
        brnn.BayesianLSTM(I, H, 2, True, True, 0.5)


def test_reset_after_must_be_a_flag():
    with pytest.raises(ValueError, match=r"reset_after: expected True or False, got 0\.5"):
        brnn.BayesianGRU(I, H, reset_after=0.5)


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((I,), r"input: expected 2 .* or 3 dimensions, got 1"),
        ((1, T, B, I), r"input: expected 2 .* or 3 dimensions, got 4"),
        ((T, B, I + 1), rf"input: expected last dimension {I} .*, got {I + 1}"),
        ((T, I - 1), rf"input: expected last dimension {I} .*, got {I - 1}"),
        ((0, I), r"input: expected a sequence of at least 1 step, got 0"),
    ],
)
def test_input_of_a_wrong_shape(cell, batch_first, shape, message):
    module = PAIRS[cell][0](I, H, batch_first=batch_first)
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(shape))


@every_cell
@pytest.mark.parametrize(("batch_first", "shape"), [(False, (0, B, I)), (True, (B, 0, I))])
def test_empty_sequence(cell, batch_first, shape):
    module = PAIRS[cell][0](I, H, batch_first=batch_first)
    with pytest.raises(ValueError, match=r"input: expected a sequence of at least 1 step, got 0"):
        module(torch.zeros(shape))


@every_cell
@pytest.mark.parametrize("engine", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_input_of_another_dtype(cell, engine, dtype):
    module = PAIRS[cell][0](I, H, engine=engine)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        (ValueError, RuntimeError), match=rf"input: expected .*float32.*got .*{name}"
    ):
        module(torch.zeros(T, B, I, dtype=dtype))


@pytest.mark.parametrize(
    ("hx", "message"),
    [
        (torch.zeros(1, B, H), r"hx: expected a tuple \(h_0, c_0\), got Tensor"),
        ((torch.zeros(1, B, H),), r"hx: expected a tuple \(h_0, c_0\), got 1"),
        ((torch.zeros(1, B, H),) * 3, r"hx: expected a tuple \(h_0, c_0\), got 3"),
        (
            (torch.zeros(1, B + 1, H),) * 2,
            rf"hx: expected h_0 .*\[1, {B}, {H}\], got \[1, {B + 1}, {H}\]",
        ),
        (
            (torch.zeros(1, B, H), torch.zeros(2, B, H)),
            rf"hx: expected c_0 .*\[1, {B}, {H}\], got \[2, {B}, {H}\]",
        ),
        ((torch.zeros(B, H),) * 2, rf"hx: expected h_0 .*\[1, {B}, {H}\], got \[{B}, {H}\]"),
        ((torch.zeros(1, B, H), None), r"hx: expected .*c_0.*, got NoneType"),
        (
            (torch.zeros(1, B, H, dtype=torch.float64),) * 2,
            r"h_?0.*: expected .*float32.*, got .*float64",
        ),
        (
            (torch.zeros(1, B, H), torch.zeros(1, B, H, dtype=torch.bfloat16)),
            r"c_?0.*: expected .*float32.*, got .*bfloat16",
        ),
    ],
)
def test_hx_of_lstm(hx, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        brnn.BayesianLSTM(I, H)(torch.zeros(T, B, I), hx)


@pytest.mark.parametrize(
    ("hx", "message"),
    [
        ((torch.zeros(1, B, H),) * 2, r"hx: expected a tensor h_0, got tuple"),
        (torch.zeros(2, B, H), rf"hx: expected h_0 .*\[1, {B}, {H}\], got \[2, {B}, {H}\]"),
        (torch.zeros(1, B, H).double(), r"h_?0.*: expected .*float32.*, got .*float64"),
    ],
)
def test_hx_of_gru(hx, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        brnn.BayesianGRU(I, H)(torch.zeros(T, B, I), hx)


@every_cell
def test_hx_of_an_unbatched_input_has_two_dimensions(cell):
    module = PAIRS[cell][0](I, H)
    h_0 = torch.zeros(1, 1, H)
    with pytest.raises(ValueError, match=rf"hx: expected h_0 .*\[1, {H}\], got \[1, 1, {H}\]"):
        module(torch.zeros(T, I), (h_0, h_0) if cell == "lstm" else h_0)


@every_cell
def test_hx_of_a_packed_input(cell):
    module = PAIRS[cell][0](I, H)
    x = pack_sequence([torch.zeros(3, I), torch.zeros(2, I)])
    h_0 = torch.zeros(1, 3, H)
    with pytest.raises(ValueError, match=rf"hx: expected h_0 .*\[1, 2, {H}\], got \[1, 3, {H}\]"):
        module(x, (h_0, h_0) if cell == "lstm" else h_0)
