"""torch.func over the layers: vmap, grad, vjp, jvp and what is made of them."""

import itertools
import warnings

import cases
import pytest
import torch
from cases import Case, backward_arguments, op_arguments, sample
from mask_cases import CELLS, B, H, I, T, every_cell, make
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import bayesrnn_cuda as brnn
from bayesrnn_cuda import functional

S = 5  # samples


@pytest.fixture(autouse=True)
def no_slow_paths():
    """torch warns where vmap runs an op in a loop for want of a rule."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop")
        yield


class Recorder(TorchDispatchMode):
    """Notes what this package's ops return, below every transform."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_dispatch__(self, op, types, arguments=(), keywords=None):
        results = op(*arguments, **(keywords or {}))
        if op.namespace == "bayesrnn":
            self.results.append(results)
        return results


@pytest.fixture(params=CELLS)
def pair(request):
    """(layer, the same on the reference engine, masks): two layers, both directions."""
    layers = [
        make(request.param, num_layers=2, bidirectional=True, engine=engine)
        for engine in ("auto", "reference")
    ]
    return *layers, layers[0].sample_masks(B)


def parameters(layer):
    return {name: p.detach() for name, p in layer.named_parameters()}


def output(layer, weights, x, masks):
    return torch.func.functional_call(layer, weights, (x,), {"masks": masks})[0]


def loss(layer, weights, x, masks):
    return output(layer, weights, x, masks).square().sum()


def sequences(*samples):
    return torch.randn(*samples, T, B, I, dtype=torch.float64)


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


# ---- vmap


@pytest.mark.parametrize("cell", cases.CELLS)
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("dims", [0, 1, 2, -1])
def test_vmap_over_any_argument(cell, lengths, dims):
    """Each alone, from any dimension, equals a loop: the op itself, its rule for both."""
    resets = "random" if lengths else "none"
    case = Case(cell, T=3, B=2, I=3, H=4, lengths=lengths, resets=resets)
    op, arguments = op_arguments(case, sample(case))
    others = [op_arguments(case, sample(case, seed=s))[1] for s in range(S)]
    for i, argument in enumerate(arguments):
        if not isinstance(argument, torch.Tensor) or not -argument.dim() <= dims <= argument.dim():
            continue

        def call(value, i=i):
            return op(*arguments[:i], value, *arguments[i + 1 :])

        values = torch.stack([other[i] for other in others], dim=dims)
        got = torch.vmap(call, in_dims=dims)(values)
        expected = [call(other[i]) for other in others]
        for s in range(S):
            assert_close([t[s] for t in got], list(expected[s]))


@every_cell
def test_vmap_over_masks(cell):
    """An ensemble of masks on one sequence and one set of weights: samples run as batch."""
    layer = make(cell, num_layers=2)
    x = sequences()
    drawn = [layer.sample_masks(B) for _ in range(S)]
    stacked = [
        each[0]._replace(
            keep_x=torch.stack([m.keep_x for m in each]),
            keep_h=torch.stack([m.keep_h for m in each]),
        )
        for each in zip(*drawn, strict=True)
    ]
    in_dims = ([brnn.LayerMasks(0, 0, None, None)] * 2,)
    got = torch.vmap(lambda masks: layer(x, masks=masks)[0], in_dims)(stacked)
    assert_close(got, torch.stack([layer(x, masks=masks)[0] for masks in drawn]))


@every_cell
def test_vmap_calls_the_engine_once(cell):
    layer, x = make(cell), sequences(S)
    with Recorder() as recorder:
        torch.vmap(lambda x: layer(x)[0], randomness="different")(x)
    ((y, *_),) = recorder.results
    assert y.shape == (T, S * B, H)


@every_cell
def test_vmap_draws_masks_as_it_is_told(cell):
    layer = make(cell)
    x = sequences()

    def call(_):
        return layer(x)[0]

    different = torch.vmap(call, randomness="different")(torch.empty(S))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(different, 2))
    same = torch.vmap(call, randomness="same")(torch.empty(S))
    assert all(torch.equal(a, same[0]) for a in same)
    with pytest.raises(RuntimeError, match=r"'same' or 'different' randomness"):
        torch.vmap(call)(torch.empty(S))
    layer.eval()
    assert torch.equal(torch.vmap(call)(torch.empty(S))[1], call(None))


