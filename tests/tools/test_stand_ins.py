"""The check behind `make kernels`: calls of device functions from host code, as nvcc compiles them.

Each case is compiled by nvcc itself, so a toolkit that puts something else in their place is seen.
"""

import subprocess

import kernels
import pytest
import stand_ins

from building.cuda_toolkit import cuda_home

HOME = cuda_home()
needs_nvcc = pytest.mark.skipif(not HOME, reason="needs nvcc: pip install -e '.[cuda]'")

FUNCTION = "__device__ inline int f(int x) { return x + 1; }\n"
TEMPLATE = "template <class T> T g(T x) { %s }\nint host(int x) { return g(x); }\n"
# Name, code, the function that calls the stand-in, and the stand-in.
PLANTED = [
    ("function", FUNCTION + TEMPLATE % "return f(x);", "host(int)", "exit"),
    ("void", FUNCTION + TEMPLATE % "f(x); return x;", "host(int)", "exit"),
    (
        "template",
        "template <class T> __device__ T f(T x) { return x; }\n" + TEMPLATE % "return f<T>(x);",
        "host(int)",
        "exit",
    ),
    ("lambda", FUNCTION + TEMPLATE % "return [&] { return f(x); }();", "host(int)", "exit"),
    ("pointer", FUNCTION + "auto host() { return &f; }", "f(int)", "exit"),
    (
        "method",
        "template <class T> struct S { __device__ T f(T x) { return x; } };\n"
        + TEMPLATE % "return S<T>{}.f(x);",
        "host(int)",
        "exit",
    ),
    (
        "constructor",
        "struct S { int v; __device__ S(int x) : v(x) {} };\n" + TEMPLATE % "return S(x).v;",
        "host(int)",
        "free",
    ),
    (
        "destructor",
        "struct S { int v; __device__ ~S() { v = 0; } };\n" + TEMPLATE % "return S{x}.v;",
        "host(int)",
        "free",
    ),
]
CLEAN = """
__host__ __device__ inline int f(int x) { return x + 1; }
__device__ constexpr int twice(int x) { return 2 * x; }  // nvcc keeps its body for the host
__global__ void kernel(int* p) { *p = f(*p); }
template <class T> void g(T* p) { kernel<<<f(0), twice(T(1))>>>(p); }
void host(int* p) { g(p); }
"""


def compiled(folder, name, code):
    """The object of this code, by the flags that matter of those that build the package."""
    source = folder / f"{name}.cu"
    source.write_text(code)
    target = source.with_suffix(".o")
    nvcc = [str(HOME / "bin/nvcc"), "-std=c++20", "-O3", "-Xcompiler", "-fPIC", "-arch=sm_80"]
    subprocess.run([*nvcc, "-c", str(source), "-o", str(target)], check=True)
    return target


@needs_nvcc
@pytest.mark.parametrize(("name", "code", "caller", "symbol"), PLANTED, ids=[p[0] for p in PLANTED])
def test_a_call_across_is_found(tmp_path, name, code, caller, symbol):
    (line,) = stand_ins.refused(compiled(tmp_path, name, code))
    assert line.startswith(f"{name}.o: {caller}")
    assert f" calls {symbol}, which nvcc puts in place of " in line
    assert line.endswith("make that __host__ __device__, or call it from device code alone")


@needs_nvcc
def test_what_is_meant_for_both_sides_passes(tmp_path):
    assert stand_ins.refused(compiled(tmp_path, "clean", CLEAN)) == []


@needs_nvcc
def test_make_kernels_fails_on_it(tmp_path, capsys):
    (tmp_path / "fill.ptxas").write_text(
        "ptxas info    : Compiling entry function 'fill' for 'sm_80'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 8 registers, used 0 barriers\n"
    )
    compiled(tmp_path, "clean", CLEAN)
    assert kernels.main([str(tmp_path)]) == 0
    counted = "calls of device functions from host code in"
    assert f"\n0 {counted} 1 objects\n" in capsys.readouterr().out
    compiled(tmp_path, "planted", PLANTED[0][1])
    assert kernels.main([str(tmp_path)]) == 1
    assert f"\n1 {counted} 2 objects\n  planted.o: host(int) calls " in capsys.readouterr().out
