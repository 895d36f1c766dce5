// bind_gate_gemm.h - the three products of gate_gemm.h with tiles as a test wants them.
#pragma once

#include "bind_layer.h"
#include "cuda/gate_gemm/host.cuh"

namespace brnn::testing {

inline std::string seeded_bug;  // what is wrong on purpose; bind_gate_gemm_bugs.cpp has some more

// Parameters that say something else than the layer.
template <class S>
void plant(cuda::gate_gemm::InputPart<S>& p) {
  if (seeded_bug == "mask of another gate") p.x.gate_rows = 0;
}
template <class S>
void plant(cuda::gate_gemm::InputGradient<S>& p) {
  if (seeded_bug == "another slot") std::swap(p.column[0], p.column[1]);
  if (seeded_bug == "mask too late") p.gate_stride = 0;
}
template <class S>
void plant(cuda::gate_gemm::WeightGradients<S>& p) {
  if (seeded_bug == "row of the wrong step") p.product[1].operand.shift = 0;
  if (seeded_bug == "a split too few") p.splits = 2;
}

// Calls launch(Shape) with the tiles of that name; "auto" calls choose() instead.
template <class Choose, class Launch>
void with_tiles(const std::string& tiles, const Choose& choose, const Launch& launch) {
  if (tiles == "auto") return choose();
  if (tiles == "large") return launch(cuda::gate_gemm::Large{});
  if (tiles == "small") return launch(cuda::gate_gemm::Small{});
  throw std::invalid_argument("tiles " + tiles);
}

template <class S>
void input_part(Cell cell, const Forward<S>& layer, const std::string& tiles) {
  with_tiles(
      tiles, [&] { cuda::gate_gemm::input_part(cell, layer, layer.gates, nullptr); },
      [&](auto shape) {
        auto params = cuda::gate_gemm::input_part_of(cell, layer, layer.gates);
        plant(params);
        cuda::gate_gemm::launch_input_part<decltype(shape)>(params, nullptr);
      });
}

template <class S>
void input_gradient(Cell cell, const Backward<S>& layer, const std::string& tiles,
                    uintptr_t address) {
  const S* dz = reinterpret_cast<const S*>(address);
  with_tiles(
      tiles, [&] { cuda::gate_gemm::input_gradient(cell, layer, dz, nullptr); },
      [&](auto shape) {
        auto params = cuda::gate_gemm::input_gradient_of(cell, layer, dz);
        plant(params);
        cuda::gate_gemm::launch_input_gradient<decltype(shape)>(params, nullptr);
      });
}

// Returns into how many splits k was cut, as scratch tells. splits: wanted, unless "auto".
template <class S>
int64_t weight_gradients(Cell cell, const Backward<S>& layer, const std::string& tiles,
                         uintptr_t address, int splits) {
  const S* dz = reinterpret_cast<const S*>(address);
  cuda::gate_gemm::WeightGradients<S> p = cuda::gate_gemm::weight_gradients_of(cell, layer, dz);
  int64_t bytes = 0;
  with_tiles(
      tiles,
      [&] {
        bytes = int64_t(cuda::gate_gemm::weight_gradients_scratch_bytes(cell, layer));
        const Block scratch(bytes);
        cuda::gate_gemm::weight_gradients(cell, layer, dz, scratch.data(), nullptr);
        scratch.check();
      },
      [&](auto shape) {
        using Shape = decltype(shape);
        cuda::gate_gemm::cut<Shape>(p), cuda::gate_gemm::split(p, splits);
        bytes = int64_t(cuda::gate_gemm::partial_bytes(p));
        const Block scratch(bytes);
        plant(p);
        cuda::gate_gemm::launch_weight_gradients<Shape>(p, scratch.data(), nullptr);
        scratch.check();
      });
  return bytes ? bytes / int64_t(p.set * sizeof(float)) : 1;
}

// f called with a number of one of the types S, the one of that name.
template <class... S, class F>
void with_type_of(const std::string& name, const F& f) {
  with_type(name, [&](auto s) {
    if constexpr ((std::is_same_v<decltype(s), S> || ...))
      f(s);
    else
      throw std::invalid_argument("not bound: " + name);
  });
}

template <class... S>
void bind_products(py::module_& m) {
  emu::bind_controls(m);
  m.def("seed", [](const std::string& bug) { seeded_bug = bug; });
  m.doc() = "Products over all time steps; fields as in bind_layer.h, dz by its address.";
  m.def("input_part", [](const std::string& cell, const std::string& dtype, py::dict fields,
                         const std::string& tiles) {
    with_type_of<S...>(dtype, [&](auto s) {
      const Fields f(fields);
      input_part(cell_of(cell), forward_layer<decltype(s)>(f), tiles);
    });
  });
  m.def("input_gradient", [](const std::string& cell, const std::string& dtype, py::dict fields,
                             const std::string& tiles, uintptr_t dz) {
    with_type_of<S...>(dtype, [&](auto s) {
      const Fields f(fields);
      input_gradient(cell_of(cell), backward_layer<decltype(s)>(f), tiles, dz);
    });
  });
  m.def("weight_gradients", [](const std::string& cell, const std::string& dtype, py::dict fields,
                               const std::string& tiles, uintptr_t dz, int splits) {
    int64_t actual = 0;
    with_type_of<S...>(dtype, [&](auto s) {
      const Fields f(fields);
      actual = weight_gradients(cell_of(cell), backward_layer<decltype(s)>(f), tiles, dz, splits);
    });
    return actual;
  });
}

}  // namespace brnn::testing
