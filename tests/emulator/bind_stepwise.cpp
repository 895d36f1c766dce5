// bind_stepwise.cpp - a whole layer by products.cuh and stepwise.cuh, in the emulator.
#include "bind_layer.h"
#include "cuda/stepwise/products.cuh"
#include "cuda/stepwise/stepwise.cuh"

namespace brnn::testing {
namespace {

template <class S>
int64_t forward(Cell cell, const Forward<S>& layer) {
  const int G = cell == Cell::lstm ? 4 : 3;
  int64_t products = 0;
  const cuda::Host host{nullptr, &products, multiply};
  const Block own_gates(layer.gates ? 0 : layer.T * layer.B * G * layer.H * sizeof(S), "gates");
  S* gates = layer.gates ? layer.gates : static_cast<S*>(own_gates.data());
  const Block input(cuda::library::input_part_scratch_bytes(cell, layer));
  cuda::library::input_part(cell, layer, gates, host, input.data());
  input.check();
  products = 0;
  const Block block(cuda::stepwise::forward_scratch_bytes(cell, layer));
  cuda::stepwise::forward(cell, layer, gates, host, block.data());
  block.check();
  own_gates.check();
  return products;
}

template <class S>
int64_t backward(Cell cell, const Backward<S>& layer) {
  const int slots = cell == Cell::gru_reset_before ? 3 : 4;
  int64_t products = 0;
  const cuda::Host host{nullptr, &products, multiply};
  const Block dz_block(layer.T * layer.B * slots * layer.H * sizeof(S), "dz");
  S* dz = static_cast<S*>(dz_block.data());
  const Block block(cuda::stepwise::backward_scratch_bytes(cell, layer));
  cuda::stepwise::backward(cell, layer, dz, host, block.data());
  block.check();
  dz_block.check();
  const int64_t of_recurrence = products;
  const Block weights(cuda::library::weight_gradients_scratch_bytes(cell, layer));
  cuda::library::weight_gradients(cell, layer, dz, host, weights.data());
  weights.check();
  if (!layer.dx) return of_recurrence;
  const Block input(cuda::library::input_gradient_scratch_bytes(cell, layer));
  cuda::library::input_gradient(cell, layer, dz, host, input.data());
  input.check();
  return of_recurrence;
}

}  // namespace

PYBIND11_MODULE(bind_stepwise, m) {
  emu::bind_controls(m);
  m.doc() = "forward and backward of a layer; both return the products of the recurrence.";
  m.def("forward", [](const std::string& cell, const std::string& dtype, py::dict fields) {
    return with_type(dtype, [&](auto s) {
      return forward(cell_of(cell), forward_layer<decltype(s)>(Fields(fields)));
    });
  });
  m.def("backward", [](const std::string& cell, const std::string& dtype, py::dict fields) {
    return with_type(dtype, [&](auto s) {
      return backward(cell_of(cell), backward_layer<decltype(s)>(Fields(fields)));
    });
  });
}

}  // namespace brnn::testing
