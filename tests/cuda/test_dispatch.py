"""Which op runs with which options: CUDA, as far as it can be seen without a GPU."""

import pytest
import torch
from cases import CELLS, Case, leaves, op_arguments, outputs, sample
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bayesrnn_cuda import engines

pytestmark = pytest.mark.usefixtures("two_threads")


class Recorder(TorchDispatchMode):
    """Notes the calls of this package's ops: (name, arguments by name)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, arguments=(), keywords=None):
        if op.namespace == "bayesrnn":
            given = op._schema.arguments
            named = {a.name: a.default_value for a in given if a.has_default_value()}
            named |= {a.name: value for a, value in zip(given, arguments, strict=False)}
            self.calls.append((op._opname, named))
        return op(*arguments, **(keywords or {}))


def fake_on_cuda(case: Case, dtype: torch.dtype):
    """Inputs without numbers that say they are on a GPU; inside FakeTensorMode."""

    def fake(t):
        dense = t.dtype if not t.is_floating_point() else dtype
        return torch.empty(t.shape, dtype=dense, device="cuda")

    inputs = sample(case)
    return inputs.replace_tensors({name: fake(t) for name, t in inputs.tensors().items()})


@pytest.fixture
def cuda_built(monkeypatch):
    monkeypatch.setattr(engines, "CUDA_BUILT", True)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("engine", ["auto", *engines.ON_CUDA])
@pytest.mark.parametrize("cell", CELLS)
def test_cuda_tensors_take_the_op(cell, engine, dtype, cuda_built):
    """Any fused dtype; what runs, and whether sizes suit the engine, the op decides."""
    case = Case(cell, lengths=True)
    with FakeTensorMode(), Recorder() as recorder:
        results = outputs(case, fake_on_cuda(case, dtype), engine)
    ((name, arguments),) = recorder.calls
    assert name == case.kind.name
    assert arguments["engine"] == engine
    assert all(t.device == torch.device("cuda", 0) and t.dtype == dtype for t in results.values())
    assert results["y"].shape == (case.T, case.B, case.H)


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
@pytest.mark.parametrize("cell", CELLS)
def test_tf32_is_what_cudnn_would_do(cell, setting, cuda_built, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", setting)
    case = Case(cell)
    with FakeTensorMode(), Recorder() as recorder:
        outputs(case, fake_on_cuda(case, torch.float32), "auto")
    assert recorder.calls[0][1]["allow_tf32"] is (setting == "tf32")
    with Recorder() as recorder:
        outputs(case, sample(case), "cpu")
    assert recorder.calls[0][1]["allow_tf32"] is False


@pytest.mark.parametrize("allow_tf32", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_backward_has_the_options_of_forward(cell, allow_tf32):
    case = Case(cell, reverse=True)
    op, arguments = op_arguments(case, leaves(case, sample(case)))
    arguments = (*arguments[:-2], allow_tf32, "auto")
    with Recorder() as recorder:
        op(*arguments)[0].sum().backward()
    (_, forward), (name, backward) = recorder.calls
    assert name.endswith("_backward")
    assert backward["allow_tf32"] is forward["allow_tf32"] is allow_tf32
    shared = ("scale_x", "scale_h", "reverse", "engine", "allow_tf32")
    assert all(backward[key] == forward[key] for key in shared)


def test_cuda_tensors_in_a_build_without_cuda(monkeypatch):
    """The reference runs them, and dtypes that no engine has."""
    with FakeTensorMode():
        x = torch.empty(1, 1, 1, device="cuda")
        monkeypatch.setattr(engines, "CUDA_BUILT", True)
        assert engines.resolve("auto", x) == "auto"
        assert (
            engines.resolve("auto", torch.empty(1, dtype=torch.complex64, device="cuda"))
            == "reference"
        )
        monkeypatch.setattr(engines, "CUDA_BUILT", False)
        assert engines.resolve("auto", x) == "reference"
