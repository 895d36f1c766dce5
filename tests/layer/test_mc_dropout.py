"""mc_dropout: masks in `eval()`, and the modes it leaves."""

import pytest
import torch
from predict_cases import B, H, I, T, modes, tagger
from torch import nn

import bayesrnn_cuda as brnn


@pytest.mark.parametrize("training", [False, True])
def test_mc_dropout_draws_and_restores(training):
    module = tagger().train(training)
    x, before = torch.randn(T, B, I), modes(module)
    with brnn.mc_dropout(module) as entered:
        assert entered is module
        for part in (module.before, module.rnn, module.after):
            given = x if part is not module.after else torch.ones(T, B, H)
            first, second = part(given), part(given)
            assert not torch.equal(*(y[0] if isinstance(y, tuple) else y for y in (first, second)))
    assert modes(module) == before
    assert torch.equal(module(x), module(x)) != training


def test_mc_dropout_equals_training_under_the_same_seed():
    module, x = tagger(), torch.randn(T, B, I)
    torch.manual_seed(1)
    with brnn.mc_dropout(module):
        sampled = module(x)
    torch.manual_seed(1)
    assert torch.equal(module.train()(x), sampled)


def test_mc_dropout_restores_after_an_exception():
    module = tagger()
    before = modes(module)
    with pytest.raises(KeyError, match="mine"), brnn.mc_dropout(module):
        raise KeyError("mine")
    assert modes(module) == before


def test_mc_dropout_nests():
    module, x = tagger(), torch.randn(T, B, I)
    before = modes(module)
    with brnn.mc_dropout(module):
        inside = modes(module)
        for inner in (module, module.rnn):
            with brnn.mc_dropout(inner):
                assert modes(module) == inside
            assert modes(module) == inside
        assert not torch.equal(module(x), module(x))
    assert modes(module) == before
    with brnn.mc_dropout(module.rnn):
        assert not torch.equal(module.rnn(x)[0], module.rnn(x)[0])
        assert torch.equal(module.before(x), x)


@pytest.mark.parametrize(
    "layer", [nn.Dropout(), nn.Dropout1d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()], ids=repr
)
def test_mc_dropout_serves_the_dropouts_of_torch(layer):
    x = torch.ones(4, 50, 8)
    with brnn.mc_dropout(layer.eval()):
        assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x), x)


def test_mc_dropout_leaves_batch_norm_alone():
    module = nn.Sequential(nn.BatchNorm1d(I), nn.Dropout()).eval()
    with brnn.mc_dropout(module):
        module(torch.randn(8, I) + 3)
    assert (module[0].running_mean == 0).all()


def test_mc_dropout_of_a_module_without_dropout():
    module, x = nn.Linear(I, 2), torch.randn(B, I)
    with brnn.mc_dropout(module):
        assert torch.equal(module(x), module(x))


def test_backward_under_mc_dropout():
    module = tagger()
    with brnn.mc_dropout(module):
        module(torch.randn(T, B, I)).sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
