"""Parameters of the layers: state_dict, copies, dtypes, devices, and what torch does with them."""

import copy
import io
import math
import pickle

import pytest
import torch
from module_cases import LAYOUTS, PAIRS, B, H, I, T, every_cell, every_layout, flat, layout_id
from torch import nn

import bayesrnn_cuda as brnn


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


def test_repr_shows_what_is_not_default():
    lstm = brnn.BayesianLSTM(I, H)
    assert repr(lstm) == "BayesianLSTM(4, 6)"
    gru = brnn.BayesianGRU(
        I, H, 2, False, True, 0.0, True,
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
