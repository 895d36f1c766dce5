"""hold_masks: one sampled model for the time of a block, and masks that a batch shares."""

import contextlib
import copy
import pickle
import threading

import pytest
import torch
from predict_cases import B, H, I, T
from torch import nn
from torch.utils.checkpoint import checkpoint

import bayesrnn_cuda as brnn

CELLS = {"lstm": brnn.BayesianLSTM, "gru": brnn.BayesianGRU}
every_cell = pytest.mark.parametrize("cell", CELLS)


def made(cell="lstm", layers=1, bidirectional=False, **options):
    torch.manual_seed(0)
    return CELLS[cell](
        I, H, layers, bidirectional=bidirectional, input_dropout=0.5, recurrent_dropout=0.5,
        **options,
    )  # fmt: skip


def rollout(module, x, steps=5):
    """Step by step, as code that nobody here owns does it; y_t is fed back."""
    outputs, state = [], None
    for _ in range(steps):
        y, state = module(x, state)
        x = torch.cat([y, y], dim=-1)[..., :I]
        outputs.append(y)
    return torch.cat(outputs)


@every_cell
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("tie_gates", [False, True])
def test_a_rollout_equals_masks_held_by_hand(cell, layers, bidirectional, tie_gates):
    module = made(cell, layers, bidirectional, tie_gates=tie_gates)
    x = torch.randn(1, B, I)
    torch.manual_seed(1)
    with brnn.hold_masks(module) as entered:
        assert entered is module
        held = rollout(module, x)
    torch.manual_seed(1)
    masks = module.sample_masks(B)
    by_hand = rollout(lambda x, state: module(x, state, masks=masks), x)
    assert torch.equal(held, by_hand)
    assert not torch.allclose(rollout(module, x), held)


def test_whether_masks_are_drawn_is_not_its_matter():
    module, x = made().eval(), torch.randn(T, B, I)
    plain = module(x)[0]
    with brnn.hold_masks(module):
        assert torch.equal(module(x)[0], plain)
        with brnn.mc_dropout(module):
            first = module(x)[0]
            assert not torch.equal(first, plain)
        assert torch.equal(module(x)[0], plain)
        with brnn.mc_dropout(module):
            assert torch.equal(module(x)[0], first)
    with brnn.mc_dropout(module, hold=True):
        second = module(x)[0]
        assert torch.equal(module(x)[0], second)
        assert not torch.equal(second, first)
    with brnn.mc_dropout(module):
        assert not torch.equal(module(x)[0], module(x)[0])
    assert torch.equal(module(x)[0], plain)


def test_an_inner_block_has_masks_of_its_own():
    module, x = made(), torch.randn(T, B, I)
    with brnn.hold_masks(module):
        outer = module(x)[0]
        with brnn.hold_masks(module):
            inner = module(x)[0]
            assert torch.equal(module(x)[0], inner)
            assert not torch.equal(inner, outer)
        assert (brnn.mc_predict(module, x, samples=5).std > 0).any()
        assert torch.equal(module(x)[0], outer)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_blocks_that_overlap(order):
    module, x = made(), torch.randn(T, B, I)
    opened = [brnn.hold_masks(module) for _ in range(2)]
    outputs = []
    for block in opened:
        block.__enter__()
        outputs.append(module(x)[0])
    opened[order[0]].__exit__(None, None, None)
    assert torch.equal(module(x)[0], outputs[order[1]])
    opened[order[1]].__exit__(None, None, None)
    assert not torch.equal(module(x)[0], module(x)[0])
    assert not module._in_block


def test_given_masks_go_before():
    module, x = made(), torch.randn(T, B, I)
    masks = module.sample_masks(B)
    with brnn.hold_masks(module):
        held, given = module(x)[0], module(x, masks=masks)[0]
        assert torch.equal(module(x)[0], held)
    assert torch.equal(module(x, masks=masks)[0], given)
    assert not torch.equal(held, given)


@pytest.mark.parametrize("name", ["lstm", "locked", "embedding"])
def test_another_number_of_sequences_is_an_error_by_name(name):
    module, x = {
        "lstm": (made(), torch.randn(T, B, I)),
        "locked": (brnn.LockedDropout(0.5), torch.randn(T, B, I)),
        "embedding": (brnn.BayesianEmbedding(9, 4, dropout=0.5), torch.randint(9, (T, B))),
    }[name]
    with brnn.hold_masks(module):
        module(x)
        message = rf"input: expected {B} sequences, .* masks of {type(module).__name__}, got 2"
        with pytest.raises(ValueError, match=message):
            module(x[:, :2])
        module(x[:1])
    module(x[:, :2])


