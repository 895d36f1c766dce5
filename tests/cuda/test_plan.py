"""csrc/cuda/plan: which engine runs a layer on which GPU, that what it plans fits, and what it
says."""

import json
import random
import re
from dataclasses import dataclass, replace

import binding
import pytest

SIXTEEN_BIT = ["bfloat16", "float16"]
TENSOR_CORES = [*SIXTEEN_BIT, "tf32"]
PRECISIONS = [*TENSOR_CORES, "float32", "float64"]
GPUS = ["A100", "H100", "H100 PCIe", "H200", "B200", "RTX 4090", "RTX 5090"]


@pytest.fixture(scope="module")
def planner():
    return binding.module("bind_plan")


@dataclass(frozen=True)
class Problem:
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    cell: str = "lstm"
    precision: str = "bfloat16"
    untied: bool = True
    save: bool = True

    @property
    def gates(self):
        return {"lstm": 4, "rnn": 1}.get(self.cell, 3)

    @property
    def own_masks(self):
        """Whether the kernel keeps a mask for each gate: with one gate there is nothing to keep."""
        return self.untied and self.gates > 1

    @property
    def bytes(self):
        return 2 if self.precision in SIXTEEN_BIT else 4

    @property
    def chunks(self):
        """Chunks of 512 bytes of a batch tile that h fills."""
        return -(-self.H * self.bytes // 64)


def plan(planner, problem, device, engine="auto"):
    p = problem
    text = planner.plan(p.cell, p.T, p.B, p.I, p.H, p.precision, p.untied, p.save, device, engine)
    return json.loads(text)


def test_a_measurement_names_the_words_that_backward_waits_for(planner, monkeypatch):
    table = planner.table("grid", False, 2)
    assert table.count((3, 8, 1, True)) == 2  # instances that differ in it alone
    default = planner.backward_ahead()
    for asked in (3, 6):
        monkeypatch.setenv("BAYESRNN_BACKWARD_AHEAD", str(asked))
        assert planner.backward_ahead() == asked
        backward = plan(planner, Problem(1024, 16, 768, 768), planner.device("H100"))["backward"]
        assert (backward["engine"], backward["chunks"]) == ("grid", 3)
    monkeypatch.setenv("BAYESRNN_BACKWARD_AHEAD", "5")
    with pytest.raises(RuntimeError, match="BAYESRNN_BACKWARD_AHEAD: expected 3 or 6, got '5'"):
        planner.backward_ahead()
    monkeypatch.delenv("BAYESRNN_BACKWARD_AHEAD")
    assert planner.backward_ahead() == default


@pytest.mark.parametrize(
    ("problem", "forward", "backward"),
    [
        (Problem(1024, 16, 768, 768), 1024, 1024),  # 24 and 96 MB of slots
        (Problem(1025, 16, 1024, 1024), 1025, 513),  # backward 128 MB and a step
        (Problem(16384, 64, 64, 1024), 1024, 256),  # 2 GB and 8 GB
        (Problem(16384, 64, 64, 1024, "gru"), 1024, 335),
    ],
    ids=str,
)
def test_slots_of_a_long_layer_are_bounded(planner, problem, forward, backward):
    planned = plan(planner, problem, planner.device("H100"), "grid")
    assert (planned["forward"]["steps"], planned["backward"]["steps"]) == (forward, backward)
    few = plan(planner, replace(problem, T=100), planner.device("H100"), "grid")
    assert few["forward"]["steps"] == 100


def test_a_measurement_names_the_steps_of_a_launch(planner, monkeypatch):
    assert planner.grid_steps() == 0
    monkeypatch.setenv("BAYESRNN_GRID_STEPS", "400")
    problem = Problem(1024, 16, 768, 768)
    planned = plan(planner, problem, planner.device("H100"), "grid")
    assert planned["forward"]["steps"] == 342  # three launches of about as many
    assert plan(planner, problem, planner.device("H100"), "grid_flags")["forward"]["steps"] == 1024
    monkeypatch.setenv("BAYESRNN_GRID_STEPS", str(2**63 - 1))
    assert plan(planner, problem, planner.device("H100"), "grid")["forward"]["steps"] == 1024
    for wrong in ("0", "-1", "many", "", "3.5", str(2**63)):
        monkeypatch.setenv("BAYESRNN_GRID_STEPS", wrong)
        with pytest.raises(RuntimeError, match=f"expected at least 1, got '{wrong}'"):
            planner.grid_steps()


# ---- what runs

CORNELL = (200, 128, 128, 128)
MONTE_CARLO = (35, 2000, 650, 650)
WITH_RESETS = (128, 256, 32, 512)
# Untied masks in 16 bit: (forward, backward) of each GPU, the others as H100, and where a cell
# differs with its name. A measurement that disagrees changes cost.h and this table.
EXPECTED = {
    (1024, 16, 768, 768): {"H100": ("grid", "grid")},
    (1024, 16, 1024, 1024): {"H100": ("grid", "grid")},
    (35, 20, 200, 200): {"H100": ("grid", "grid")},
    (35, 20, 650, 650): {"H100": ("grid", "grid")},
    (35, 20, 1500, 1500): {"H100": ("grid", "grid")},
    # Block and grid are near each other. Where mma.sync is slow, one multiprocessor is not enough
    # for all units; where multiprocessors are few, blocks of a grid would share them.
    CORNELL: {
        "H100": ("block", "grid"),
        "H100 gru": ("block", "block"),
        "H100 PCIe": ("block", "block"),
        "A100": ("block", "block"),
        "B200": ("block", "grid"),
        "RTX 4090": ("grid", "grid"),
        "RTX 5090": ("grid", "grid"),
    },
    # 32 batch tiles, six or more a block: near what the library's products take.
    WITH_RESETS: {
        "H100": ("grid", "stepwise"),
        "H100 gru": ("grid", "grid"),
        "H100 PCIe": ("grid", "stepwise"),
        "A100": ("grid", "stepwise"),
        "B200": ("grid", "grid"),
        "RTX 4090": ("grid", "grid"),
        "RTX 5090": ("grid", "grid"),
    },
    MONTE_CARLO: {"H100": ("stepwise", "stepwise")},
    (200, 128, 64, 64): {"H100": ("block", "block")},
    (35, 20, 2000, 2000): {"H100": ("stepwise", "stepwise")},
    (1, 4, 16, 300): {"H100": ("stepwise", "stepwise")},  # one step does not pay for a start
}


def expected_engines(table, gpu, cell):
    """The most special entry."""
    for name in (gpu if gpu in table else "H100",):
        return table.get(f"{name} {cell}", table[name])


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("sizes", EXPECTED)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("precision", SIXTEEN_BIT)
def test_engines_of_the_shapes_that_are_measured(planner, cell, precision, sizes, gpu):
    result = plan(planner, Problem(*sizes, cell, precision), planner.device(gpu))
    expected = expected_engines(EXPECTED[sizes], gpu, cell)
    assert (result["forward"]["engine"], result["backward"]["engine"]) == expected
    assert result["tensor_cores"]


@pytest.mark.parametrize("gpu", GPUS)
def test_tf32_holds_half_as_many_units(planner, gpu):
    device = planner.device(gpu)
    for H, engine in ((768, "grid"), (769, "stepwise"), (1536, "stepwise")):
        result = plan(planner, Problem(35, 8, 64, H, precision="tf32"), device)
        assert result["forward"]["engine"] == result["backward"]["engine"] == engine, H
        assert result["tensor_cores"]


def test_masks_decide_what_fits(planner):
    """Packed masks of 84 batch tiles are more than shared memory holds."""
    untied = plan(planner, Problem(*MONTE_CARLO), planner.device("H100"))["forward"]
    assert untied["engine"] == "stepwise"
    assert "of shared memory for 84 batch tiles a block, got 227 KB" in untied["reason"]
    tied = plan(planner, Problem(*MONTE_CARLO, untied=False), planner.device("H100"))["forward"]
    assert "grid would take " in tied["reason"]  # it fits, and is not worth it


def test_the_headline_shape(planner):
    """H=768, B=16 on an H100: forward waits for the sum over warps, backward for L2."""
    result = plan(planner, Problem(1024, 16, 768, 768), planner.device("H100"))
    forward = result["forward"]
    assert forward["blocks"] == [48, 2]
    assert (forward["chunks"], forward["k_warps"], forward["unit_tiles"]) == (3, 8, 1)
    assert not forward["looped"]
    assert 1.0 <= forward["microseconds_per_step"] <= 1.3
    assert 1.5 <= result["backward"]["microseconds_per_step"] <= 2.2
    assert re.fullmatch(
        r"grid: 48 x 2 blocks on 132 multiprocessors, 1\.\d+ us a step \(model\); "
        r"stepwise would take \d\.\d+",
        forward["reason"],
    )


@pytest.mark.parametrize(
    ("sizes", "cell", "untied", "low", "high"),
    [
        ((1024, 16, 1024, 1024), "lstm", True, 1.3, 1.5),
        ((1024, 16, 768, 768), "gru", True, 1.0, 1.2),
        ((1024, 20, 1500, 1500), "lstm", True, 4.6, 5.1),
        ((1024, 20, 1500, 1500), "lstm", False, 3.6, 4.2),
    ],
)
def test_the_model_of_other_shapes(planner, sizes, cell, untied, low, high):
    problem = Problem(*sizes, cell, untied=untied)
    forward = plan(planner, problem, planner.device("H100"), "grid")["forward"]
    assert low <= forward["microseconds_per_step"] <= high


@pytest.mark.parametrize("engine", ["auto", "stepwise"])
@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({"precision": "float32"}, "bfloat16, float16 or tf32, got float32"),
        ({"precision": "float64"}, "bfloat16, float16 or tf32, got float64"),
        ({"cell": "gru_reset_before"}, "a cell with one product a step, got gru_reset_before"),
        ({"cell": "rnn", "precision": "float16"}, "bfloat16 for rnn, got float16"),
        ({"H": 1537}, "H of at most 1536 in bfloat16, got H = 1537"),
        ({"B": 0}, "a batch of at least 1, got 0"),
    ],
)
def test_what_is_left_to_stepwise_says_why(planner, change, needs, engine):
    problem = Problem(**({"T": 35, "B": 20, "I": 100, "H": 100} | change))
    result = plan(planner, problem, planner.device("H100"), engine)
    for direction in ("forward", "backward"):
        assert result[direction]["engine"] == "stepwise"
        reason = result[direction]["reason"]
        assert (f"grid needs {needs}" if engine == "auto" else "asked for by name") in reason
    assert result["tensor_cores"] == (problem.precision in TENSOR_CORES)


