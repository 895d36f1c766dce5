"""plan, info and the names of the engines."""

import inspect
import re

import pytest
import torch

import bayesrnn_cuda as brnn
from bayesrnn_cuda import engines

CELLS = ["lstm", "gru", "rnn"]
FUSED = [torch.float32, torch.float64, torch.bfloat16]
SIZES = (35, 20, 200, 100)  # T, B, I, H

INSTRUCTION_SETS = ("portable", "neon", "avx2", "avx512", "avx512_bf16", "amx")
every_cell = pytest.mark.parametrize("cell", CELLS)


def scratch(plan):
    """The plan's figures in bytes."""
    return {key: value for key, value in plan.details.items() if "bytes" in key}


def module_of(cell, **options):
    kinds = {"lstm": brnn.BayesianLSTM, "gru": brnn.BayesianGRU, "rnn": brnn.BayesianRNN}
    return kinds[cell](4, 6, **options)


@every_cell
@pytest.mark.parametrize("dtype", FUSED)
def test_plan_of_the_cpu_engine(cell, dtype):
    plan = brnn.plan(cell, *SIZES, dtype)
    assert plan.engine == "cpu"
    assert (plan.cell, plan.T, plan.B, plan.I, plan.H) == (cell, *SIZES)
    assert plan.dtype == dtype
    assert plan.device == torch.device("cpu")
    assert plan.reason
    assert plan.details["instruction_set"] in INSTRUCTION_SETS
    assert plan.details["threads"] == torch.get_num_threads()
    assert all(isinstance(value, int) and value > 0 for value in scratch(plan).values())


@every_cell
@pytest.mark.parametrize("dtype", FUSED)
@pytest.mark.parametrize("size", ["I", "H"])
def test_memory_grows_with_the_layer(cell, dtype, size):
    small = dict(zip("TBIH", SIZES, strict=True))
    before, after = (
        scratch(brnn.plan(cell, **sizes, dtype=dtype))
        for sizes in (small, small | {size: 8 * small[size]})
    )
    assert before.keys() == after.keys()
    assert len(before) >= 2  # forward and backward
    for key in before:
        assert after[key] > before[key], key


@every_cell
def test_memory_never_shrinks_with_more_sequences_or_steps(cell):
    for smaller, larger in (
        ((35, 1, 64, 64), (35, 256, 64, 64)),
        ((1, 8, 64, 64), (512, 8, 64, 64)),
    ):
        before, after = (scratch(brnn.plan(cell, *sizes)) for sizes in (smaller, larger))
        assert all(after[key] >= before[key] for key in before)


@every_cell
def test_plan_of_the_smallest_and_of_a_large_layer(cell):
    for sizes in ((1, 1, 1, 1), (1024, 16, 1024, 1024), (35, 2000, 650, 650)):
        assert brnn.plan(cell, *sizes).engine == "cpu"


@every_cell
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plan_answers_for_cuda_without_a_gpu(cell, device, dtype):
    plan = brnn.plan(cell, *SIZES, dtype, device)
    assert plan.engine in brnn.info()["engines"]
    assert plan.reason
    assert plan.device == torch.device(device)
    assert "cuda" in str(plan)


FUSED_ON_CUDA = [torch.float16, *FUSED]


@every_cell
@pytest.mark.parametrize("gpu", ["A100", "H100", "h100", "rtx 4090"])
@pytest.mark.parametrize("dtype", FUSED_ON_CUDA)
def test_plan_for_a_gpu_by_its_name(cell, gpu, dtype, monkeypatch):
    monkeypatch.setattr(engines, "CUDA_BUILT", True)
    plan = brnn.plan(cell, *SIZES, dtype, gpu)
    assert plan.engine in engines.ON_CUDA and plan.reason
    assert plan.device == gpu and plan.details["gpu"] == gpu
    assert {"precision", "forward", "backward"} <= plan.details.keys()
    monkeypatch.setattr(engines, "CUDA_BUILT", False)
    without = brnn.plan(cell, *SIZES, dtype, gpu)
    assert without.engine == "reference"
    assert without.reason == f"this build has no CUDA; one with it: {plan.engine}, {plan.reason}"


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
def test_plan_knows_the_precision_of_float32(setting, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", setting)
    plan = brnn.plan("lstm", *SIZES, torch.float32, "H100")
    assert plan.details["precision"] == {"tf32": "tf32", "ieee": "float32"}[setting]


def test_plan_says_which_gpu_it_assumes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert brnn.plan("lstm", *SIZES, device="cuda").details["gpu"].startswith("H100, assumed")


@pytest.mark.parametrize("engine", engines.ON_CUDA)
def test_op_refuses_what_an_engine_cannot_do(engine):
    """No persistent engine has a GRU that resets before U, or float64."""
    for cell, dtype in (("gru_reset_before", "bfloat16"), ("lstm", "float64")):
        arguments = (cell, *SIZES, dtype, "H100", False, True, True, engine)
        if engine == "stepwise":
            torch.ops.bayesrnn.cuda_plan(*arguments)
            continue
        with pytest.raises(RuntimeError, match=f"engine: expected .* for '{engine}'"):
            torch.ops.bayesrnn.cuda_plan(*arguments)


@every_cell
@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64])
def test_plan_says_why_there_is_no_fused_engine(cell, dtype):
    plan = brnn.plan(cell, *SIZES, dtype)
    assert plan.engine == "reference"
    assert "float32" in plan.reason
    assert plan.details == {}


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_plan_reads_as_a_sentence_and_a_list(cell, dtype, device):
    plan = brnn.plan(cell, *SIZES, dtype, device)
    head, reason, *details = str(plan).splitlines()
    name = str(dtype).removeprefix("torch.")
    assert head == f"{cell} T=35 B=20 I=200 H=100 {name} on {device}: engine {plan.engine}"
    assert reason == f"  reason: {plan.reason}"
    names = [key.replace("_", " ") for key in plan.details]
    assert [line.split(": ")[0] for line in details] == [f"  {name}" for name in names]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_values_of_a_plan_are_written_as_they_are(isa):
    """On some machines the instruction set is called avx512_bf16."""
    details = {"instruction_set": isa, "scratch_bytes": 8, "tile": [4, 2], "backward": {"b_c": 1}}
    plan = engines.Plan("cpu", "why", "lstm", *SIZES, torch.float32, "cpu", details)
    assert str(plan).splitlines()[2:] == [
        f"  instruction set: {isa}", "  scratch bytes: 8", "  tile: 4 x 2", "  backward: b c 1",
    ]  # fmt: skip


