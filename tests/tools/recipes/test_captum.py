"""captum's integrated gradients of one sampled model."""

import pytest
import torch
from page import package, recipe

import bayesrnn_cuda as brnn

package("captum")

from captum.attr import IntegratedGradients  # noqa: E402


@pytest.mark.parametrize("hold", [True, False])
def test_attributions_add_up_where_the_masks_are_held(hold):
    """Completeness: they sum to the difference between the outputs of input and baseline."""
    torch.manual_seed(0)
    names = recipe("captum")
    model, x = names.model, names.x
    explainer = IntegratedGradients(model)
    with brnn.mc_dropout(model, hold=hold), torch.no_grad():
        attributions = explainer.attribute(x, target=0, internal_batch_size=len(x))
        difference = (model(x) - model(torch.zeros_like(x)))[:, 0]
    error = (attributions.sum(dim=(1, 2)) - difference).abs().max()
    assert (error < 1e-4 * difference.abs().max()) == hold
    assert (error > 0.1 * difference.abs().max()) != hold


def test_several_steps_in_one_batch_are_refused_where_the_masks_are_held():
    names = recipe("captum")
    explainer = IntegratedGradients(names.model)
    message = r"^input: expected 240 sequences, for which this block holds .* got 48$"
    with brnn.mc_dropout(names.model, hold=True), pytest.raises(ValueError, match=message):
        explainer.attribute(names.x, target=0, n_steps=5, return_convergence_delta=True)


def test_recipe():
    names = recipe("captum")
    assert names.attributions.shape == names.x.shape and names.attributions.abs().max() > 0
    assert names.error.abs().max() < 1e-4
