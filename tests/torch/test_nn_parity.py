"""The subjects of torch's own tests of nn.LSTM and nn.GRU, put to ours with p = 0.

Torch's layer with the same weights is the expectation, gradients included. What torch tests and
other files here cover already (shapes of every layout, empty batches and sequences, copies,
state_dict, masks) is not repeated.
"""

import itertools
import warnings
from functools import partial

import pytest
import torch
from module_cases import PAIRS, B, H, I, T, assert_same, every_cell, flat, make_pair, run, states
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import bayesrnn_cuda as brnn

both = (False, True)
LENGTHS = [5, 4, 4, 2, 1, 1]


def noncontiguous(value):
    """The same numbers, every other place of twice the memory."""
    if isinstance(value, tuple):
        return tuple(map(noncontiguous, value))
    return torch.stack([torch.full_like(value, torch.nan), value], -1)[..., 1]


# ---- One matrix: every layout, strided or not, padded or packed, as torch compares CPU and cuDNN


@every_cell
@pytest.mark.parametrize("bias", both, ids=["no_bias", "bias"])
@pytest.mark.parametrize("bidirectional", both, ids=["one_way", "both_ways"])
@pytest.mark.parametrize("batch_first", both, ids=["time_first", "batch_first"])
@pytest.mark.parametrize("contiguous", both, ids=["strided", "dense"])
@pytest.mark.parametrize(
    "lengths", [None, LENGTHS, torch.tensor(LENGTHS)], ids=["padded", "list", "tensor"]
)
def test_matrix(cell, bias, bidirectional, batch_first, contiguous, lengths):
    layout = {"bias": bias, "bidirectional": bidirectional, "batch_first": batch_first}
    ours, theirs = make_pair(cell, num_layers=2, **layout)
    batch = len(LENGTHS)
    x = torch.randn((batch, T, I) if batch_first else (T, batch, I), dtype=torch.float64)
    hx = states(cell, 4 if bidirectional else 2, batch, H)
    if not contiguous:
        x, hx = noncontiguous(x), noncontiguous(hx)
    if lengths is not None:
        x = pack_padded_sequence(x, lengths, batch_first=batch_first)
    assert_same(ours, theirs, x, hx)


@every_cell
@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("bidirectional", both)
def test_dropout_between_layers(cell, p, bidirectional):
    """Where chance has no part: nn.LSTM(dropout=p) drops the inputs of all layers but the first."""
    cls, torchs = PAIRS[cell]
    options = {"num_layers": 3, "bidirectional": bidirectional, "dtype": torch.float64}
    ours = cls(I, H, input_dropout=(0.0, p, p), **options)
    theirs = torchs(I, H, dropout=p, **options)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, torch.randn(T, B, I, dtype=torch.float64))


@every_cell
def test_dropout_may_change_between_calls(cell):
    module = PAIRS[cell][0](I, H, num_layers=2)
    x = torch.randn(T, B, I)
    plain = module(x)[0]
    for p in (0.0, 0.5, 0.0, 0.7, 1.0, 0.2, 0.0):
        module.input_dropout, module.recurrent_dropout = (0.0, p), p
        module.train()
        first, second = module(x)[0], module(x)[0]
        assert torch.equal(first, second) == (p in (0.0, 1.0))
        assert torch.equal(first, plain) == (p == 0.0)
        assert torch.equal(module.eval()(x)[0], plain)