@every_cell
def test_vmap_of_words_and_outputs(cell):
    """Every word type of each sample has one mask, every feature of the outputs too."""
    words = brnn.BayesianEmbedding(9, I, dropout=0.5)
    tokens = torch.randint(9, (S, 20, B))
    dropped = torch.vmap(words, randomness="different")(tokens).abs().sum(-1) == 0
    for sample_tokens, sample_dropped in zip(tokens.unbind(), dropped.unbind(), strict=True):
        for column, gone in zip(sample_tokens.t(), sample_dropped.t(), strict=True):
            assert all(len(set(gone[column == word].tolist())) <= 1 for word in range(9))
    assert 0 < dropped.double().mean() < 1
    out = torch.vmap(brnn.LockedDropout(0.5), randomness="different")(torch.ones(S, T, B, 40))
    assert (out == out[:, :1]).all()
    assert not torch.equal(out[0], out[1])


def test_vmap_within_vmap(pair):
    layer, _, masks = pair
    x = sequences(2, 3)
    got = torch.vmap(torch.vmap(lambda x: layer(x, masks=masks)[0]))(x)
    expected = torch.stack([torch.stack([layer(b, masks=masks)[0] for b in a]) for a in x])
    assert_close(got, expected)


def test_vmap_on_the_reference_engine(pair):
    layer, reference, masks = pair
    x = sequences(S)
    got, expected = (torch.vmap(lambda x, r=r: r(x, masks=masks)[0])(x) for r in (reference, layer))
    assert_close(got, expected)
    with pytest.raises(RuntimeError, match=r"keep_x: expected shape"):
        torch.vmap(lambda x: reference(x, masks=masks)[0])(sequences(S)[:, :, :1])


def test_backward_through_vmap(pair):
    layer, reference, masks = pair
    x = sequences(S)
    batched = torch.vmap(lambda x: layer(x, masks=masks)[0])(x)
    looped = torch.stack([reference(each, masks=masks)[0] for each in x])
    got = torch.autograd.grad(batched.square().sum(), list(layer.parameters()))
    expected = torch.autograd.grad(looped.square().sum(), list(reference.parameters()))
    assert_close(got, expected)


def test_nothing_is_saved_for_backward_without_gradients():
    layer, x = make("lstm"), sequences(2)
    run = torch.vmap(lambda x: layer(x)[0], randomness="different")
    with Recorder() as recorder:
        run(x)
        with torch.no_grad():
            run(x)
            torch.func.grad(lambda x: run(x).sum())(x)
    saved = [gates.numel() > 0 for *_, gates, _cells in recorder.results[:3]]
    assert saved == [True, False, True]


# ---- Reverse mode


def test_grad(pair):
    layer, reference, masks = pair
    x = sequences()
    got, expected = (
        torch.func.grad(loss, argnums=(1, 2))(m, parameters(m), x, masks)
        for m in (layer, reference)
    )
    assert_close(got, expected)


def test_tensors_that_grad_leaves_behind(pair):
    """A value that escaped from torch.func.grad leads back to what it was made of, as in torch."""
    layer, reference, masks = pair
    weight = torch.randn(I, dtype=torch.float64, requires_grad=True)
    escaped = []

    def keeps(x):
        escaped.append(x * weight)
        return escaped[0].sum()

    torch.func.grad(keeps)(sequences())
    gradients = [
        torch.autograd.grad(m(escaped[0], masks=masks)[0].sum(), weight, retain_graph=True)[0]
        for m in (layer, reference)
    ]
    assert_close(*gradients)


def test_grad_and_no_grad(pair):
    """no_grad around grad changes nothing; within an inner grad, what it does to the reference."""
    layer, reference, masks = pair
    x, one = sequences(), torch.ones((), dtype=torch.float64)
    results = []
    for m in (layer, reference):

        def total(x, m=m):
            return loss(m, parameters(m), x, masks)

        def outer(x, total=total):
            def inner(factor):
                with torch.no_grad():
                    value = total(x)
                return factor * value

            return torch.func.grad(inner)(one)

        with torch.no_grad():
            results.append((torch.func.grad(total)(x), torch.func.grad(outer)(x)))
    assert results[0][0].abs().max() > 0
    assert_close(*results)


def test_gradients_of_each_sample(pair):
    """vmap of grad: every sample has gradients of the weights of its own."""
    layer, reference, masks = pair
    weights, x = parameters(layer), sequences(S)
    got = torch.vmap(torch.func.grad(loss, argnums=1), (None, None, 0, None))(
        layer, weights, x, masks
    )
    for s in range(S):
        total = loss(reference, dict(reference.named_parameters()), x[s], masks)
        expected = torch.autograd.grad(total, list(reference.parameters()))
        assert_close([g[s] for g in got.values()], list(expected))


def test_ensemble_of_weights(pair):
    """grad of vmap, the weights stacked: as torch.func.stack_module_state has it."""
    layer, reference, masks = pair
    stacked = {n: torch.stack([p, 2 * p, -p]) for n, p in parameters(layer).items()}
    x = sequences()

    def total(m):
        run = torch.vmap(lambda weights: loss(m, weights, x, masks))
        return torch.func.grad(lambda weights: run(weights).sum())(stacked)

    assert_close(total(layer), total(reference))


