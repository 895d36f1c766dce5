"""bench/sass.py: what it counts in a disassembly, made by hand, of a loop over time steps."""

import pytest

from bench import sass

NONE = 7  # no scoreboard


def line(at: int, text: str, stall: int = 1, sets: int = NONE, waits: int = 0) -> str:
    """As cuobjdump prints an instruction, with what ptxas tells the hardware in its second word."""
    word = (stall | sets << 5 | waits << 11) << 41
    pad = " " * 40
    return (
        f"        /*{at:04x}*/   {text} ;   /* 0x00000a00ff017b82 */\n{pad} /* 0x{word:016x} */\n"
    )


# Two warps' worth of nothing, a poll that is asked again, two mma that follow each other, a branch
# around a reset, a conversion, the publication, a store; the loop ends before a division's detour.
LOOP = "".join([
    line(0x00, "MOV R1, RZ"),
    line(0x10, "LDC R2, c[0x0][0x210]", sets=1),
    line(0x20, "LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64]", stall=2, sets=0, waits=0b10),
    line(0x30, "ISETP.EQ.AND P0, PT, R4, -0x1, PT", stall=13, waits=0b1),
    line(0x40, "@!P0 BRA 0x0080", stall=5),
    line(0x50, "LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64]", stall=2, sets=0),
    line(0x60, "ISETP.EQ.AND P0, PT, R4, -0x1, PT", stall=13, waits=0b1),
    line(0x70, "@P0 BRA 0x0050", stall=5),
    line(0x80, "HMMA.16816.F32.BF16 R8, R20, R4, RZ", stall=6),
    line(0x90, "HMMA.16816.F32.BF16 R8, R24, R6, R8", stall=6),
    line(0xA0, "FADD R12, R8, R9", stall=4),
    line(0xB0, "@P1 BRA 0x00d0", stall=5),
    line(0xC0, "FSEL R12, R12, RZ, P2", stall=5),
    line(0xD0, "F2F.F32.F64 R13, UR10", sets=2),
    line(0xE0, "BRA.DIV UR4, 0x0150", stall=5),
    line(0xF0, "STG.E.STRONG.GPU desc[UR4][R2.64], R12", waits=0b100),
    line(0x100, "STG.E.U16 desc[UR4][R2.64+0x80], R12", stall=2),
    line(0x110, "@P3 BRA 0x0010", stall=5),
    line(0x120, "EXIT"),
    line(0x150, "WARPSYNC.ALL"),
    line(0x160, "BRA 0x00f0"),
])  # fmt: skip
DUMP = (
    f"\n\tcode for sm_90a\n\t\tFunction : loop\n{LOOP}\n\t\tFunction : straight\n{line(0, 'EXIT')}"
)
NAME = "forward_kernel<Lstm, bfloat16, grid, 1x8x1, no masks, 0>"


@pytest.fixture
def loop() -> sass.Kernel:
    found = {k.name: k for k in sass.parse(DUMP)}
    assert list(found) == ["loop", "straight"]
    return found["loop"]


def opcodes(code: sass.Block) -> list[str]:
    return [i.opcode.split(".")[0] for i in code]


def test_a_step_is_cut_where_it_looks_multiplies_and_publishes(loop):
    pieces = sass.parts(*sass.Graph(loop.instructions).time_loop())
    assert opcodes(pieces["before"]) == ["LDC", "LDG"]
    assert opcodes(pieces["products"]) == ["ISETP", "BRA", "HMMA", "HMMA"]
    assert opcodes(pieces["path"]) == ["FADD", "BRA", "FSEL", "F2F", "BRA", "STG"]  # no detour
    assert opcodes(pieces["after"]) == ["STG", "BRA"]
    assert opcodes(pieces["again"]) == ["LDG", "ISETP", "BRA"]


def test_times_follow_stalls_scoreboards_and_mma(loop):
    way, _ = sass.Graph(loop.instructions).time_loop()
    at = dict(zip((i.address for i in way), sass.cycles(way), strict=False))
    assert at[0x20] == sass.LATENCY["ldc"]  # the load's address
    assert at[0x30] == at[0x20] + 2  # what others publish is there
    assert at[0x90] == at[0x80] + sass.LATENCY["mma"]
    assert at[0xA0] == at[0x90] + sass.LATENCY["mma"]
    assert at[0xF0] == at[0xD0] + sass.LATENCY["convert"]


def test_the_report_knows_warps_and_rates(loop):
    lines = sass.report(NAME, loop.instructions, "90a")
    assert [line.split()[0] for line in lines] == list(sass.PARTS)
    products = lines[1].split()
    assert products[1] == "4"
    assert products[-4:-1] == ["84", "8", "32"]  # 8 warps: 4 * 8 / 4; 2 * 8 * 2 of mma
    gigahertz, _ = sass.rates("90a")
    assert float(products[-1]) == pytest.approx(84 / gigahertz / 1e3, abs=5e-4)


def test_a_kernel_without_a_loop_has_no_report():
    straight = list(sass.parse(DUMP))[1]
    assert sass.report(NAME, straight.instructions, "90a") == []


def test_no_disassembler_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(SystemExit, match="cuobjdump not found"):
        sass.disassemble(tmp_path / "some.o")
