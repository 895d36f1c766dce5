// bind_recurrence.cpp - a whole layer by products.cuh and the persistent kernels, in the emulator.
#include "bind_recurrence.h"

#include "cuda/stepwise/products.cuh"

namespace brnn::testing {
namespace {

template <class S>
void forward(Cell cell, const Forward<S>& layer, const py::dict& how) {
  const Host host{nullptr, nullptr, multiply};
  const int G = cell == Cell::lstm ? 4 : 3;
  const Block own_gates(layer.gates ? 0 : layer.T * layer.B * G * layer.H * sizeof(S));
  S* gates = layer.gates ? layer.gates : static_cast<S*>(own_gates.data());
  const Recurrence plan = cut(Pass::forward, how, cell, layer);
  if (!plan.fused_input) {
    const Block input(library::input_part_scratch_bytes(cell, layer));
    library::input_part(cell, layer, gates, host, input.data());
  }
  const Block block(recurrence::forward_scratch_bytes(plan, cell, layer));
  recurrence::forward(plan, cell, layer, gates, block.data(), nullptr);
  block.check();
  own_gates.check();
}

template <class S>
void backward(Cell cell, const Backward<S>& layer, const py::dict& how) {
  const Host host{nullptr, nullptr, multiply};
  const Block dz_block(layer.T * layer.B * 4 * layer.H * sizeof(S));
  S* dz = static_cast<S*>(dz_block.data());
  const Recurrence plan = cut(Pass::backward, how, cell, layer);
  const Block block(recurrence::backward_scratch_bytes(plan, cell, layer));
  recurrence::backward(plan, cell, layer, dz, block.data(), nullptr);
  block.check();
  dz_block.check();
  const Block weights(library::weight_gradients_scratch_bytes(cell, layer));
  library::weight_gradients(cell, layer, dz, host, weights.data());
  if (!layer.dx) return;
  const Block input(library::input_gradient_scratch_bytes(cell, layer));
  library::input_gradient(cell, layer, dz, host, input.data());
}

// The types that have persistent kernels; float32 runs as tf32.
template <class F>
void with_kernel_type(const std::string& dtype, const F& f) {
  with_type(dtype, [&](auto s) {
    if constexpr (sizeof(s) <= 4)
      f(s);
    else
      throw std::invalid_argument("dtype " + dtype);
  });
}

}  // namespace

PYBIND11_MODULE(bind_recurrence, m) {
  emu::bind_controls(m);
  m.doc() = "forward and backward of a layer; how: {engine, tiling, groups, fused_input}.";
  m.def("forward",
        [](const std::string& cell, const std::string& dtype, py::dict fields, py::dict how) {
          with_kernel_type(dtype, [&](auto s) {
            forward(cell_of(cell), forward_layer<decltype(s)>(Fields(fields)), how);
          });
        });
  m.def("backward",
        [](const std::string& cell, const std::string& dtype, py::dict fields, py::dict how) {
          with_kernel_type(dtype, [&](auto s) {
            backward(cell_of(cell), backward_layer<decltype(s)>(Fields(fields)), how);
          });
        });
}

}  // namespace brnn::testing