def test_vjp_and_jacrev(pair):
    layer, reference, masks = pair
    x, cotangent = sequences(), torch.randn(T, B, 2 * H, dtype=torch.float64)
    results = []
    for m in (layer, reference):

        def call(x, m=m):
            return output(m, parameters(m), x, masks)

        _, pullback = torch.func.vjp(call, x)
        results.append((pullback(cotangent)[0], torch.func.jacrev(call)(x)))
    assert_close(*results)


def test_batched_gradients(pair):
    layer, _, masks = pair
    x = sequences().requires_grad_()
    y = layer(x, masks=masks)[0]
    cotangents = torch.randn(3, *y.shape, dtype=torch.float64)
    (got,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, x, c, retain_graph=True)[0] for c in cotangents]
    assert_close(got, torch.stack(expected))


def test_second_derivative_is_refused(pair):
    layer, reference, masks = pair

    def twice(m):
        def slope(x):
            return torch.func.grad(lambda x: loss(m, parameters(m), x, masks))(x).sum()

        return torch.func.grad(slope)(sequences())

    assert twice(reference).abs().sum() > 0
    with pytest.raises(RuntimeError, match="no second derivative; use engine='reference'"):
        twice(layer)


def test_packed_sequences_are_refused_where_torch_cannot_unpack_them():
    layer = make("lstm")
    x = torch.nn.utils.rnn.pack_sequence([sequences()[:, 0], sequences()[:2, 0]])
    with pytest.raises(ValueError, match=r"input: expected a tensor .*torch\.func, got Packed"):
        torch.func.grad(lambda weights: output(layer, weights, x, None).data.sum())(
            parameters(layer)
        )


# ---- Forward mode: engine "auto" takes the reference


def test_jvp_and_jacfwd(pair):
    layer, reference, masks = pair
    x = sequences()
    results = []
    for m in (layer, reference):

        def call(x, m=m):
            return output(m, parameters(m), x, masks)

        results.append((torch.func.jvp(call, (x,), (x.sin(),))[1], torch.func.jacfwd(call)(x)))
    assert results[0][0].abs().max() > 0
    assert_close(*results)


def test_hessian(pair):
    layer, reference, masks = pair
    x = sequences()
    got, expected = (
        torch.func.hessian(lambda x, m=m: loss(m, parameters(m), x, masks))(x)
        for m in (layer, reference)
    )
    assert_close(got, expected)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_dual_tensors(pair, requires_grad):
    layer, reference, masks = pair
    x = sequences()
    tangents = []
    for m in (layer, reference):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, x.sin())
            weights = dict(m.named_parameters()) if requires_grad else parameters(m)
            tangents.append(forward_ad.unpack_dual(output(m, weights, dual, masks)).tangent)
    assert_close(*tangents)


@every_cell
def test_forward_mode_is_refused_by_a_fused_engine(cell):
    """Zeros for a tangent would be a wrong number."""
    layer = make(cell, engine="cpu")
    x = sequences()
    message = "no forward-mode derivative; use engine='reference'"
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))
    layer.engine = "auto"
    y, pullback = torch.func.vjp(lambda x: layer(x)[0], x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(lambda c: pullback(c)[0], (y,), (y,))
    y = layer(x.requires_grad_())[0]
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(y, x, forward_ad.make_dual(y.detach(), y.detach()))


# ---- The rest


@every_cell
def test_functionalize(cell):
    layer = make(cell).eval()
    x = sequences()
    assert torch.equal(torch.func.functionalize(lambda x: layer(x)[0])(x), layer(x)[0])


@pytest.mark.parametrize("cell", cases.CELLS)
def test_vmap_of_backward_alone(cell):
    case = Case(cell, T=2, B=2, I=3, H=4, lengths=True)
    op, arguments = backward_arguments(case, sample(case))
    dy = torch.randn(S, *arguments[0].shape, dtype=torch.float64)
    got = torch.vmap(lambda dy: op(dy, *arguments[1:]))(dy)
    for s in range(S):
        assert_close([t[s] for t in got], list(op(dy[s], *arguments[1:])))


def test_functional_api_under_grad():
    case = Case("lstm", lengths=True, reverse=True)
    inputs = sample(case)

    def y(weight, engine):
        weights = inputs.weights._replace(weight_hh=weight)
        return functional.lstm(
            inputs.x, inputs.h0, inputs.c0, weights, inputs.masks, lengths=inputs.lengths,
            reverse=True, engine=engine,
        )[0].square().sum()  # fmt: skip

    got, expected = (
        torch.func.grad(y)(inputs.weights.weight_hh, engine) for engine in ("auto", "reference")
    )
    assert_close(got, expected)