def test_words_and_features_are_held():
    embedding, locked = brnn.BayesianEmbedding(50, 4, dropout=0.5), brnn.LockedDropout(0.5)
    nn.init.ones_(embedding.weight)
    model = nn.Sequential(embedding, locked)
    with brnn.hold_masks(model):
        first, again = embedding(torch.randint(50, (40, B))), None
        tokens = torch.arange(50).unsqueeze(1).expand(50, B)
        whole = embedding(tokens)
        for t in range(50):  # a word that is dropped is dropped at every step
            again = embedding(tokens[t : t + 1])
            assert torch.equal(again, whole[t : t + 1])
        assert 0.3 < (whole == 0).float().mean() < 0.7
        ones = torch.ones(T, B, 8)
        kept = locked(ones)
        assert torch.equal(locked(ones[:1]), kept[:1])
        narrow = locked(ones[..., :3])  # the same module at another place, of another size
        assert torch.equal(locked(ones[..., :3]), narrow)
        assert first.shape == (40, B, 4)


def test_every_thread_has_masks_of_its_own():
    module, x = made(), torch.randn(T, B, I)
    barrier, outputs, errors = threading.Barrier(3), {}, []

    def work(i):
        try:
            with brnn.hold_masks(module) if i else contextlib.nullcontext():
                barrier.wait(10)
                first = module(x)[0]
                barrier.wait(10)
                outputs[i] = first, module(x)[0]
                barrier.wait(10)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert not torch.equal(*outputs[0])  # this one is within no block
    assert torch.equal(*outputs[1]) and torch.equal(*outputs[2])
    assert not torch.equal(outputs[1][0], outputs[2][0])


@every_cell
@pytest.mark.parametrize("dynamic", [None, False])
def test_a_compiled_module_holds(cell, dynamic):
    torch._dynamo.reset()
    module = made(cell, 2).eval()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    x = torch.randn(1, B, I)
    with brnn.mc_dropout(module, hold=True):
        torch.manual_seed(1)
        first = rollout(compiled, x)
        assert torch.equal(rollout(compiled, x), first)
    torch.manual_seed(1)
    with brnn.mc_dropout(module, hold=True):
        torch.testing.assert_close(rollout(module, x), first)
        with pytest.raises(ValueError, match=rf"expected {B} sequences"):
            compiled(torch.randn(1, B + 1, I))
    assert torch.equal(compiled(x)[0], compiled(x)[0])
    with brnn.mc_dropout(module):
        assert not torch.equal(compiled(x)[0], compiled(x)[0])


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_belongs_to_no_block_of_the_original(how):
    """Once compiled it would ask the original's block for masks, or die with the original."""
    torch._dynamo.reset()
    module, x = made(), torch.randn(T, B, I)
    with brnn.hold_masks(module):
        twin = copy.deepcopy(module) if how == "deepcopy" else pickle.loads(pickle.dumps(module))
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    module.recurrent_dropout = 1.0
    torch.manual_seed(1)
    expected = twin(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x)[0], expected)
    del module
    compiled(x)
    with brnn.hold_masks(twin):
        assert torch.equal(compiled(x)[0], compiled(x)[0])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_of_all_modules_holds(backend):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = brnn.BayesianEmbedding(9, I, dropout=0.25)
            self.rnn, self.out = made(), brnn.LockedDropout(0.5)

        def forward(self, tokens):
            return self.out(self.rnn(self.words(tokens))[0])

    torch._dynamo.reset()
    model = Model()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for b in (B, 16):
        tokens = torch.randint(9, (T, b))
        with brnn.hold_masks(model):
            first = compiled(tokens)
            assert torch.equal(compiled(tokens), first)
            torch.testing.assert_close(model(tokens), first)
            first.sum().backward()
        assert not torch.equal(compiled(tokens), compiled(tokens))


def test_a_block_within_a_compiled_function():
    torch._dynamo.reset()
    module = made().eval()

    def forecast(x):
        with brnn.mc_dropout(module, hold=True):
            return module(x)[0], module(x)[0]

    x = torch.randn(T, B, I)
    compiled = torch.compile(forecast, backend="aot_eager", fullgraph=True)
    first, again = compiled(x)
    assert torch.equal(first, again)
    assert not torch.equal(compiled(x)[0], first)
    assert torch.equal(module(x)[0], module(x)[0]) and module._traced is None