@every_cell
def test_train_and_eval_are_the_same_without_dropout(cell):
    module, _ = make_pair(cell, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    in_training = run(module, x, None)
    for got, expected in zip(run(module.eval(), x, None), in_training, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@every_cell
def test_zeros_are_the_initial_state(cell):
    module, _ = make_pair(cell, num_layers=2)
    x, zero = torch.randn(T, B, I, dtype=torch.float64), torch.zeros(2, B, H, dtype=torch.float64)
    given = module(x, (zero, zero) if cell == "lstm" else zero)
    assert all(torch.equal(a, b) for a, b in zip(flat(module(x)), flat(given), strict=True))


# ---- Packed sequences


@every_cell
@pytest.mark.parametrize("lengths", [[1], [4], [1, 1, 1], [3, 3], [1, 4], [4, 1, 3, 4]], ids=str)
def test_packed(cell, lengths):
    ours, theirs = make_pair(cell, bidirectional=True)
    sequences = [torch.randn(n, I, dtype=torch.float64) for n in lengths]
    assert_same(ours, theirs, pack_sequence(sequences, enforce_sorted=False))


@every_cell
def test_packed_by_hand(cell):
    """As code that never saw pack_padded_sequence makes it: no indices."""
    ours, theirs = make_pair(cell)
    x = PackedSequence(torch.randn(6, I, dtype=torch.float64), torch.tensor([3, 2, 1]))
    assert_same(ours, theirs, x, states(cell, 1, 3, H))
    assert ours(x)[0].sorted_indices is None


@every_cell
def test_hx_of_packed_is_in_the_order_given(cell):
    """Torch takes and returns states in the caller's order, not in that of the lengths."""
    module, _ = make_pair(cell)
    sequences = [torch.randn(n, I, dtype=torch.float64) for n in (2, 4, 3)]
    hx = states(cell, 1, 3, H)
    together = flat(module(pack_sequence(sequences, enforce_sorted=False), hx)[1])
    for b, x in enumerate(sequences):
        own = tuple(s[:, b] for s in hx) if cell == "lstm" else hx[:, b]
        for got, alone in zip(together, flat(module(x, own)[1]), strict=True):
            torch.testing.assert_close(got[:, b], alone, rtol=1e-10, atol=1e-12)


# ---- Errors: what torch refuses, we refuse, and name it


def bad_shapes(batch_first, layers, directions):
    """(what is wrong, input, hidden) in shapes; the names as in the message."""
    x = (B, T, I) if batch_first else (T, B, I)
    hidden = (layers * directions, B, H)
    wrong = 7
    yield "h_0", (*x[: 1 - batch_first], wrong, *x[2 - batch_first :]), hidden
    yield "input", (*x[:2], wrong), hidden
    for dim in range(3):
        yield "h_0", x, (*hidden[:dim], wrong, *hidden[dim + 1 :])
    yield "h_0", x, hidden[1:]
    yield "h_0", x, (1, *hidden)


def errors_of(modules, *arguments):
    """The messages of our and torch's error; code that expects torch's catches ours."""
    errors = []
    for module in modules:
        with pytest.raises((RuntimeError, ValueError)) as error:
            module(*arguments)
        errors.append(error.value)
    assert isinstance(errors[0], type(errors[1])), errors
    assert isinstance(errors[0], ValueError), errors
    return [str(error) for error in errors]


@every_cell
@pytest.mark.parametrize("batch_first", both)
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 2)])
def test_wrong_shapes(cell, batch_first, layers, directions):
    modules = make_pair(
        cell, num_layers=layers, bidirectional=directions == 2, batch_first=batch_first
    )
    for named, x, hidden in bad_shapes(batch_first, layers, directions):
        state = torch.zeros(hidden, dtype=torch.float64)
        arguments = torch.zeros(x, dtype=torch.float64), (state,) * 2 if cell == "lstm" else state
        ours, _ = errors_of(modules, *arguments)
        assert f"{named}" in ours and ": expected" in ours, (ours, x, hidden)


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("dim", range(3))
def test_each_state_of_lstm_is_checked(wrong, dim):
    modules = make_pair("lstm", num_layers=2)
    hx = [torch.zeros(2, B, H, dtype=torch.float64) for _ in range(2)]
    hx[wrong] = torch.cat([hx[wrong], hx[wrong]], dim)
    ours, _ = errors_of(modules, torch.zeros(T, B, I, dtype=torch.float64), tuple(hx))
    assert ours.startswith(f"hx: expected {('h_0', 'c_0')[wrong]} of shape")


@every_cell
@pytest.mark.parametrize("shape", [(0, B, I), (0, I), (I,), (1, T, B, I)], ids=str)
def test_no_steps_and_wrong_ranks(cell, shape):
    ours, _ = errors_of(make_pair(cell), torch.zeros(shape, dtype=torch.float64))
    assert ours.startswith("input: expected")


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_dtype(cell, dtype):
    ours, _ = errors_of(make_pair(cell), torch.zeros(T, B, I, dtype=dtype))
    assert ours.startswith("input: expected torch.float64")
    x, hx = torch.zeros(T, B, I, dtype=torch.float64), states(cell, 1, B, H)
    hx = tuple(s.to(dtype) for s in hx) if cell == "lstm" else hx.to(dtype)
    ours, _ = errors_of(make_pair(cell), x, hx)
    assert ours.startswith("h0: expected dtype float64")


@every_cell
def test_errors_of_the_functions_are_those_of_the_modules(cell):
    """Ours alone: what the library finds wrong is found in a tensor of one layer."""
    weights = PAIRS[cell][0](I, H).layer_weights("l0")
    run, given = getattr(brnn.functional, cell), [torch.zeros(B, H)] * (2 if cell == "lstm" else 1)
    for engine in ("cpu", "reference"):
        for x in (torch.zeros(0, B, I), torch.zeros(T, B, I + 1), torch.zeros(T, B + 1, I)):
            with pytest.raises(ValueError, match=r"(x|h0|weight_ih): expected") as error:
                run(x, *given, weights, engine=engine)
            assert isinstance(error.value, RuntimeError)
        with pytest.raises(TypeError, match="x: expected a tensor, got list"):
            run([], *given, weights, engine=engine)