@pytest.mark.parametrize(
    ("precision", "I", "H", "fused"),
    [
        ("bfloat16", 64, 64, True),
        ("bfloat16", 65, 64, False),
        ("bfloat16", 64, 65, False),
        ("tf32", 32, 32, True),
        ("tf32", 33, 32, False),
    ],
)
def test_small_layers_compute_their_input_part_inside(planner, precision, I, H, fused):  # noqa: E741
    result = plan(
        planner, Problem(35, 8, I, H, precision=precision), planner.device("A100"), "block"
    )
    assert result["forward"]["fused_input"] == fused
    assert not result["backward"]["fused_input"]


def test_old_gpus_have_no_kernels(planner):
    result = plan(planner, Problem(35, 20, 100, 100), planner.Device(major=7, minor=5))
    assert result["forward"]["engine"] == "stepwise"
    assert "grid needs compute capability of at least 8.0, got 7.5" in result["forward"]["reason"]
    assert not result["tensor_cores"]


def test_without_cooperative_launch_there_is_no_grid(planner):
    result = plan(planner, Problem(35, 20, 100, 768), planner.Device(cooperative=False))
    assert result["forward"]["engine"] == "stepwise"
    assert "cooperative launch" in result["forward"]["reason"]


# ---- engines by name

REFUSED = [
    ("block", {"H": 129}, {}, "H of at most 128 in bfloat16", "H = 129"),
    ("block", {"H": 65, "precision": "tf32"}, {}, "H of at most 64 in tf32", "H = 65"),
    ("cluster", {"H": 257}, {}, "H of at most 256 in bfloat16", "H = 257"),
    ("cluster", {}, {"major": 8}, "compute capability of at least 9.0", "8.0"),
    ("grid", {"H": 1537}, {}, "H of at most 1536 in bfloat16", "H = 1537"),
    ("grid", {"H": 768}, {"multiprocessors": 40}, "48 multiprocessors", "40"),
    ("grid", {"H": 768}, {"cooperative": False}, "cooperative launch", "a device without it"),
    ("grid", {"H": 768}, {"registers": 32768}, "52736 registers", "32768"),
    (
        "grid",
        {"H": 768, "B": 2000},
        {},
        "657 KB of shared memory for 125 batch tiles a block",
        "227 KB",
    ),
    ("grid_flags", {"H": 768, "B": 32}, {}, "at most 1 batch tile a block", "2"),
    ("grid", {"precision": "float64"}, {}, "bfloat16, float16 or tf32", "float64"),
    ("block", {"precision": "float32"}, {}, "bfloat16, float16 or tf32", "float32"),
    ("block", {"B": 0}, {}, "a batch of at least 1", "0"),
    ("block", {"B": 600000}, {}, "B of at most 524280", "B = 600000"),
    (
        "grid",
        {"cell": "gru_reset_before"},
        {},
        "a cell with one product a step",
        "gru_reset_before",
    ),
    ("grid", {}, {"major": 7}, "compute capability of at least 8.0", "7.0"),
]


