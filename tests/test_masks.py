"""The masks: when they are drawn, what they do, and their statistics."""

import math

import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn

CELLS = {"lstm": brnn.BayesianLSTM, "gru": brnn.BayesianGRU}
GATES = {"lstm": 4, "gru": 3}
T, B, I, H = 5, 3, 4, 6  # noqa: E741

every_cell = pytest.mark.parametrize("cell", CELLS)


def make(cell, *, p_x=0.5, p_h=0.5, **options):
    torch.manual_seed(0)
    return CELLS[cell](
        I, H, **options, input_dropout=p_x, recurrent_dropout=p_h, dtype=torch.float64
    )


def sequences(*shape):
    return torch.randn(shape or (T, B, I), dtype=torch.float64)


def by_hand(module, x, masks):
    """Layers and directions of `module` composed from the reference, from a zero state."""
    masks = iter(masks)
    finals = []
    zero = x.new_zeros(x.shape[1], module.hidden_size)
    for layer in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: module.num_directions]:
            weights = module.layer_weights(f"l{layer}{suffix}")
            options = {"masks": next(masks), "reverse": bool(suffix)}
            if isinstance(module, brnn.BayesianLSTM):
                y, *final = brnn.reference.lstm(x, zero, zero, weights, **options)
            else:
                options["reset_after"] = module.reset_after
                y, *final = brnn.reference.gru(x, zero, weights, **options)
            outputs.append(y)
            finals.append(final)
        x = torch.cat(outputs, dim=-1)
    return x, [torch.stack(states) for states in zip(*finals, strict=True)]


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def keeps(masks):
    """Every mask tensor in a list of LayerMasks."""
    return [k for m in masks for k in (m.keep_x, m.keep_h) if k is not None]


def assert_rate(keep, probability):
    """The frequency of True lies within 5 standard deviations of a binomial one."""
    sigma = math.sqrt(probability * (1 - probability) / keep.numel())
    assert abs(keep.double().mean().item() - probability) <= 5 * sigma


def assert_independent(a, b, q):
    """Kept with probability q each, both are kept with probability q * q. Pairs are disjoint."""
    assert_rate(a & b, q * q)


# When masks are drawn


