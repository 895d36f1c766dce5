"""The CPU engine of 64-bit ARM, portable and for NEON: the engine's own tests, run by qemu.

It takes GCC for aarch64 and qemu's user emulation, and no torch for that processor. `make test-arm`
says what to install.
"""

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Case, parity
from emulated import DISASSEMBLER, MISSING, ROOT, Emulated, compile_one, link, sources

sys.path.append(str(Path(__file__).resolve().parents[1] / "cpu"))
import test_cpu_engine

pytestmark = [
    pytest.mark.slow,  # ten minutes, of which three to compile
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.usefixtures("two_threads"),
]
ISAS = ("neon", "portable")
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def objects(tmp_path_factory) -> dict[str, Path]:
    """Of the engine: all that a build on an ARM machine makes of csrc/cpu."""
    folder = tmp_path_factory.mktemp("arm")
    engine = [source for source in sources() if source.is_relative_to(ROOT / "csrc/cpu")]
    return {source.stem: compile_one(source, folder) for source in engine}


@pytest.fixture(scope="session")
def program(objects, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    return link([*objects.values(), compile_one(HERE / "driver.cpp", folder)], folder)


@pytest.fixture(params=ISAS)
def emulated(request, program):
    """The ops are those of ARM while a test runs, and it has called them."""
    engine = Emulated(program, request.param)
    with engine.installed():
        yield engine
    assert engine.calls


# ---- The engine's tests, as they stand

on_arm = pytest.mark.usefixtures("emulated")


def again(test):
    """The same test as another function: a mark stays on the function that it is put on."""
    return functools.wraps(test)(lambda *args, **kwargs: test(*args, **kwargs))


@on_arm
def test_activations():
    test_cpu_engine.check_activations()


@on_arm
def test_bfloat16_rounding():
    test_cpu_engine.check_bfloat16_rounding()


@on_arm
def test_parity():
    """Outputs and every gradient of each cell, dtype and kind of mask, with the reference's."""
    test_cpu_engine.check_parity()


@on_arm
def test_number_of_threads():
    """The same bits; of one cell and dtype, since qemu takes its time."""
    test_cpu_engine.check_threads(torch.float32, ["lstm"])


for _test in (
    test_cpu_engine.test_threads_that_share_a_layer,
    test_cpu_engine.test_a_sequence_does_not_depend_on_its_batch,
    test_cpu_engine.test_repeated_calls_give_the_same_bits,
    test_cpu_engine.test_a_spoilt_sequence_spoils_no_other,
    test_cpu_engine.test_infinite_input_saturates_as_the_reference,
):
    globals()[_test.__name__] = on_arm(again(_test))


# ---- What is of this processor alone


def test_choice(program):
    """NEON where nothing is said; a name that no ARM machine has is an error."""
    assert Emulated(program).run() == "neon"
    assert [Emulated(program, isa).run() for isa in ISAS] == list(ISAS)
    with pytest.raises(RuntimeError, match=r"expected one of neon, portable .*, got 'avx2'"):
        Emulated(program, "avx2").run()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_masks_are_those_of_every_processor(program, isa, count):
    for seed, p in ((7, 0.3), (-(2**62), 0.5)):
        here = torch.ops.bayesrnn.sample_keep(torch.tensor([seed]), count, p)
        assert torch.equal(Emulated(program, isa).sample_keep(seed, count, p), here)


@pytest.fixture(scope="session")
def disassembly(objects) -> str:
    command = [DISASSEMBLER, "-dC", "--no-show-raw-insn", str(objects["neon"])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def inner_loop(disassembly: str, kernel: str) -> list[str]:
    """The instructions of a microkernel's loop over k, the one that has most products."""
    start = re.search(rf"^\w+ <void brnn::neon::microkernel<{kernel}>", disassembly, re.M)
    assert start, f"{kernel}: not in the object"
    function = disassembly[start.end() :].split("\n\n", 1)[0]
    code = [
        (int(at, 16), op, operands)
        for at, op, operands in re.findall(r"^ *(\w+):\t(\S+)(?:\t([^<\n]*))?", function, re.M)
    ]
    back = [(int(to, 16), at) for at, op, to in code if op.startswith("b.") and int(to, 16) < at]
    loops = [[f"{op} {what}" for at, op, what in code if a <= at <= b] for a, b in back]
    return max(loops, key=lambda loop: sum("fmla" in line for line in loop))


@pytest.mark.parametrize("number", ["float", "double"])
@pytest.mark.parametrize(("rows", "vectors"), [(6, 4), (8, 3), (12, 2)])
def test_microkernels_keep_their_sums_in_registers(disassembly, number, rows, vectors):
    """Four steps of 24 sums: products by element, loads, prefetches; no spill, no move."""
    loop = inner_loop(disassembly, f"{number}, {rows}, {vectors}, 1")
    products = [line for line in loop if line.startswith("fmla")]
    assert len(products) == 4 * rows * vectors
    assert all(re.search(r"\.[sd]\[0\]", line) for line in products)
    assert not [line for line in loop if "[sp" in line or line.startswith("mov")]
    others = {line.split()[0] for line in loop if line not in products}
    assert others <= {"ldr", "ldp", "ldur", "prfm", "add", "cmp", "b.hi"}


def test_the_rest_of_the_library_compiles(tmp_path):
    """What meets torch: with this machine's headers, since torch is not linked."""
    headers = Path(torch.__file__).parent / "include"
    rest = [source for source in sources() if not source.is_relative_to(ROOT / "csrc/cpu")]
    assert ROOT / "csrc/ops.cpp" in rest
    for source in rest:
        compile_one(source, tmp_path, "-O0", "-isystem", str(headers),
                    '-DBRNN_CUDA_ARCHITECTURES=""')  # fmt: skip


def test_a_bug_is_found(objects, program, tmp_path):
    """Double's products take the wrong element; those of float are right."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    kernels = tmp_path / "csrc/cpu/microkernel.h"
    right = kernels.read_text()
    assert right.count("%2.d[0]") == 1
    kernels.write_text(right.replace("%2.d[0]", "%2.d[1]"))
    wrong = compile_one(tmp_path / "csrc/cpu/isa/neon.cpp", tmp_path, "-O1", csrc=tmp_path / "csrc")
    driver = compile_one(HERE / "driver.cpp", tmp_path)
    others = [path for name, path in objects.items() if name != "neon"]
    case = Case("lstm", B=5, H=17)
    with Emulated(link([*others, wrong, driver], tmp_path), "neon").installed():
        assert any(line.startswith("y: ") for line in parity(case, torch.float64))
        assert not parity(case, torch.float32)
    with Emulated(program, "neon").installed():
        assert not parity(case, torch.float64)