@pytest.mark.parametrize(("engine", "change", "limits", "needs", "has"), REFUSED)
def test_an_engine_that_cannot_run_is_refused(planner, engine, change, limits, needs, has):
    problem = Problem(**({"T": 35, "B": 20, "I": 100, "H": 100} | change))
    with pytest.raises(RuntimeError) as error:
        plan(planner, problem, planner.Device(**limits), engine)
    assert str(error.value) == f"engine: expected {needs} for '{engine}', got '{engine}' with {has}"


def test_an_unknown_engine_is_refused(planner):
    message = (
        "engine: expected one of auto, block, cluster, grid, grid_flags, stepwise, got 'cudnn'"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        plan(planner, Problem(35, 20, 100, 100), planner.device("H100"), "cudnn")


@pytest.mark.parametrize("engine", ["block", "cluster", "grid", "grid_flags", "stepwise"])
def test_an_engine_runs_when_named(planner, engine):
    result = plan(planner, Problem(35, 20, 100, 100), planner.device("H100"), engine)
    assert result["forward"]["engine"] == engine
    assert "asked for by name" in result["forward"]["reason"]
    backward = result["backward"]["engine"]
    assert backward in ("block", "grid") if engine == "cluster" else backward == engine


def test_a_refused_backward_matters_only_where_it_will_run(planner):
    """One batch tile a block is all that forward needs; backward has no room for a second."""
    device = planner.Device(shared_bytes=9 * 1024, multiprocessors=64)
    problem = {"T": 35, "B": 8, "I": 100, "H": 100}
    with pytest.raises(RuntimeError, match="16 KB of shared memory"):
        plan(planner, Problem(**problem, save=True), device, "block")
    result = plan(planner, Problem(**problem, save=False), device, "block")
    assert result["forward"]["engine"] == "block"
    assert result["backward"]["engine"] == "stepwise"


# ---- every plan fits


def random_problem(rng):
    def size(most):
        return int(2 ** rng.uniform(0, most))

    cell = rng.choice(["lstm", "gru", "gru", "lstm", "gru_reset_before", "rnn"])
    precision = rng.choice(PRECISIONS)
    sizes = (size(11), size(12), size(11), rng.choice([size(11), rng.randint(1, 1600)]))
    return Problem(*sizes, cell, precision, rng.random() < 0.6, rng.random() < 0.5)


def random_device(planner, rng):
    if rng.random() < 0.5:
        return planner.device(rng.choice(GPUS))
    return planner.Device(
        major=rng.choice([8, 9, 10, 12]),
        multiprocessors=rng.randint(1, 200),
        shared_bytes=rng.choice([48, 64, 99, 163, 227]) * 1024,
    )


def check(planner, problem, device, forward, r):
    """One direction of a plan against the limits of the device and the tables."""
    if r["engine"] == "stepwise":
        return
    x, y = r["blocks"]
    tiling = (r["chunks"], r["k_warps"], r["unit_tiles"], r["looped"])
    assert problem.precision in TENSOR_CORES and problem.cell != "gru_reset_before"
    assert problem.precision == "bfloat16" or problem.cell != "rnn"
    assert tiling in planner.table(r["engine"], forward, problem.bytes)
    assert r["threads"] == 32 * r["k_warps"] * r["unit_tiles"] <= 1024
    assert r["registers"] <= 255
    assert r["threads"] * r["registers"] <= device.registers
    assert r["chunks"] * r["k_warps"] >= problem.chunks
    published = x * r["unit_tiles"] * 16  # units
    assert published >= problem.H
    # Every chunk that is read is published whole, and every warp finds as many as it reads.
    assert published * problem.bytes // 64 >= max(problem.chunks, r["chunks"])
    assert (x * r["unit_tiles"]) * 16 * problem.bytes % 64 == 0
    tiles = -(-problem.B // 8)
    assert r["batch_tiles"] * y >= tiles > r["batch_tiles"] * (y - 1)
    assert r["batch_tiles"] == 1 or r["looped"]
    shared = planner.shared_bytes(
        r["engine"], forward, tiling, problem.cell, problem.own_masks, r["batch_tiles"],
        published * problem.bytes // 64,
    )  # fmt: skip
    assert r["shared_bytes"] == shared <= device.shared_bytes
    if r["engine"].startswith("grid"):
        together = -(-x * y // device.multiprocessors)
        assert together <= planner.blocks_per_multiprocessor(
            forward, tiling, problem.gates, problem.own_masks
        )
        assert together * (r["shared_bytes"] + 1024) <= device.shared_bytes + 1024
    if r["engine"] == "block":
        assert x == 1
    if r["engine"] == "cluster":
        assert device.major >= 9 and x <= 8
    if r["fused_input"]:
        assert forward and r["engine"] == "block" and r["chunks"] <= 2
        assert problem.I * problem.bytes <= 2 * 64
    assert r["microseconds_per_step"] > 0


def test_plans_fit(planner):
    rng = random.Random(0)
    seen = set()
    for _ in range(4000):
        problem, device = random_problem(rng), random_device(planner, rng)
        engine = rng.choice(["auto", "auto", "block", "cluster", "grid", "grid_flags"])
        try:
            result = plan(planner, problem, device, engine)
        except RuntimeError as error:
            assert re.fullmatch(rf"engine: expected .+, got '{engine}' with .+", str(error))
            assert engine != "auto"
            continue
        for direction in ("forward", "backward"):
            check(planner, problem, device, direction == "forward", result[direction])
            assert result[direction]["reason"].startswith(result[direction]["engine"] + ": ")
            seen.add((direction, result[direction]["engine"], result[direction].get("looped")))
    looped = {"block": [False], "cluster": [False], "grid": [False, True], "grid_flags": [False]}
    expected = {("forward", engine, loop) for engine in looped for loop in looped[engine]}
    expected |= {("backward", "block", False), ("backward", "grid", True)}
    expected |= {("backward", "grid_flags", True)}
    expected |= {(direction, "stepwise", None) for direction in ("forward", "backward")}
    assert seen == expected  # every engine and direction came up


def test_every_tiling_is_planned_for_some_layer(planner):
    """What is compiled is used: no dead instance, and none that exceeds a GPU."""
    unused = {
        (engine, forward, bytes, tiling)
        for engine in ("block", "cluster", "grid", "grid_flags")
        for forward in (True, False)
        for bytes in (2, 4)
        for tiling in planner.table(engine, forward, bytes)
    }
    device = planner.device("H100")
    for engine in ("block", "cluster", "grid", "grid_flags"):
        for precision in ("bfloat16", "tf32"):
            for H in (16, 32, 64, 100, 128, 200, 256, 384, 512, 700, 768, 1000, 1536):
                for B in (8, 600):
                    problem = Problem(35, B, 16, H, precision=precision, untied=False)
                    try:
                        result = plan(planner, problem, device, engine)
                    except RuntimeError:
                        continue
                    for direction in ("forward", "backward"):
                        r = result[direction]
                        if r["engine"] == "stepwise":
                            continue
                        tiling = (r["chunks"], r["k_warps"], r["unit_tiles"], r["looped"])
                        unused.discard((r["engine"], direction == "forward", problem.bytes, tiling))
    assert not unused


def test_more_multiprocessors_are_never_slower(planner):
    rng = random.Random(1)
    for _ in range(300):
        problem = random_problem(rng)
        times = [
            plan(planner, problem, planner.Device(multiprocessors=count))["forward"][
                "microseconds_per_step"
            ]
            for count in (50, 100, 200)
        ]
        assert times == sorted(times, reverse=True), problem


# ---- the model of time


def microseconds(planner, device, engine, *sizes, direction="forward", **options):
    result = plan(planner, Problem(*sizes, **options), device, engine)
    return result[direction]["microseconds_per_step"]


def test_the_same_work_takes_longer_where_tensor_cores_or_l2_are_slower(planner):
    """The RTX cards multiply at a quarter of an A100's rate a cycle, at a higher clock."""
    sizes = (100000, 8, 768, 768)
    ours = {gpu: microseconds(planner, planner.device(gpu), "grid", *sizes) for gpu in GPUS}
    assert ours["B200"] < ours["H100"] == ours["H200"] < ours["RTX 5090"]
    assert ours["H100"] < ours["A100"]


def test_backward_is_bound_by_l2_where_all_blocks_read_at_once(planner):
    """dz of every gate, for each of 96 blocks: 4.7 MB a step, at 5.6 TB/s."""
    step = {
        tiles: microseconds(planner, planner.device("H100"), "grid", 100000, 8 * tiles, 768, 768,
                            direction="backward")
        for tiles in (1, 2)
    }  # fmt: skip
    assert 0.2 < step[2] - step[1] < 0.5
    assert step[2] > 4.7 / 5.6


def test_stepwise_waits_for_the_cpu_or_for_the_gpu(planner):
    h100 = planner.device("H100")
    small = microseconds(planner, h100, "stepwise", 35, 20, 200, 200)
    assert small == microseconds(planner, h100, "stepwise", 35, 64, 200, 200)
    assert microseconds(planner, h100, "stepwise", 35, 20, 200, 200, cell="gru_reset_before") == (
        2 * small
    )
    assert microseconds(planner, h100, "stepwise", 35, 4000, 650, 650) > 5 * small


def test_stepwise_in_tf32_multiplies_in_float32(planner):
    """Its products follow torch's setting for matrix products, not that of the recurrence."""
    h100 = planner.device("H100")
    times = [
        microseconds(planner, h100, "stepwise", 35, 2000, 650, 650, precision=precision)
        for precision in ("tf32", "float32", "bfloat16")
    ]
    assert times[0] == times[1] > 3 * times[2]


# ---- known devices


def test_known_devices(planner):
    assert planner.device_names() == GPUS
    assert planner.device("rtx 4090").name == "RTX 4090"
    assert planner.device("H100").multiprocessors == 132
    message = re.escape("gpu: expected one of A100, H100, H100 PCIe, H200, B200, RTX 4090")
    with pytest.raises(RuntimeError, match=message):
        planner.device("GTX 1080")
