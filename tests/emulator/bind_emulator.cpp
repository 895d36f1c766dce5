// bind_emulator.cpp - the kernels that test the emulator, for test_emulator.py, test_primitives.py.
#include "bindings.h"
#include "emulator_bugs.cuh"
#include "emulator_kernels.cuh"

namespace brnn::testing {
namespace {

// The enumerator of that name.
template <class E, size_t N>
E find(const char* const (&names)[N], const std::string& name) {
  for (size_t i = 0; i < N; ++i)
    if (name == names[i]) return E(i);
  throw py::value_error("no bug is called " + name);
}

void run_mma(int type, py::object a, py::object b, py::object c) {
  emu::Arrays arrays;
  launch<MmaParams>(mma_kernel, {1, 1, 1, 32, 0, 1, false}, nullptr,
                    {type, arrays.in<uint32_t>(a, "a", {16, 8}),
                     arrays.in<uint32_t>(b, "b", {8, 8}), arrays.out<float>(c, "c", {16, 8})});
}

void run_matrices(py::object matrices, py::object words, bool transposed) {
  emu::Arrays arrays;
  launch<MatricesParams>(matrices_kernel, {1, 1, 1, 32, 512, 1, false}, nullptr,
                         {arrays.in<uint16_t>(matrices, "matrices", {4, 8, 8}),
                          arrays.out<uint32_t>(words, "words", {32, 4}), transposed});
}

void run_numbers(py::array x, py::object bits, py::object widened) {
  emu::Arrays arrays;
  const int n = int(x.size());
  launch<NumbersParams>(numbers_kernel, {1, 1, 1, 32, 0, 1, false}, nullptr,
                        {arrays.in<float>(x, "x", {n}), arrays.out<uint32_t>(bits, "bits", {n, 5}),
                         arrays.out<uint32_t>(widened, "widened", {n, 2}), n});
}

void run_warp(py::object out) {
  emu::Arrays arrays;
  launch<WarpParams>(warp_kernel, {1, 1, 1, 64, 0, 1, false}, nullptr,
                     {arrays.out<int>(out, "out", {64, 5})});
}

void run_copy(py::array from, py::object to, int bug) {
  emu::Arrays arrays;
  const int64_t blocks = from.shape(0);
  launch<CopyParams>(copy_kernel, {unsigned(blocks), 1, 1, 32, 160 * 4, 1, false}, nullptr,
                     {arrays.in<uint32_t>(from, "from", {blocks, 128}),
                      arrays.out<uint32_t>(to, "to", {blocks, 128}), bug});
}

// h [T+1, N], flags [T, N/32 + 1]; cooperative where blocks wait for each other's memory.
void run_steps(const std::string& how, py::array h, py::array flags, const std::string& bug) {
  emu::Arrays arrays;
  const int T = int(h.shape(0)) - 1, N = int(h.shape(1)), blocks = N / 32;
  const StepParams params{arrays.out<uint32_t>(h, "h", {T + 1, N}),
                          arrays.out<uint32_t>(flags, "flags", {T, blocks + 1}), T, N,
                          find<StepBug>(step_bug_names, bug)};
  const int cluster = how == "cluster" ? blocks : 1;
  const Grid grid{unsigned(blocks), 1, 1, 32, 2 * N * 4, cluster, how != "cluster"};
  const auto kernel = how == "flags" ? flags_kernel : how == "data" ? data_kernel : cluster_kernel;
  launch<StepParams>(kernel, grid, nullptr, params);
}

void run_bug(const std::string& bug, py::object out, int blocks, bool cooperative) {
  emu::Arrays arrays;
  launch<BugParams>(bug_kernel, {unsigned(blocks), 1, 1, 64, 64 * 4, 1, cooperative}, nullptr,
                    {find<Bug>(bug_names, bug), arrays.out<uint32_t>(out, "out", {256})});
}

void run_barriers(py::array out, int steps) {
  emu::Arrays arrays;
  const int blocks = int(out.shape(0)), threads = int(out.shape(1));
  launch<BarrierParams>(barrier_kernel, {unsigned(blocks), 1, 1, threads, threads * 4, 1, true},
                        nullptr, {arrays.out<float>(out, "out", {blocks, threads}), steps});
}

}  // namespace

PYBIND11_MODULE(bind_emulator, m) {
  emu::bind_controls(m);
  m.def("mma", &run_mma);
  m.def("matrices", &run_matrices);
  m.def("numbers", &run_numbers);
  m.def("warp", &run_warp);
  m.def("copy", &run_copy);
  m.def("steps", &run_steps);
  m.def("bug", &run_bug, py::arg("bug"), py::arg("out"), py::arg("blocks") = 1,
        py::arg("cooperative") = true);
  m.def("barriers", &run_barriers);
}

}  // namespace brnn::testing
