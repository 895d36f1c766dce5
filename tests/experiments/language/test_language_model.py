"""The model against hand-written computations, and which masks it draws."""

import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn
from bayesrnn_cuda.cli import UserError
from bayesrnn_cuda.experiments.language.model import (
    LanguageModel,
    LanguageModelConfig,
    ModelMasks,
)
from bayesrnn_cuda.experiments.naive_dropout import StepwiseDropoutRNN, detached

V, T, B = 11, 6, 3


@pytest.fixture
def tokens():
    return torch.randint(V, (T, B), generator=torch.Generator().manual_seed(5))


def model_of(**settings) -> LanguageModel:
    base = {"embedding": 5, "hidden": 7, "layers": 2}
    return LanguageModel(V, LanguageModelConfig(**{**base, **settings})).eval()


def plain_layers(cell: str, model: LanguageModel) -> nn.Module:
    """torch's layers with the parameters of a model without dropout."""
    layers = (nn.LSTM if cell == "lstm" else nn.GRU)(5, 7, 2)
    layers.load_state_dict(model.recurrent.state_dict())
    return layers


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_evaluation_equals_torch_layers(cell, tokens):
    model = model_of(cell=cell)
    vectors = model.embedding.weight[tokens]
    output, state = plain_layers(cell, model)(vectors)
    expected = output @ model.decoder.weight.t() + model.decoder.bias
    logits, own_state = model(tokens)
    torch.testing.assert_close(logits, expected)
    states = zip(own_state, state, strict=True) if cell == "lstm" else [(own_state, state)]
    for mine, theirs in states:
        torch.testing.assert_close(mine, theirs)


def test_given_masks_equal_the_equations(tokens):
    """Paper, eq. 4 and section 3.2, word for word: one layer, untied masks."""
    px, pi, ph, po = 0.4, 0.3, 0.2, 0.5
    model = model_of(
        layers=1, embedding_dropout=px, input_dropout=pi, recurrent_dropout=ph, output_dropout=po
    )
    masks = model.sample_masks(B, generator=torch.Generator().manual_seed(1))
    logits, _ = model(tokens, masks=masks)

    w_ih, w_hh, b_ih, b_hh = (
        parameter.view(4, 7, -1) for parameter in model.recurrent.parameters()
    )
    ((keep_x, keep_h, _, _),) = masks.recurrent
    expected = torch.empty(T, B, V)
    for b in range(B):
        h, c = torch.zeros(7), torch.zeros(7)
        for t in range(T):
            word = tokens[t, b]
            x = model.embedding.weight[word] * masks.embedding[b, word] / (1 - px)
            z = [
                w_ih[k] @ (x * keep_x[k, b] / (1 - pi))
                + w_hh[k] @ (h * keep_h[k, b] / (1 - ph))
                + b_ih[k, :, 0]
                + b_hh[k, :, 0]
                for k in range(4)
            ]
            c = z[1].sigmoid() * c + z[0].sigmoid() * z[2].tanh()
            h = z[3].sigmoid() * c.tanh()
            dropped = h * masks.output[b] / (1 - po)
            expected[t, b] = model.decoder.weight @ dropped + model.decoder.bias
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_naive_layers_are_the_plain_layers_in_evaluation(cell, tokens):
    naive = model_of(cell=cell, dropout_kind="naive")
    plain = model_of(cell=cell, dropout_kind="none")
    state = plain(tokens)[1]
    for initial in (None, state):
        mine, my_state = naive(tokens, initial)
        theirs, their_state = plain(tokens, initial)
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(my_state, their_state)


def test_parameters_start_equal_for_every_kind_and_within_range():
    models = [model_of(dropout_kind=k, init_range=0.03) for k in ("none", "naive", "bayesian")]
    for one, two, three in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
        assert one.abs().max() <= 0.03
    values = torch.cat([parameter.flatten() for parameter in models[0].parameters()])
    assert values.std().item() == pytest.approx(0.03 / 3**0.5, rel=0.1)
    other = model_of(seed=2, init_range=0.03)
    assert not torch.equal(other.decoder.weight, models[0].decoder.weight)


def test_dropped_word_types_reach_the_model_together():
    """With p_x alone, the first output of a sequence tells whether its word was dropped."""
    model = model_of(
        layers=1,
        embedding_dropout=0.5,
        input_dropout=0.0,
        recurrent_dropout=0.0,
        output_dropout=0.0,
    ).train()
    same_word = torch.full((8, 64), 3)
    seen = []
    model.recurrent.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(same_word)
    dropped = (seen[0] == 0).all(dim=2)  # [T, B]
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert 10 < dropped[0].sum() < 54