def test_plan_is_a_value():
    assert brnn.plan("lstm", *SIZES) == brnn.plan("lstm", *SIZES)
    assert brnn.plan("lstm", *SIZES) != brnn.plan("gru", *SIZES)
    with pytest.raises(AttributeError):
        brnn.plan("lstm", *SIZES).engine = "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "gru_reset_before"}, r"cell: expected one of lstm, gru, rnn, got 'gru_.*'"),
        ({"cell": "LSTM"}, r"cell: expected one of lstm, gru, rnn, got 'LSTM'"),
        ({"cell": None}, r"cell: expected one of lstm, gru, rnn, got None"),
        ({"device": "H900"}, r"device: expected cpu, cuda, cuda:N or one of A100, .* got 'H900'"),
        *[
            ({name: size}, rf"{name}: expected an integer of at least 1, got {size}")
            for name in "TBIH"
            for size in (0, -1)
        ],
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda", "H100"])
def test_plan_errors(arguments, message, device):
    with pytest.raises(ValueError, match=message):
        brnn.plan(
            **({"cell": "lstm", "T": 1, "B": 1, "I": 1, "H": 1, "device": device} | arguments)
        )


def test_info():
    info = brnn.info()
    assert info["bayesrnn_cuda"] == brnn.__version__
    assert info["torch"] == torch.__version__
    assert info["library"].startswith(str(inspect.getfile(brnn).removesuffix("__init__.py")))
    assert info["cuda_available"] == torch.cuda.is_available()
    assert isinstance(info["cuda_architectures"], list)
    assert all(re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", a) for a in info["cuda_architectures"])
    everywhere = ["auto", "cpu", "reference"]
    on_cuda = list(engines.ON_CUDA) if info["cuda_architectures"] else []
    assert sorted(info["engines"]) == sorted(everywhere + on_cuda)
    assert info["cpu_instruction_set"] in INSTRUCTION_SETS
    assert info["python"].count(".") >= 2


@every_cell
def test_every_engine_of_info_runs_on_the_cpu_and_agrees(cell):
    x = torch.randn(3, 2, 4)
    outputs = []
    for engine in ("auto", "cpu", "reference"):
        torch.manual_seed(0)
        outputs.append(module_of(cell, engine=engine, input_dropout=0.5)(x)[0])
    assert torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


@every_cell
def test_auto_does_what_plan_says(cell):
    """float16 has no fused engine on the CPU: "auto" takes the reference, "cpu" refuses."""
    x = torch.randn(3, 2, 4).half()
    assert brnn.plan(cell, 3, 2, 4, 6, torch.float16).engine == "reference"
    torch.manual_seed(0)
    auto = module_of(cell).half()
    slow = module_of(cell, engine="reference").half()
    slow.load_state_dict(auto.state_dict())
    assert torch.equal(auto(x)[0], slow(x)[0])
    with pytest.raises(RuntimeError, match=r"x: expected dtype float32, .* got float16"):
        module_of(cell, engine="cpu").half()(x)


def test_the_public_names_are_those_of_the_package():
    assert set(brnn.__all__) <= set(dir(brnn))
    public = {
        "BayesianLSTM", "BayesianGRU", "BayesianRNN", "BayesianEmbedding", "LockedDropout",
        "LayerMasks",
        "LayerWeights", "MCPrediction", "Plan", "functional", "reference", "mc_dropout",
        "mc_predict", "hold_masks", "fit_noise", "model_precision", "conformal_scale", "coverage",
        "interval_width", "convert", "to_torch", "kl_penalty", "weight_decay_groups", "plan",
        "info",
    }  # fmt: skip
    assert public <= set(brnn.__all__)


@pytest.mark.parametrize("name", sorted(brnn.__all__))
def test_every_public_name_is_documented(name):
    assert inspect.getdoc(getattr(brnn, name))


@pytest.mark.parametrize("cell", [brnn.BayesianLSTM, brnn.BayesianGRU])
def test_signatures_start_as_those_of_torch(cell):
    """Names and order of the positional arguments, as help() and editors show them."""
    names = list(inspect.signature(cell).parameters)
    assert names[:8] == [
        "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
        "bidirectional", "proj_size",
    ]  # fmt: skip


def test_signature_of_the_rnn_starts_as_that_of_torch():
    names = list(inspect.signature(brnn.BayesianRNN).parameters)
    assert names[:8] == [
        "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout",
        "bidirectional",
    ]  # fmt: skip
