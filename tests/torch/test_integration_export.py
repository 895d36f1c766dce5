"""torch.export of the layers, and AOTInductor packages made of it."""

import io

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_sequence

import bayesrnn_cuda as brnn

I, H = 3, 4  # noqa: E741
ANY_SIZES = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)

every_kind = pytest.mark.parametrize(
    "kind", [brnn.BayesianLSTM, brnn.BayesianGRU, brnn.BayesianRNN]
)


def make(kind, **options):
    torch.manual_seed(0)
    return kind(I, H, **options, input_dropout=0.5, recurrent_dropout=0.5)


@every_kind
@pytest.mark.parametrize("strict", [False, True])
def test_export_for_any_sizes(kind, strict):
    """One program for all lengths and batches, as one op a layer and direction."""
    module = make(kind, num_layers=2, bidirectional=True).eval()
    program = torch.export.export(
        module, (torch.randn(5, 3, I),), dynamic_shapes=ANY_SIZES, strict=strict
    )
    ops = [n for n in program.graph.nodes if "bayesrnn" in str(n.target)]
    assert len(ops) == 4
    for steps, batch in ((7, 2), (40, 9)):
        x = torch.randn(steps, batch, I)
        torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=0)
    with pytest.raises((RuntimeError, AssertionError)):
        program.module()(torch.randn(0, 3, I))


def test_export_with_states_and_masks():
    module = make(brnn.BayesianLSTM)
    x, hx = torch.randn(5, 3, I), (torch.randn(1, 3, H), torch.randn(1, 3, H))
    masks = module.sample_masks(3)
    program = torch.export.export(module, (x, hx), {"masks": masks})
    other = module.sample_masks(3)
    torch.testing.assert_close(
        program.module()(x, hx, masks=other), module(x, hx, masks=other), rtol=0, atol=0
    )


@every_kind
def test_export_with_resets(kind):
    """One program for any number of steps and sequences, and any resets."""
    module = make(kind, bidirectional=True).eval()
    steps, batch = Dim("steps", min=2), Dim("batch", min=2)
    sizes = {0: steps, 1: batch}
    program = torch.export.export(
        module, (torch.randn(5, 3, I),), {"resets": torch.rand(5, 3) < 0.3},
        dynamic_shapes={"input": sizes, "resets": sizes},
    )  # fmt: skip
    for shape in ((7, 2), (40, 9)):
        x, resets = torch.randn(*shape, I), torch.rand(shape) < 0.3
        torch.testing.assert_close(
            program.module()(x, resets=resets), module(x, resets=resets), rtol=0, atol=0
        )


@every_kind
def test_exported_masks_are_drawn_at_each_call(kind):
    """Saved and loaded too, and lowered to the core operators."""
    program = torch.export.export(make(kind), (torch.randn(5, 3, I),), dynamic_shapes=ANY_SIZES)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    run = torch.export.load(file).run_decompositions().module()
    x = torch.randn(8, 2, I)
    assert not torch.equal(run(x)[0], run(x)[0])


def test_packed_sequences_are_refused():
    x = pack_sequence([torch.randn(3, I), torch.randn(2, I)])
    with pytest.raises(ValueError, match=r"input: expected a tensor .* got PackedSequence"):
        torch.export.export(make(brnn.BayesianLSTM), (x,), strict=False)


class Predictor(nn.Module):
    """The mean network and one draw of masks beside each other."""

    def __init__(self):
        super().__init__()
        self.mean = make(brnn.BayesianLSTM).eval()
        self.draw = make(brnn.BayesianGRU).train()

    def forward(self, x):
        return self.mean(x)[0], self.draw(x)[0]


def test_package_of_aot_inductor(tmp_path):
    module = Predictor()
    sizes = ({0: Dim("steps", min=2, max=500), 1: Dim("batch", min=2, max=500)},)
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(5, 3, I),), dynamic_shapes=sizes)
        # no trial builds to find the instruction set, which take 20 seconds
        with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=str(tmp_path / "model.pt2")
            )
        run = torch._inductor.aoti_load_package(package)
        for steps, batch in ((7, 2), (40, 9)):
            x = torch.randn(steps, batch, I)
            mean, drawn = run(x)
            torch.testing.assert_close(mean, module.mean(x)[0])
            assert drawn.shape == (steps, batch, H)
            assert not torch.equal(drawn, run(x)[1])