@every_cell
@pytest.mark.parametrize("tie_gates", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_training_equals_the_composition_by_hand(
    cell, tie_gates, bidirectional, num_layers, engine
):
    module = make(
        cell, num_layers=num_layers, bidirectional=bidirectional, tie_gates=tie_gates, engine=engine
    )
    x = sequences()
    torch.manual_seed(1)
    y, states = module(x)
    torch.manual_seed(1)
    expected_y, expected_states = by_hand(module, x, module.sample_masks(B))
    assert_close(y, expected_y)
    assert_close(list(states) if cell == "lstm" else [states], expected_states)


def test_training_of_gru_with_reset_before():
    module = make("gru", num_layers=2, reset_after=False)
    x, masks = sequences(), module.sample_masks(B)
    assert_close(module(x, masks=masks)[0], by_hand(module, x, masks)[0])


@every_cell
def test_batch_first_and_unbatched_inputs_take_the_same_masks(cell):
    module = make(cell)
    x, masks = sequences(), module.sample_masks(B)
    y = module(x, masks=masks)[0]
    module.batch_first = True
    assert torch.equal(module(x.transpose(0, 1), masks=masks)[0], y.transpose(0, 1))
    one = [m.index_select(torch.tensor([1])) for m in masks]
    assert_close(module(x[:, 1], masks=one)[0], y[:, 1])


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_masks_of_a_packed_input_belong_to_the_sequences_as_given(cell, bidirectional):
    module = make(cell, num_layers=2, bidirectional=bidirectional)
    xs, masks = [sequences(n, I) for n in (2, 5, 4)], module.sample_masks(3)
    packed, _ = module(nn.utils.rnn.pack_sequence(xs, enforce_sorted=False), masks=masks)
    for b, y in enumerate(nn.utils.rnn.unpack_sequence(packed)):
        one = [m.index_select(torch.tensor([b])) for m in masks]
        assert_close(y, module(xs[b], masks=one)[0])


@every_cell
def test_retained_masks_over_windows_equal_one_long_run(cell):
    module = make(cell, num_layers=2)
    x, masks = sequences(8, B, I), module.sample_masks(B)
    whole, _ = module(x, masks=masks)
    first, state = module(x[:3], masks=masks)
    second, _ = module(x[3:], state, masks=masks)
    assert_close(torch.cat([first, second]), whole)
    redrawn, _ = module(x[3:], state)
    assert not torch.allclose(redrawn, second)


@every_cell
def test_each_training_call_draws_anew(cell):
    module, x = make(cell), sequences()
    assert not torch.allclose(module(x)[0], module(x)[0])


@every_cell
def test_eval_uses_no_masks(cell):
    module, x = make(cell, num_layers=2), sequences()
    plain = make(cell, num_layers=2, p_x=0.0, p_h=0.0)
    plain.load_state_dict(module.state_dict())
    before = torch.get_rng_state()
    assert torch.equal(module.eval()(x)[0], plain(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


@every_cell
def test_given_masks_hold_in_every_mode(cell):
    module, x = make(cell), sequences()
    masks = module.sample_masks(B)
    trained = module(x, masks=masks)[0]
    assert torch.equal(module.eval()(x, masks=masks)[0], trained)
    with brnn.mc_dropout(module):
        assert torch.equal(module(x, masks=masks)[0], trained)


@every_cell
def test_manual_seed_reproduces(cell):
    module, x = make(cell, num_layers=2), sequences()
    outputs = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        outputs.append(module(x)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@every_cell
def test_generator_overrides_and_spares_the_global_one(cell):
    module = make(cell, num_layers=2, bidirectional=True)
    before = torch.get_rng_state()
    first, second, other = (
        keeps(module.sample_masks(B, generator=torch.Generator().manual_seed(seed)))
        for seed in (4, 4, 5)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@every_cell
@pytest.mark.parametrize("mode", ["train", "eval", "mc_dropout"])
def test_backward_works_in_every_mode(cell, mode):
    module, x = make(cell, num_layers=2), sequences().requires_grad_()
    module.train(mode == "train")
    if mode == "mc_dropout":
        with brnn.mc_dropout(module):
            y, _ = module(x)
    else:
        y, _ = module(x)
    y.sum().backward()
    for leaf in (x, *module.parameters()):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


# What sample_masks returns


@every_cell
@pytest.mark.parametrize("tie_gates", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_shapes_of_masks(cell, tie_gates, bidirectional):
    module = make(cell, num_layers=2, bidirectional=bidirectional, tie_gates=tie_gates)
    directions = 2 if bidirectional else 1
    sets = 1 if tie_gates else GATES[cell]
    masks = module.sample_masks(B)
    assert [type(m) for m in masks] == [brnn.LayerMasks] * (2 * directions)
    for index, m in enumerate(masks):
        size = I if index < directions else H * directions
        assert m.keep_x.shape == (sets, B, size)
        assert m.keep_h.shape == (sets, B, H)
        assert m.keep_x.dtype == m.keep_h.dtype == torch.bool
        assert m.scale_x == m.scale_h == 2.0


@every_cell
def test_without_dropout_there_are_no_masks(cell):
    module = make(cell, num_layers=2, p_x=0.0, p_h=0.0)
    before = torch.get_rng_state()
    assert module.sample_masks(B) == [brnn.LayerMasks(None, None, 1.0, 1.0)] * 2
    assert torch.equal(torch.get_rng_state(), before)


@every_cell
def test_input_dropout_per_layer(cell):
    module = make(cell, num_layers=3, bidirectional=True, p_x=(0.0, 0.25, 1.0), p_h=0.0)
    masks = module.sample_masks(500)
    assert all(m.keep_h is None for m in masks)
    assert [m.keep_x is None for m in masks] == [True] * 2 + [False] * 4
    assert [m.scale_x for m in masks] == [1.0] * 2 + [1 / 0.75] * 2 + [0.0] * 2
    for m in masks[2:4]:
        assert_rate(m.keep_x, 0.75)
    assert not any(m.keep_x.any() for m in masks[4:])


@every_cell
def test_dropping_every_input_leaves_the_bias(cell):
    module, x = make(cell, p_x=1.0, p_h=0.0), sequences().requires_grad_()
    y, _ = module(x)
    assert_close(y, module.eval()(torch.zeros_like(x))[0])
    y.sum().backward()
    assert (x.grad == 0).all()
    assert (module.weight_ih_l0.grad == 0).all()
    assert module.bias_ih_l0.grad.abs().sum() > 0


@every_cell
def test_dropping_the_whole_state_leaves_the_bias(cell):
    module, x = make(cell, p_x=0.0, p_h=1.0), sequences()
    y, _ = module(x)
    y.sum().backward()
    assert (module.weight_hh_l0.grad == 0).all()
    assert module.bias_hh_l0.grad.abs().sum() > 0
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert_close(y, module.eval()(x)[0])


@every_cell
def test_a_dropped_nan_stays_dropped(cell):
    module, x = make(cell, tie_gates=True), sequences()
    masks = module.sample_masks(B)
    poisoned = torch.where(masks[0].keep_x, x, math.nan)
    assert torch.equal(module(poisoned, masks=masks)[0], module(x, masks=masks)[0])


# Statistics of the masks


@every_cell
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("tie_gates", [False, True])
def test_keep_rate(cell, p, tie_gates):
    module = make(cell, p_x=p, p_h=1 - p, tie_gates=tie_gates)
    (masks,) = module.sample_masks(2000)
    for gate in masks.keep_x:
        assert_rate(gate, 1 - p)
    for gate in masks.keep_h:
        assert_rate(gate, p)


@every_cell
@pytest.mark.parametrize("q", [0.25, 0.5, 0.75])
def test_masks_are_independent(cell, q):
    """Of gates, of layers, of directions, of input and state, of sequences, of features."""
    torch.manual_seed(0)
    module = CELLS[cell](
        H, H, num_layers=2, bidirectional=True, input_dropout=1 - q, recurrent_dropout=1 - q
    )
    # every mask's first H features, gate by gate: [masks * G, B, H]
    planes = torch.cat([k[..., :H] for k in keeps(module.sample_masks(2000))])
    assert len(planes) == 4 * 2 * GATES[cell]
    for i in range(len(planes)):
        for j in range(i):
            assert_independent(planes[i], planes[j], q)
        assert_independent(planes[i, 1::2], planes[i, ::2], q)
        assert_independent(planes[i, :, 1::2], planes[i, :, ::2], q)


@every_cell
def test_tied_is_the_same_mask_for_every_gate(cell):
    tied = make(cell, num_layers=2, tie_gates=True)
    x, masks = sequences(), tied.sample_masks(B)
    repeated = [
        m._replace(
            keep_x=m.keep_x.repeat(GATES[cell], 1, 1), keep_h=m.keep_h.repeat(GATES[cell], 1, 1)
        )
        for m in masks
    ]
    assert_close(tied(x, masks=masks)[0], tied(x, masks=repeated)[0])


@every_cell
@pytest.mark.parametrize("tie_gates", [False, True])
def test_dropped_input_features_are_dropped_at_every_step(cell, tie_gates):
    """The output's gradient by a feature is exactly zero at all times, or at none."""
    module = make(cell, p_h=0.0, tie_gates=tie_gates)
    (masks,) = module.sample_masks(50)
    x = sequences(T, 50, I).requires_grad_()
    # not from a zero state: the forget gate of LSTM would see nothing of the first step
    hx = sequences(1, 50, H)
    hx = (hx, hx) if cell == "lstm" else hx
    module(x, hx, masks=[masks])[0].sum().backward()
    dropped = ~masks.keep_x.any(dim=0)  # [B, I]: in every gate
    assert dropped.any()
    assert (~dropped).any()
    assert (x.grad[:, dropped] == 0).all()
    assert (x.grad[:, ~dropped] != 0).all()


@every_cell
@pytest.mark.parametrize("tie_gates", [False, True])
def test_one_call_over_time_equals_one_call_per_step_with_the_same_masks(cell, tie_gates):
    module = make(cell, tie_gates=tie_gates)
    x, masks = sequences(), module.sample_masks(B)
    steps, state = [], None
    for x_t in x.split(1):
        y_t, state = module(x_t, state, masks=masks)
        steps.append(y_t)
    assert_close(torch.cat(steps), module(x, masks=masks)[0])


def test_a_dropped_state_feature_never_enters_a_weight():
    """h_t reaches later outputs through U only (LSTM): where all gates drop it, not at all."""
    module = make("lstm", p_x=0.0, tie_gates=True)
    masks, states = module.sample_masks(B), []
    h, c = sequences(1, B, H).requires_grad_(), sequences(1, B, H)
    for x_t in sequences().split(1):
        h.retain_grad()
        states.append(h)
        y_t, (h, c) = module(x_t, (h, c), masks=masks)
    y_t.sum().backward()  # the last step's output, which is none of `states`
    keep = masks[0].keep_h[0]
    assert keep.any()
    assert (~keep).any()
    for h in states:
        assert (h.grad[0][~keep] == 0).all()
        assert (h.grad[0][keep] != 0).all()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_kept_values_are_scaled_so_that_the_mean_is_the_input(p):
    """E[m / (1 - p)] = 1 with variance p / (1 - p)."""
    torch.manual_seed(0)
    draws = 4000
    masks = CELLS["lstm"](I, H, input_dropout=p, recurrent_dropout=p).sample_masks(draws)[0]
    bound = 5 * math.sqrt(p / (1 - p) / draws)
    for keep, scale in ((masks.keep_x, masks.scale_x), (masks.keep_h, masks.scale_h)):
        assert ((keep.double() * scale).mean(dim=1) - 1).abs().max() < bound


def test_scaled_masks_reach_the_gates():
    """With one gate's weights alone, the layer shows its masked input: tanh(m s w x), s w = 1."""
    lstm = brnn.BayesianLSTM(1, 1, bias=False, input_dropout=0.75, dtype=torch.float64)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.tensor([[0.0], [0.0], [0.25], [0.0]]))
        lstm.weight_hh_l0.zero_()
    x, masks = sequences(1, 40, 1), lstm.sample_masks(40)
    keep = masks[0].keep_x[2]  # gate g
    g = torch.tanh(torch.where(keep, x[0], 0.0))
    _, (_, c) = lstm(x, masks=masks)
    assert_close(c[0], 0.5 * g)  # the input gate stands at sigmoid(0)


# Masks that do not fit


def masks_for(batch_size=B, input_size=I, layers=1, cell="lstm"):
    return CELLS[cell](input_size, H, layers, input_dropout=0.5).sample_masks(batch_size)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (masks_for(layers=2), r"masks: expected 1 LayerMasks.*, got 2"),
        ([], r"masks: expected 1 LayerMasks.*, got 0"),
        (masks_for(B + 1), rf"keep_x: expected shape \[4, {B}, {I}\] .*, got \[4, {B + 1}, {I}\]"),
        (
            masks_for(input_size=I + 1),
            rf"keep_x: expected shape \[4, {B}, {I}\] .*, got \[4, {B}, {I + 1}\]",
        ),
        (masks_for(cell="gru"), rf"keep_x: expected shape \[4, {B}, {I}\] .*, got \[3, {B}, {I}\]"),
        (
            [brnn.LayerMasks(keep_h=torch.ones(1, B, H + 1, dtype=torch.bool))],
            rf"keep_h: expected shape \[4, {B}, {H}\] .*, got \[1, {B}, {H + 1}\]",
        ),
        ([brnn.LayerMasks(torch.ones(4, B, I))], r"keep_x: expected dtype bool, got float32"),
        ([torch.ones(4, B, I, dtype=torch.bool)], r"masks: expected .*LayerMasks.*, got .*Tensor"),
        (["keep"], r"masks: expected .*LayerMasks.*, got .*str"),
        (torch.ones(1, B, I, dtype=torch.bool), r"masks: expected .*LayerMasks.*, got .*Tensor"),
    ],
    ids=[
        "too_many", "none", "batch_size", "input_size", "gates", "hidden_size", "dtype",
        "tensors", "strings", "tensor",
    ],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_masks_that_do_not_fit(engine, masks, message):
    module = brnn.BayesianLSTM(I, H, engine=engine)
    with pytest.raises((ValueError, RuntimeError), match=message):
        module(torch.zeros(T, B, I), masks=masks)


def test_one_layermasks_in_place_of_a_list_of_four():
    """A LayerMasks has four fields: it must not pass for the list of a module with four layers."""
    module = brnn.BayesianLSTM(I, I, num_layers=4)
    (masks,) = brnn.BayesianLSTM(I, I, input_dropout=0.5).sample_masks(B)
    with pytest.raises(ValueError, match=r"masks: expected 4 LayerMasks"):
        module(torch.zeros(T, B, I), masks=masks)


def test_masks_on_another_device():
    module = brnn.BayesianLSTM(I, H)
    masks = [brnn.LayerMasks(torch.ones(4, B, I, dtype=torch.bool, device="meta"))]
    with pytest.raises((ValueError, RuntimeError), match=r"keep_x: expected .*cpu.*, got .*meta"):
        module(torch.zeros(T, B, I), masks=masks)


# BayesianEmbedding

VOCABULARY, WIDTH = 20, 5


def embedding(p=0.5, **options):
    torch.manual_seed(0)
    return brnn.BayesianEmbedding(VOCABULARY, WIDTH, dropout=p, **options)


def kept_tokens(vectors):
    """Which tokens' vectors are kept; asserts that each is kept or dropped as a whole."""
    nonzero = vectors != 0
    assert torch.equal(nonzero.any(dim=-1), nonzero.all(dim=-1))
    return nonzero.any(dim=-1)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (0.0, False)])
@pytest.mark.parametrize("padding_idx", [None, 0, -1])
@pytest.mark.parametrize("batch_first", [False, True])
def test_embedding_equals_torch(p, training, padding_idx, batch_first):
    ours = embedding(p, padding_idx=padding_idx, batch_first=batch_first).train(training)
    theirs = nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding_idx)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours.padding_idx == theirs.padding_idx
    for tokens in (torch.randint(VOCABULARY, (T, B)), torch.randint(VOCABULARY, (T,))):
        tokens[0] = -1 % VOCABULARY
        gradients = []
        for module in (ours, theirs):
            out = module(tokens)
            weight = torch.arange(out.numel()).reshape(out.shape)
            gradients.append(torch.autograd.grad((out * weight).sum(), module.weight)[0])
        assert torch.equal(ours(tokens), theirs(tokens))
        assert torch.equal(*gradients)


def test_embedding_has_the_weights_of_torch_under_the_same_seed():
    modules = []
    for cls in (brnn.BayesianEmbedding, nn.Embedding):
        torch.manual_seed(2)
        modules.append(cls(VOCABULARY, WIDTH, padding_idx=3))
    assert torch.equal(*(m.weight for m in modules))
    assert (modules[0].weight[3] == 0).all()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_repeated_word_is_dropped_everywhere_in_its_sequence(batch_first, dtype):
    module = embedding(batch_first=batch_first)
    tokens = torch.randint(VOCABULARY, (30, 200), dtype=dtype)
    vectors = module(tokens.T if batch_first else tokens)
    vectors = vectors.transpose(0, 1) if batch_first else vectors
    kept = kept_tokens(vectors)
    torch.testing.assert_close(
        vectors, torch.where(kept.unsqueeze(-1), 2 * module.weight[tokens.long()], 0.0)
    )
    # [word, sequence]: how often it stands there, how often it was kept
    one_hot = nn.functional.one_hot(tokens.long(), VOCABULARY)
    stands = one_hot.sum(dim=0).T
    stayed = (one_hot * kept.unsqueeze(-1)).sum(dim=0).T
    assert ((stayed == 0) | (stayed == stands)).all()


def test_words_are_dropped_independently_of_sequence_and_of_each_other():
    module = embedding(0.25)
    tokens = torch.arange(VOCABULARY).unsqueeze(1).expand(VOCABULARY, 4000)
    kept = kept_tokens(module(tokens))
    assert_rate(kept, 0.75)
    assert_independent(kept[:, 1::2], kept[:, ::2], 0.75)
    assert_independent(kept[1::2], kept[::2], 0.75)


def test_rate_of_a_frequent_word_is_that_of_a_word():
    """Each type counts once: fifty "the" in a sequence are one draw, neither rarer nor surer."""
    module = embedding(0.25)
    tokens = torch.zeros(52, 4000, dtype=torch.long)
    tokens[7], tokens[50] = 3, 1
    kept = kept_tokens(module(tokens))
    frequent = kept[tokens[:, 0] == 0]
    assert torch.equal(frequent.all(dim=0), frequent.any(dim=0))
    for word in (frequent[0], kept[7], kept[50]):
        assert_rate(word, 0.75)
    assert_independent(frequent[0], kept[7], 0.75)


def test_one_dimension_of_tokens_is_one_sequence():
    tokens = torch.tensor([1, 2, 1, 3, 1])
    for batch_first in (False, True):
        module = embedding(batch_first=batch_first)
        patterns = torch.stack([kept_tokens(module(tokens)) for _ in range(50)])
        assert patterns.shape == (50, 5)
        assert torch.equal(patterns[:, 0], patterns[:, 2])
        assert torch.equal(patterns[:, 0], patterns[:, 4])
        assert not torch.equal(patterns[:, 0], patterns[:, 1])


@pytest.mark.parametrize("batch_first", [False, True])
def test_held_mask_of_words(batch_first):
    module = embedding(batch_first=batch_first)
    keep = module.sample_mask(B)
    assert keep.shape == (B, VOCABULARY)
    assert keep.dtype == torch.bool
    tokens = torch.randint(VOCABULARY, (12, B))
    expected = torch.stack([keep[b, tokens[:, b]] for b in range(B)], dim=1)
    for training in (True, False):
        module.train(training)
        for given in (tokens, tokens.int()):
            vectors = module(given.T if batch_first else given, keep=keep)
            kept = kept_tokens(vectors)
            assert torch.equal(kept.T if batch_first else kept, expected)
    one = module(tokens[:, 0], keep=keep[:1])
    assert torch.equal(kept_tokens(one), expected[:, 0])


def test_sample_mask_of_words_takes_a_generator():
    module = embedding(0.25)
    before = torch.get_rng_state()
    masks = [module.sample_mask(500, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(*masks)
    assert torch.equal(torch.get_rng_state(), before)
    assert_rate(masks[0], 0.75)


def test_embedding_draws_anew_reproducibly_and_under_mc_dropout():
    module, tokens = embedding(), torch.randint(VOCABULARY, (T, B))
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(module(tokens))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    module.eval()
    with brnn.mc_dropout(module):
        torch.manual_seed(1)
        assert torch.equal(module(tokens), outputs[0])


def test_dropping_every_word():
    module = embedding(1.0)
    vectors = module(torch.randint(VOCABULARY, (T, B)))
    assert (vectors == 0).all()
    vectors.sum().backward()
    assert (module.weight.grad == 0).all()


def test_gradient_of_dropped_words_and_of_padding_is_zero():
    module = embedding(padding_idx=-1)
    tokens = torch.arange(VOCABULARY)
    vectors = module(tokens)
    kept = (vectors != 0).any(dim=-1)
    vectors.sum().backward()
    assert not kept[-1]
    assert (module.weight.grad[kept] == 2).all()
    assert (module.weight.grad[~kept] == 0).all()


@pytest.mark.parametrize("shape", [(0, B), (T, 0), (0,)])
def test_embedding_of_no_tokens(shape):
    tokens = torch.zeros(shape, dtype=torch.long)
    assert embedding()(tokens).shape == (*shape, WIDTH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_embeddings": 0}, r"num_embeddings: expected .* at least 1, got 0"),
        ({"embedding_dim": -2}, r"embedding_dim: expected .* at least 1, got -2"),
        ({"embedding_dim": 2.0}, r"embedding_dim: expected an integer .*, got 2\.0"),
        ({"dropout": 1.5}, r"dropout: expected .* in \[0, 1\], got 1\.5"),
        ({"dropout": math.nan}, r"dropout: expected .* in \[0, 1\], got nan"),
        ({"padding_idx": 20}, r"padding_idx: expected .*20.*, got 20"),
        ({"padding_idx": -21}, r"padding_idx: expected .*20.*, got -21"),
        ({"batch_first": 0}, r"batch_first: expected True or False, got 0"),
    ],
)
def test_embedding_constructor_errors(options, message):
    with pytest.raises(ValueError, match=message):
        brnn.BayesianEmbedding(**({"num_embeddings": 20, "embedding_dim": 5} | options))


def test_embedding_forward_errors():
    module, tokens = embedding(), torch.zeros(T, B, dtype=torch.long)
    for shape in ((), (T, B, 1)):
        with pytest.raises(ValueError, match=rf"tokens: expected 1 or 2 .*, got {len(shape)}"):
            module(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match=r"keep: expected shape \[3, 20\], got \[2, 20\]"):
        module(tokens, keep=module.sample_mask(2))
    with pytest.raises(ValueError, match=r"keep: expected shape \[1, 20\], got \[3, 20\]"):
        module(tokens[:, 0], keep=module.sample_mask(B))
    with pytest.raises((ValueError, RuntimeError), match=r"keep: expected .*bool.*, got .*float32"):
        module(tokens, keep=torch.ones(B, VOCABULARY))


def test_embedding_repr():
    assert repr(embedding()) == "BayesianEmbedding(20, 5, dropout=0.5)"
    shown = repr(embedding(0.25, padding_idx=-1, batch_first=True))
    assert shown == "BayesianEmbedding(20, 5, dropout=0.25, padding_idx=19, batch_first=True)"


# LockedDropout


@pytest.mark.parametrize("batch_first", [False, True])
def test_locked_dropout_holds_one_mask_per_sequence(batch_first):
    torch.manual_seed(0)
    module = brnn.LockedDropout(0.25, batch_first=batch_first)
    x = torch.rand(2000, T, 8) + 1 if batch_first else torch.rand(T, 2000, 8) + 1
    y = module(x)
    y, x = (y.transpose(0, 1), x.transpose(0, 1)) if batch_first else (y, x)
    kept = y != 0
    assert torch.equal(kept, kept[:1].expand_as(kept))
    torch.testing.assert_close(y, torch.where(kept, x / 0.75, 0.0))
    assert_rate(kept[0], 0.75)
    assert_independent(kept[0, 1::2], kept[0, ::2], 0.75)
    assert_independent(kept[0, :, 1::2], kept[0, :, ::2], 0.75)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_locked_dropout_keeps_the_mean(p):
    torch.manual_seed(0)
    draws = 4000
    x = torch.tensor([-2.0, 0.5, 3.0])
    mean = brnn.LockedDropout(p)(x.expand(1, draws, 3)).mean(dim=(0, 1))
    assert ((mean - x).abs() < 5 * x.abs() * math.sqrt(p / (1 - p) / draws)).all()


@pytest.mark.parametrize("batch_first", [False, True])
def test_locked_dropout_with_a_held_mask(batch_first):
    module = brnn.LockedDropout(0.5, batch_first=batch_first)
    keep = module.sample_mask(B, 8, generator=torch.Generator().manual_seed(1))
    assert keep.shape == (B, 8)
    x = torch.rand(B, T, 8) + 1 if batch_first else torch.rand(T, B, 8) + 1
    along_time = keep.unsqueeze(1 if batch_first else 0)
    for training in (True, False):
        y = module.train(training)(x, keep=keep)
        assert torch.equal(y, torch.where(along_time, 2 * x, 0.0))


def test_locked_dropout_at_the_ends_of_p():
    x = torch.rand(T, B, 8, requires_grad=True)
    assert brnn.LockedDropout(0.0)(x) is x
    nothing = brnn.LockedDropout(1.0)(x)
    assert (nothing == 0).all()
    nothing.sum().backward()
    assert (x.grad == 0).all()


def test_locked_dropout_keeps_a_dropped_nan_out():
    module, keep = brnn.LockedDropout(0.5), torch.tensor([[True, False]] * B)
    x = torch.where(keep, torch.ones(T, B, 2), math.nan).requires_grad_()
    y = module(x, keep=keep)
    assert torch.equal(y, torch.tensor([2.0, 0.0]).expand(T, B, 2))
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([2.0, 0.0]).expand(T, B, 2))


def test_locked_dropout_in_eval_and_under_mc_dropout():
    module, x = brnn.LockedDropout(0.5).eval(), torch.rand(T, B, 8) + 1
    assert module(x) is x
    with brnn.mc_dropout(module):
        first, second = module(x), module(x)
    assert (first == 0).any()
    assert not torch.equal(first, second)
    assert module(x) is x


def test_locked_dropout_errors_and_repr():
    for p in (-0.1, 1.1, math.nan, "0.5"):
        with pytest.raises(ValueError, match=r"p: expected a probability .* in \[0, 1\], got"):
            brnn.LockedDropout(p)
    with pytest.raises(ValueError, match=r"batch_first: expected True or False, got 2"):
        brnn.LockedDropout(0.5, batch_first=2)
    module = brnn.LockedDropout(0.5)
    # [T, F] and [B, F] look alike: taking one for the other would share a mask, or not, silently
    for shape in ((8,), (T, 8), (1, T, B, 8)):
        with pytest.raises(ValueError, match=rf"x: expected 3 dimensions.*, got {len(shape)}"):
            module(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"keep: expected shape \[3, 8\], got \[2, 8\]"):
        module(torch.zeros(T, B, 8), keep=module.sample_mask(2, 8))
    with pytest.raises((ValueError, RuntimeError), match=r"keep: expected .*bool.*, got .*float32"):
        module(torch.zeros(T, B, 8), keep=torch.ones(B, 8))
    assert repr(module) == "LockedDropout(p=0.5)"
    assert (
        repr(brnn.LockedDropout(0.5, batch_first=True)) == "LockedDropout(p=0.5, batch_first=True)"
    )
