"""`mask_dropout`: the switch that decides whether a module draws masks."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import bayesrnn_cuda as brnn

MODULES = {
    "lstm": (lambda: brnn.BayesianLSTM(5, 6, recurrent_dropout=0.5), (4, 3, 5)),
    "gru": (lambda: brnn.BayesianGRU(5, 6, 2, input_dropout=(0.0, 0.25)), (4, 3, 5)),
    "locked": (lambda: brnn.LockedDropout(0.5), (4, 3, 5)),
    "embedding": (lambda: brnn.BayesianEmbedding(9, 5, dropout=0.5), None),
}
every_module = pytest.mark.parametrize("name", MODULES)


def made(name):
    torch.manual_seed(0)
    make, shape = MODULES[name]
    x = torch.randint(9, (20, 3)) if shape is None else torch.randn(shape)
    return make(), x


def draws(module, x):
    first, second = (module(x) for _ in range(2))
    return not torch.equal(*(y[0] if isinstance(y, tuple) else y for y in (first, second)))


@every_module
def test_it_alone_decides(name):
    module, x = made(name)
    assert isinstance(module.mask_dropout, nn.Dropout)
    assert draws(module, x) and module.draws_masks
    module.mask_dropout.eval()
    assert module.training and not module.draws_masks and not draws(module, x)
    module.eval().mask_dropout.train()
    assert not module.training and module.draws_masks and draws(module, x)
    module.train().eval()
    assert not draws(module, x)


@every_module
def test_tools_that_switch_every_dropout_switch_masks(name):
    """As torch-uncertainty, lightning-uq-box and the recipes of the net do it."""
    module, x = made(name)
    model = nn.Sequential(module).eval()
    found = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert len(found) == 1
    for m in found:
        m.train()
    assert draws(module, x)


@every_module
def test_p_is_the_largest_and_sets_all_that_are_not_0(name):
    module, x = made(name)
    switch = module.mask_dropout
    assert switch.p == (0.25 if name == "gru" else 0.5)
    switch.p = 0.75
    assert switch.p == 0.75
    if name == "gru":
        assert module.input_dropout == (0.0, 0.75) and module.recurrent_dropout == 0.0
    switch.p = 0  # as trl's disable_dropout_in_model
    assert switch.p == 0.0
    assert not draws(module, x)
    with pytest.raises(ValueError, match=r"expected a probability of dropping in \[0, 1\], got 2"):
        switch.p = 2
    with pytest.raises(TypeError, match=r"p: expected a probability .*, got '0\.5'"):
        switch.p = "0.5"


@pytest.mark.parametrize("layer", [brnn.BayesianLSTM, brnn.BayesianGRU])
def test_p_sets_the_dropout_of_torch_where_that_is_in_use(layer):
    module = layer(5, 6, 3, dropout=0.25, recurrent_dropout=0.5)
    module.mask_dropout.p = 0.75
    assert (module.dropout, module.recurrent_dropout) == (0.75, 0.75)
    assert module.input_dropout == (0.0, 0.75, 0.75)
    assert module.to_torch().dropout == 0.75
    module.mask_dropout.p = 0
    assert (module.dropout, module.recurrent_dropout) == (0.0, 0.0)
    assert module.input_dropout == (0.0, 0.0, 0.0)
    module.dropout = 0.5  # none was given in its place
    given = layer(5, 6, 3, input_dropout=(0.25, 0.0, 0.5))
    given.mask_dropout.p = 0.75
    assert (given.dropout, given.input_dropout) == (0.0, (0.75, 0.0, 0.75))
    with pytest.warns(UserWarning, match="one layer"):
        single = layer(5, 6, dropout=0.25, recurrent_dropout=0.5)
    single.mask_dropout.p = 0.75  # torch's drops nothing there
    assert (single.dropout, single.input_dropout) == (0.25, (0.0,))
    assert single.recurrent_dropout == 0.75


@every_module
def test_what_is_missing_is_named(name):
    """And not `draws_masks`, which nn.Module would name for whatever its property lacks."""
    module, x = made(name)
    del module.training
    assert draws(module, x)
    del module.mask_dropout.training
    with pytest.raises(AttributeError, match=r"'MaskDropout' object has no attribute 'training'"):
        module(x)
    del module.mask_dropout
    with pytest.raises(AttributeError, match=r"object has no attribute 'mask_dropout'"):
        module(x)


@every_module
def test_has_no_entry_and_does_not_show(name):
    module, _ = made(name)
    assert not any("mask_dropout" in key for key in module.state_dict())
    assert "mask_dropout" not in repr(module) and repr(module).count("\n") == 0
    assert [n for n, _ in module.named_children()] == ["mask_dropout"]


def test_repr_shows_what_else_is_inside():
    class Wider(brnn.LockedDropout):
        def __init__(self):
            super().__init__(0.25)
            self.linear = nn.Linear(2, 3)

    text = repr(Wider())
    assert "Wider(\n" in text and "(linear): Linear" in text and "mask_dropout" not in text
    lstm = brnn.BayesianLSTM(2, 3)
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    assert "weight_hh_l0" in repr(lstm) and "mask_dropout" not in repr(lstm)
    assert lstm.mask_dropout.p == 0.0


@every_module
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save", "weights_only"])
def test_a_copy_has_a_switch_of_its_own(name, how):
    module, x = made(name)
    module.eval()
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=how == "weights_only")
    twin.mask_dropout.train()
    assert draws(twin, x) and not draws(module, x)
    twin.mask_dropout.p = 0.125
    assert twin.mask_dropout.p == 0.125 != module.mask_dropout.p
    repr(module)
    assert module.mask_dropout.p != 0.125


@every_module
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mc", [False, True])
def test_modules_pickled_before_there_was_a_switch(name, training, mc):
    module, x = made(name)
    module.train(training)
    old = module.__dict__ | {"_modules": {}, "mc": mc}
    for attribute in ("_in_block", "_traced", "_key"):
        del old[attribute]
    twin = type(module).__new__(type(module))
    twin.__setstate__(old)
    assert draws(twin, x) == (training or mc)
    assert draws(twin.train(), x) and not draws(twin.eval(), x)
    assert not hasattr(twin, "mc")
    assert twin.mask_dropout.p == module.mask_dropout.p


def test_the_switch_keeps_no_module_alive():
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        layer = brnn.BayesianLSTM(3, 4)
        alive = weakref.ref(layer)
        del layer
        assert alive() is None
    finally:
        gc.enable()