def test_bayesian_masks_hold_for_the_sequence_and_naive_ones_do_not():
    """Constant input, a cell without memory: the output changes over time with the masks alone."""

    def outputs_over_time(kind: str) -> torch.Tensor:
        model = model_of(dropout_kind=kind, layers=1, input_dropout=0.5, recurrent_dropout=0.0)
        model.output_dropout.p = 0.0
        model.embedding.dropout = 0.0
        with torch.no_grad():
            for name, parameter in model.recurrent.named_parameters():
                if "weight_hh" in name:
                    parameter.zero_()
                if "bias_ih" in name:
                    parameter[7:14] = -100.0  # forget gate closed: no memory
        torch.manual_seed(0)
        logits, _ = model.train()(torch.full((T, B), 2))
        return logits

    bayesian = outputs_over_time("bayesian")
    torch.testing.assert_close(bayesian, bayesian[:1].expand_as(bayesian))
    naive = outputs_over_time("naive")
    assert not torch.allclose(naive, naive[:1].expand_as(naive))


def test_naive_dropout_is_nowhere_in_the_recurrence():
    model = model_of(dropout_kind="naive", recurrent_dropout=0.9, embedding_dropout=0.9)
    assert isinstance(model.recurrent, StepwiseDropoutRNN)
    assert [layer.recurrent_dropout for layer in model.recurrent.layers] == [0.0, 0.0]
    assert [layer.input_dropout for layer in model.recurrent.layers] == [(0.0,), (0.0,)]
    assert model.embedding.dropout == 0.0
    assert isinstance(model.output_dropout, nn.Dropout)


def test_no_dropout_is_deterministic_in_training(tokens):
    model = model_of(dropout_kind="none").train()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_training_draws_new_masks_and_given_masks_hold(tokens):
    model = model_of().train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    masks = model.sample_masks(B)
    assert torch.equal(model(tokens, masks=masks)[0], model(tokens, masks=masks)[0])


def test_masks_without_embedding_dropout_leave_words_alone(tokens):
    model = model_of(embedding_dropout=1.0, input_dropout=0, recurrent_dropout=0, output_dropout=0)
    without = model.sample_masks(B, embedding=False)
    torch.testing.assert_close(model(tokens, masks=without)[0], model(tokens)[0])
    dropped = model(tokens, masks=model.sample_masks(B))[0]
    assert not torch.allclose(dropped, model(tokens)[0])


def test_tied_gates_share_masks():
    masks = model_of(tie_gates=True).sample_masks(B)
    assert {layer.keep_h.shape[0] for layer in masks.recurrent} == {1}
    assert {layer.keep_h.shape[0] for layer in model_of().sample_masks(B).recurrent} == {4}


@pytest.mark.parametrize("kind", ["none", "naive"])
def test_only_bayesian_models_hold_masks(kind):
    with pytest.raises(ValueError, match="expected bayesian"):
        model_of(dropout_kind=kind).sample_masks(B)


def test_state_goes_on_where_it_stopped(tokens):
    for cell in ("lstm", "gru"):
        model = model_of(cell=cell)
        whole, _ = model(tokens)
        first, state = model(tokens[:2])
        second, _ = model(tokens[2:], detached(state))
        torch.testing.assert_close(torch.cat([first, second]), whole)


def test_masks_are_brnn_layer_masks():
    masks = model_of(layers=3).sample_masks(B)
    assert isinstance(masks, ModelMasks)
    assert [type(layer) for layer in masks.recurrent] == [brnn.LayerMasks] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_dropout": 1.5}, r"--input-dropout: expected a probability in \[0, 1\], got 1.5"),
        ({"embedding_dropout": float("nan")}, "--embedding-dropout: expected a probability"),
        ({"hidden": 0}, "--hidden: expected a whole number from 1 .*, got 0"),
        ({"lr": 0.0}, "--lr: expected a number above 0, got 0.0"),
        ({"lr": float("inf")}, "--lr: expected a number above 0, got inf"),
        ({"lr_decay": 0.5}, "--lr-decay: expected a number of at least 1, got 0.5"),
        ({"cell": "rnn"}, "--cell: expected one of lstm, gru, got 'rnn'"),
        ({"engine": "fast"}, "--engine: expected one of auto, .*, got 'fast'"),
    ],
)
def test_configuration_outside_its_range(change, message):
    with pytest.raises(UserError, match=message):
        LanguageModelConfig(**change)


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:99", "cpu:x"])
def test_device_that_is_not_there(device):
    with pytest.raises(UserError, match=f"--device: expected .*, got '{device}'"):
        LanguageModelConfig(device=device).resolved_device()