def test_a_checkpoint_computes_again_with_what_was_held():
    module = made()
    x = torch.randn(T, B, I)
    with brnn.hold_masks(module):
        module(x)[0].sum().backward()
        expected = module.weight_hh_l0.grad.clone()
        module.zero_grad()
        checkpoint(lambda x: module(x)[0].sum(), x, use_reentrant=False).backward()
        torch.testing.assert_close(module.weight_hh_l0.grad, expected)


def test_vmap_that_differs_is_refused():
    module = made()
    with brnn.hold_masks(module), pytest.raises(ValueError, match=r"hold_masks: .* torch.vmap"):
        torch.vmap(lambda x: module(x)[0], randomness="different")(torch.randn(2, T, B, I))
    x = torch.randn(T, B, I)
    with brnn.hold_masks(module):
        first = torch.vmap(lambda x: module(x)[0], randomness="same")(x[None])
        torch.testing.assert_close(module(x)[0], first[0])


def test_a_forecast_of_30_steps_keeps_its_deviation():
    """A random walk driven by the mask: held, its deviation grows with the steps."""

    class Walk(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = brnn.LockedDropout(0.5)

        def forward(self, start):
            y, total = torch.ones_like(start), start
            for _ in range(30):
                total = total + self.drop(y)
            return total

    walk, start = Walk(), torch.zeros(1, 1, 50)
    held = brnn.mc_predict(walk, start, samples=400, hold=True, batch_dim=1).std.mean()
    anew = brnn.mc_predict(walk, start, samples=400, batch_dim=1).std.mean()
    assert held.item() == pytest.approx(30, rel=0.05)
    assert anew.item() == pytest.approx(30**0.5, rel=0.05)


# One set of masks for a batch


@every_cell
def test_shared_masks_are_one_sampled_function(cell):
    module = made(cell, 2)
    masks = module.sample_masks(7, shared=True, generator=torch.Generator().manual_seed(3))
    single = module.sample_masks(1, generator=torch.Generator().manual_seed(3))
    for shared, one in zip(masks, single, strict=True):
        for name in ("keep_x", "keep_h"):
            assert torch.equal(getattr(shared, name), getattr(one, name).expand(-1, 7, -1))
        assert shared[2:] == one[2:]
    x = torch.randn(T, 1, I).expand(T, 7, I)
    y = module(x, masks=masks)[0]
    torch.testing.assert_close(y, y[:, :1].expand_as(y))
    assert brnn.LockedDropout(0.5).sample_mask(5, 400, shared=True).unique(dim=0).shape[0] == 1
    words = brnn.BayesianEmbedding(400, 2, dropout=0.5).sample_mask(5, shared=True)
    assert words.shape == (5, 400) and words.unique(dim=0).shape[0] == 1
    with pytest.raises(TypeError, match=r"shared: expected True or False, got 1"):
        module.sample_masks(3, shared=1)
    assert module.sample_masks(0, shared=True)[0].keep_x.shape[1] == 0


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = brnn.BayesianEmbedding(9, I, dropout=0.25)
        self.rnn, self.out = made(layers=2), brnn.LockedDropout(0.5)

    def forward(self, tokens):
        return self.out(self.rnn(self.words(tokens))[0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("hold", [False, True])
def test_mc_predict_shares_masks_within_a_sample(hold, compiled):
    torch._dynamo.reset()
    model = Everything()
    module = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    tokens = torch.randint(9, (T, 1)).expand(T, 3)
    options = {"samples": 6, "keep_draws": True, "chunk": 3, "hold": hold}
    draws = brnn.mc_predict(module, tokens, share_masks=True, **options).draws
    torch.testing.assert_close(draws, draws[:, :, :1].expand_as(draws))
    for i in range(6):
        for j in range(i):
            assert not torch.allclose(draws[i], draws[j])
    apart = brnn.mc_predict(module, tokens, **options).draws
    assert not torch.allclose(apart[:, :, 0], apart[:, :, 1])


def test_sharing_needs_the_batch_at_its_place():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = made(batch_first=True)

        def forward(self, x):
            return self.rnn(x.flatten(0, 1))[0].unflatten(0, x.shape[:2])

    x = torch.randn(B, 2, T, I)
    assert brnn.mc_predict(Folded(), x, samples=4, batch_dim=0).mean.shape == (B, 2, T, H)
    with pytest.raises(ValueError, match="batch_dim"):
        brnn.mc_predict(Folded(), x, samples=4, batch_dim=0, share_masks=True)