@every_cell
@pytest.mark.parametrize("what", ["input", "hidden", "second state", "weights"])
def test_another_device(cell, what):
    if cell != "lstm" and what == "second state":
        return
    errors = []
    x, hx = torch.zeros(T, B, I, dtype=torch.float64), states(cell, 1, B, H)
    for module in make_pair(cell):
        there = {"device": "meta"}
        if what == "input":
            arguments = x.to(**there), hx
        elif what == "hidden":
            arguments = x, tuple(t.to(**there) for t in hx) if cell == "lstm" else hx.to(**there)
        elif what == "second state":
            arguments = x, (hx[0], hx[1].to(**there))
        else:
            module = module.to(**there)
            arguments = x, hx
        with pytest.raises((RuntimeError, ValueError)) as error:
            module(*arguments)
        errors.append(error.value)
    assert "device" in str(errors[0])
    assert isinstance(errors[0], ValueError) and isinstance(errors[0], type(errors[1]))


@every_cell
def test_construction_errors(cell):
    arguments = [(I, 0, 1), (I, H, 0), (0, H), (I, -1), ("4", H), (I, 2.5), (I, H, 1, 0)]
    for cls, wrong in itertools.product(PAIRS[cell], arguments):
        with pytest.raises((ValueError, TypeError)):
            cls(*wrong)


# ---- Parameters that are not where the constructor put them


