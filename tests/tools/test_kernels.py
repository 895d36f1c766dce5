"""The report behind `make kernels`: reads what ptxas says and fails where a kernel spills."""

import kernels
import pytest
from kernels import Kernel, LogError

# Of nvcc 13.0, shortened: two kernels on two architectures, the second with a function that is not
# inlined.
CLEAN = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4brnn4cuda4fillEPf' for 'sm_80'
ptxas info    : Function properties for _ZN4brnn4cuda4fillEPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 1 barriers, 256 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 2.312 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4brnn4cuda4fillEPf' for 'sm_90a'
ptxas info    : Function properties for _ZN4brnn4cuda4fillEPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers
ptxas info    : Compile time = 3.001 ms
"""
SPILLS = """
ptxas info    : Compiling entry function '_ZN4brnn4cuda5tightEPf' for 'sm_90a'
ptxas info    : Function properties for _ZN4brnn4cuda5tightEPf
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size
"""
STACK = SPILLS.replace("12 bytes spill", "0 bytes spill").replace("16 bytes spill", "0 bytes spill")
CALLS = """
ptxas info    : Compiling entry function '_ZN4brnn4cuda5callsEPf' for 'sm_120'
ptxas info    : Function properties for _ZN4brnn4cuda6helperEf
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _ZN4brnn4cuda5callsEPf
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""


def test_reads_registers_shared_memory_and_spills():
    assert kernels.parse(CLEAN) == [
        Kernel("_ZN4brnn4cuda4fillEPf", "sm_80", 8, 256, 0, 0, 0),
        Kernel("_ZN4brnn4cuda4fillEPf", "sm_90a", 10, 0, 0, 0, 0),
    ]
    assert kernels.parse(SPILLS) == [Kernel("_ZN4brnn4cuda5tightEPf", "sm_90a", 255, 0, 8, 12, 16)]
    assert kernels.parse("ptxas info    : 0 bytes gmem\n") == []


def test_what_a_kernel_calls_counts_as_its_own():
    assert kernels.parse(CALLS) == [Kernel("_ZN4brnn4cuda5callsEPf", "sm_120", 40, 0, 40, 4, 4)]


@pytest.mark.parametrize(
    "log",
    [
        SPILLS.split("ptxas info    : Used")[0],  # cut off
        SPILLS.split("ptxas info    : Used")[0] + SPILLS,  # two at once
        "ptxas info    : Used 40 registers, used 0 barriers",
    ],
)
def test_a_damaged_log_is_an_error(log):
    with pytest.raises(LogError):
        kernels.parse(log)


def report(tmp_path, capsys, **logs):
    """Exit status and output of the report on these logs."""
    for name, text in logs.items():
        (tmp_path / f"{name}.ptxas").write_text(text)
    status = kernels.main([str(tmp_path)])
    return status, capsys.readouterr().out


def test_passes_without_spills(tmp_path, capsys):
    status, output = report(tmp_path, capsys, clean=CLEAN)
    assert status == 0
    lines = output.splitlines()
    assert lines[2].split() == ["sm_80", "sm_90a"]
    assert lines[3:5] == ["clean", "  fill 8 s256     10"]
    assert lines[-1] == "0 of 2 kernels spill or have a stack frame"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            SPILLS,
            "tight on sm_90a: stack frame of 8 bytes, 12 bytes of spill stores, 16 of loads",
        ),
        (STACK, "tight on sm_90a: stack frame of 8 bytes, 0 bytes of spill stores, 0 of loads"),
        (CALLS, "calls on sm_120: stack frame of 40 bytes, 4 bytes of spill stores, 4 of loads"),
    ],
)
def test_fails_on_a_spill(tmp_path, capsys, log, said):
    status, output = report(tmp_path, capsys, clean=CLEAN, other=log)
    assert status == 1
    assert output.splitlines()[-2:] == [
        "1 of 3 kernels spill or have a stack frame",
        f"  {said}",
    ]


@pytest.mark.parametrize(
    ("exception", "status"),
    [
        (("^tight$", "sm_90a", "a reason"), 0),
        (("^tight$", "", "a reason"), 0),
        (("^tight$", "sm_80", "a reason"), 1),
        (("^fill$", "", "a reason"), 1),
    ],
)
def test_an_exception_names_kernel_and_reason(tmp_path, capsys, monkeypatch, exception, status):
    monkeypatch.setattr(kernels, "EXCEPTIONS", [exception])
    actual, output = report(tmp_path, capsys, spills=SPILLS)
    assert actual == status
    assert "a reason" in output


def test_an_exception_excuses_few_values_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "EXCEPTIONS", [("^tight$", "", "a reason")])
    monkeypatch.setattr(kernels, "MOST_SPILLED", 8)
    status, _ = report(tmp_path, capsys, spills=SPILLS)
    assert status == 1


def test_no_kernels_is_a_failure(tmp_path, capsys):
    status, output = report(tmp_path, capsys)
    assert status == 1
    assert output == "make kernels: no kernel was compiled\n"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (None, "build.ninja not found; build first: pip install -e ."),
        ("rule cxx\n", "the package was built without CUDA: install the CUDA toolkit"),
    ],
)
def test_a_build_without_kernels_is_one_clear_line(tmp_path, monkeypatch, rules, message):
    monkeypatch.setattr(kernels, "BUILD", tmp_path)
    if rules:
        (tmp_path / "build.ninja").write_text(rules)
    with pytest.raises(SystemExit) as exit:
        kernels.main([])
    assert str(exit.value).startswith("make kernels: ") and message in str(exit.value)


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("void brnn::cuda::fill(float*)", "fill"),
        ("brnn::cuda::(anonymous namespace)::read(brnn::cuda::Params)", "read"),
        (
            "void brnn::cuda::forward_kernel<brnn::Lstm, brnn::bfloat16, brnn::cuda::GridExchange<"
            "brnn::bfloat16, brnn::cuda::Tile<brnn::cuda::Tiling{3, 8, 1, false, 0}>, 1>, "
            "brnn::cuda::Tile<brnn::cuda::Tiling{3, 8, 1, false, 0}>, (brnn::cuda::MaskForm)1>("
            "brnn::cuda::ForwardParams<brnn::bfloat16>)",
            "forward_kernel<Lstm, bfloat16, grid, 3x8x1, ready masks>",
        ),
        (
            "void brnn::cuda::backward_kernel<brnn::Gru, float, brnn::cuda::SharedExchange<float, "
            "brnn::cuda::Tile<brnn::cuda::Tiling{4, 1, 8, false, 0}>, 3, false>, "
            "brnn::cuda::Tile<brnn::cuda::Tiling{4, 1, 8, false, 0}> >("
            "brnn::cuda::BackwardParams<float>)",
            "backward_kernel<Gru, float, block, 4x1x8>",
        ),
        (
            "void brnn::cuda::f<brnn::cuda::SharedExchange<float, brnn::cuda::Tile<"
            "brnn::cuda::Tiling{1, 4, 2, true, 0}>, 1, true> >(int)",
            "f<cluster>",
        ),
        (
            "brnn::cuda::g<brnn::cuda::Tile<brnn::cuda::Tiling{3, 8, 1, true, 6}> >()",
            "g<3x8x1+loop+6>",
        ),
    ],
)
def test_short_names(demangled, short):
    assert kernels.short(demangled) == short
