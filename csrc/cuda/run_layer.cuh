// run_layer.cuh runs a layer under a plan: part 1 for all time steps at once, the recurrence, and
// where their workspaces lie. run_layer.h says what the parts are.
#pragma once

#include "../arena.h"
#include "gate_gemm/gate_gemm.h"
#include "persistent/persistent.h"
#include "run_layer.h"
#include "stepwise/products.h"
#include "stepwise/stepwise.h"

namespace brnn::cuda {

namespace workspace {

inline size_t largest(size_t a, size_t b) { return a > b ? a : b; }

template <class S>
size_t gate_count(Cell cell, const Layer<S>& layer) {
  return size_t(layer.T) * layer.B * traits(cell).gates * layer.H;
}
template <class S>
size_t slot_count(Cell cell, const Layer<S>& layer) {
  return size_t(layer.T) * layer.B * traits(cell).slots * layer.H;
}

}  // namespace workspace

// Part 1 of bfloat16 and float16 is always gate_gemm's: every GPU that the kernels are compiled for
// has tensor cores for them.
template <class S>
constexpr bool kHasProducts = !DtypeOf<S>::tensor_cores || DtypeOf<S>::rounds_operands;
template <class S>
bool by_products(const Plan& plan) {
  return kHasProducts<S> && !plan.tensor_cores;
}

// Tells whether the input part lies in scratch memory: not among what is saved, nor only in the
// registers of the kernel that makes it.
template <class S>
bool needs_gates(const Plan& plan, const Forward<S>& layer) {
  return !layer.gates && !plan.forward.fused_input;
}

template <class S>
size_t forward_scratch_bytes(const Plan& plan, Cell cell, const Forward<S>& layer) {
  using namespace workspace;
  Arena<> arena(nullptr);
  if (needs_gates(plan, layer)) arena.take<S>(gate_count(cell, layer));
  size_t rest = stepwise::forward_scratch_bytes(cell, layer);
  if constexpr (kHasProducts<S>) {
    if (by_products<S>(plan)) rest = largest(rest, products::input_part_scratch_bytes(cell, layer));
  }
  if constexpr (DtypeOf<S>::tensor_cores) {
    if (traits(plan.forward.engine).persistent)
      rest = largest(rest, persistent::forward_scratch_bytes(plan.forward, cell, layer));
  }
  return arena.used() + rest;
}

// Where the persistent kernel is refused, stepwise finds the input part in `gates`, takes the
// scratch memory of the one that did not run, and writes every result again.
template <class S>
void forward(const Plan& plan, Cell cell, const Forward<S>& layer, const Host& host,
             void* scratch) {
  Arena<> arena(scratch);
  S* const gates =
      needs_gates(plan, layer) ? arena.take<S>(workspace::gate_count(cell, layer)) : layer.gates;
  const auto input_part = [&] {
    if constexpr (DtypeOf<S>::tensor_cores) {
      if (!by_products<S>(plan)) return gate_gemm::input_part(cell, layer, gates, host.stream);
    }
    if constexpr (kHasProducts<S>) products::input_part(cell, layer, gates, host, arena.rest());
  };
  if (!plan.forward.fused_input) input_part();
  if constexpr (DtypeOf<S>::tensor_cores) {
    if (traits(plan.forward.engine).persistent &&
        persistent::forward(plan.forward, cell, layer, gates, arena.rest(), host.stream))
      return;
  }
  stepwise::forward(cell, layer, gates, host, arena.rest());
}

template <class S>
size_t backward_scratch_bytes(const Plan& plan, Cell cell, const Backward<S>& layer) {
  using namespace workspace;
  Arena<> arena(nullptr);
  arena.take<S>(slot_count(cell, layer));
  size_t rest = stepwise::backward_scratch_bytes(cell, layer);
  if constexpr (kHasProducts<S>) {
    if (by_products<S>(plan)) {
      rest = largest(rest, products::input_gradient_scratch_bytes(cell, layer));
      rest = largest(rest, products::weight_gradients_scratch_bytes(cell, layer));
    }
  }
  if constexpr (DtypeOf<S>::tensor_cores) {
    if (!by_products<S>(plan))
      rest = largest(rest, gate_gemm::weight_gradients_scratch_bytes(cell, layer));
    if (traits(plan.backward.engine).persistent)
      rest = largest(rest, persistent::backward_scratch_bytes(plan.backward, cell, layer));
  }
  return arena.used() + rest;
}

template <class S>
void backward(const Plan& plan, Cell cell, const Backward<S>& layer, const Host& host,
              void* scratch) {
  Arena<> arena(scratch);
  S* const dz = arena.take<S>(workspace::slot_count(cell, layer));
  void* const rest = arena.rest();
  bool started = false;
  if constexpr (DtypeOf<S>::tensor_cores)
    started = traits(plan.backward.engine).persistent &&
              persistent::backward(plan.backward, cell, layer, dz, rest, host.stream);
  if (!started) stepwise::backward(cell, layer, dz, host, rest);
  if constexpr (DtypeOf<S>::tensor_cores) {
    if (!by_products<S>(plan)) {
      if (layer.dx) gate_gemm::input_gradient(cell, layer, dz, host.stream);
      gate_gemm::weight_gradients(cell, layer, dz, rest, host.stream);
      return;
    }
  }
  if constexpr (kHasProducts<S>) {
    if (layer.dx) products::input_gradient(cell, layer, dz, host, rest);
    products::weight_gradients(cell, layer, dz, host, rest);
  }
}

}  // namespace brnn::cuda