@every_cell
def test_tied_weights(cell):
    """One parameter in two places gets both gradients, and is updated once."""
    pair = make_pair(cell, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    after = []
    for module in pair:
        module.bias_ih_l0_reverse = module.bias_ih_l0
        module.weight_hh_l0_reverse = module.weight_hh_l0
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(x)[0].sum().backward()
            optimizer.step()
        assert module.bias_ih_l0_reverse is module.bias_ih_l0
        after.append(module(x)[0])
    torch.testing.assert_close(*after, rtol=1e-10, atol=1e-12)


@every_cell
def test_a_weight_in_other_memory(cell):
    """`set_` under a parameter, as averaging and sharding do: no warning, the same numbers."""
    module, _ = make_pair(cell)
    x = torch.randn(T, B, I, dtype=torch.float64)
    before = run(module, x, None)
    memory = module.weight_hh_l0.detach().clone()
    with torch.no_grad():
        module.weight_hh_l0.set_(memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = run(module, x, None)
    assert all(torch.equal(a, b) for a, b in zip(flat(before), flat(after), strict=True))
    memory.fill_(0)
    assert not torch.equal(module(x)[0], before[0][0])


@every_cell
def test_a_weight_deleted_and_put_back(cell):
    module, _ = make_pair(cell)
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = module(x)[0]
    weight = module.weight_hh_l0
    del module.weight_hh_l0
    module.float().double()  # moves what is left
    module.weight_hh_l0 = weight
    torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=1e-6)


@every_cell
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1"])
@pytest.mark.parametrize("way", ["weight_norm", "parametrized weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_reparametrized(cell, name, way):
    apply, remove = {
        "weight_norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
        "parametrized weight_norm": (
            parametrizations.weight_norm,
            nn.utils.parametrize.remove_parametrizations,
        ),
        "spectral_norm": (
            partial(parametrizations.spectral_norm, eps=1e-12),
            nn.utils.parametrize.remove_parametrizations,
        ),
    }[way]
    ours, theirs = make_pair(cell, num_layers=2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    plain = ours(x)[0]
    for module in (ours, theirs):
        torch.manual_seed(0)  # spectral_norm starts from a random vector
        apply(module, name)
        module.eval()  # and improves it at each use in training
    assert_same(ours, theirs, x)
    same = torch.allclose(ours(x)[0], plain, rtol=1e-10, atol=1e-12)
    assert same == (way != "spectral_norm")
    for module in (ours, theirs):
        remove(module, name)
    assert_same(ours, theirs, x)


@every_cell
def test_pruned(cell):
    ours, theirs = make_pair(cell)
    x = torch.randn(T, B, I, dtype=torch.float64)
    for module in (ours, theirs):
        prune.l1_unstructured(module, "weight_ih_l0", amount=0.5)
    assert (ours.weight_ih_l0 == 0).sum() == ours.weight_ih_l0.numel() // 2
    assert_same(ours, theirs, x)
    for module in (ours, theirs):
        prune.remove(module, "weight_ih_l0")
    assert_same(ours, theirs, x)


# ---- What torch's module tests ask of every module


@every_cell
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_factory_arguments(cell, dtype):
    for cls in PAIRS[cell]:
        module = cls(I, H, num_layers=2, bidirectional=True, device="meta", dtype=dtype)
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", dtype)}
        with torch.device("meta"):
            assert cls(I, H).weight_ih_l0.is_meta


@every_cell
def test_default_dtype(cell):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        module = PAIRS[cell][0](I, H)
        assert flat(module(torch.randn(T, B, I)))[-1].dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


@every_cell
def test_memory_first_and_weights_later(cell):
    """`to_empty` and `skip_init`: what loads large checkpoints uses."""
    cls = PAIRS[cell][0]
    full = cls(I, H)
    x = torch.randn(T, B, I)
    for module in (
        cls(I, H, device="meta").to_empty(device="cpu"),
        nn.utils.skip_init(cls, I, H),
        nn.utils.skip_init(cls, I, H, device="cpu", dtype=torch.float32),
    ):
        module.load_state_dict(full.state_dict())
        assert torch.equal(module(x)[0], full(x)[0])
    assigned = cls(I, H, device="meta")
    assigned.load_state_dict(full.state_dict(), assign=True)
    assert torch.equal(assigned(x)[0], full(x)[0])


@every_cell
def test_hooks_see_what_those_of_torch_see(cell):
    seen = []
    for module in make_pair(cell):
        log = []
        module.register_forward_pre_hook(lambda _, args, log=log: log.extend(flat(args)))
        module.register_forward_hook(lambda _, args, out, log=log: log.extend(flat(out)))
        module.register_full_backward_hook(lambda _, dx, dy, log=log: log.extend(flat((dx, dy))))
        torch.manual_seed(0)
        x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
        module(x)[0].square().sum().backward()
        log.append(x.grad)
        seen.append([t.detach() for t in log])
    torch.testing.assert_close(*seen, rtol=1e-10, atol=1e-12)


@every_cell
@pytest.mark.parametrize("wanted", ["x", "hx", "weight_hh_l0", "bias_ih_l0"])
def test_only_one_gradient_is_wanted(cell, wanted):
    grads = []
    for module in make_pair(cell):
        torch.manual_seed(0)
        x = torch.randn(T, B, I, dtype=torch.float64)
        hx = states(cell, 1, B, H)
        module.requires_grad_(False)
        leaf = {"x": x, "hx": flat(hx)[0]}.get(wanted)
        leaf = getattr(module, wanted) if leaf is None else leaf
        leaf.requires_grad_()
        loss = sum(t.square().sum() for t in flat(module(x, hx)))
        grads.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@every_cell
@pytest.mark.parametrize("which", ["y", "h_n", "last step"])
def test_only_one_output_is_used(cell, which):
    grads = []
    for module in make_pair(cell, num_layers=2, bidirectional=True):
        torch.manual_seed(0)
        x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
        y, *finals = flat(module(x))
        used = {"y": y, "h_n": finals[0], "last step": y[-1]}[which]
        grads.append(torch.autograd.grad(used.square().sum(), [x, *module.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@every_cell
@pytest.mark.parametrize("packed", both, ids=["padded", "packed"])
def test_second_derivatives(cell, packed):
    """Of the reference engine, as nn.LSTM has them on a CPU."""
    second = []
    for index, cls in enumerate(PAIRS[cell]):
        torch.manual_seed(0)
        options = {"engine": "reference"} if index == 0 else {}
        module = cls(I, H, 2, bidirectional=True, dtype=torch.float64, **options)
        x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
        hx = tuple(s.requires_grad_() for s in flat(states(cell, 4, B, H)))
        given = pack_padded_sequence(x, [5, 3, 1]) if packed else x
        out = flat(module(given, hx if cell == "lstm" else hx[0]))
        leaves = [x, *flat(hx)[: len(out) - 1], *module.parameters()]
        loss = sum(t.square().sum() for t in out)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    torch.testing.assert_close(*second, rtol=1e-9, atol=1e-10)


@every_cell
def test_gradcheck(cell):
    module, _ = make_pair(cell, bidirectional=True)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    hx = states(cell, 2, 2, H)
    names = [name for name, _ in module.named_parameters()]

    def call(x, *tensors):
        state = tensors[: len(flat(hx))]
        weights = dict(zip(names, tensors[len(state) :], strict=True))
        given = state if cell == "lstm" else state[0]
        return tuple(flat(torch.func.functional_call(module, weights, (x, given))))

    leaves = [s.requires_grad_() for s in flat(hx)]
    assert torch.autograd.gradcheck(call, (x, *leaves, *module.parameters()), fast_mode=True)
