// instance.h makes the engine for the instruction set that BRNN_ISA names and the compiler was
// told. Each file of this folder includes it once, in a namespace of its own.
#pragma once

#include "../backward.h"
#include "../forward.h"
#include "../masks.h"
#include "../peak.h"

namespace brnn::BRNN_ISA {

// This is what products multiply for tensors of S: bfloat16 is widened where no instruction takes
// it.
template <class S>
struct Multiplied {
  using type = S;
};
#if !defined(__AVX512BF16__)
template <>
struct Multiplied<bfloat16> {
  using type = float;
};
#endif

// Pass is ForwardPass or BackwardPass; use(pass) gets the one for the cell.
template <template <class, class, template <class> class> class Pass, class Layer, class S,
          class Use>
auto with_pass(Cell cell, const Layer& layer, int threads, void* scratch, const Use& use) {
  using E = typename Multiplied<S>::type;
  return with_cell(cell, [&]<template <class> class CellOf>() {
    return use(Pass<S, E, CellOf>(layer, threads, scratch));
  });
}

template <template <class, class, template <class> class> class Pass, class Layer, class S>
size_t scratch_bytes(Cell cell, const Layer& layer, int threads) {
  return with_pass<Pass, Layer, S>(cell, layer, threads, nullptr,
                                   [](auto&& pass) { return pass.scratch_bytes(); });
}

template <template <class, class, template <class> class> class Pass, class Layer, class S>
void run(Cell cell, const Layer& layer, const Host& host, void* scratch) {
  with_pass<Pass, Layer, S>(cell, layer, host.threads, scratch,
                            [&](auto&& pass) { pass.run(host); });
}

template <class E>
constexpr cpu::Microkernel microkernel_of(int vectors) {
  return {Product<E>::rows(vectors), vectors};
}

template <class S, class E = typename Multiplied<S>::type>
constexpr cpu::Engine<S> kEngine = {microkernel_of<E>(2),
                                    microkernel_of<E>(Product<E>::vectors),
                                    Vec<typename Element<E>::Sum>::size,
                                    scratch_bytes<ForwardPass, Forward<S>, S>,
                                    run<ForwardPass, Forward<S>, S>,
                                    scratch_bytes<BackwardPass, Backward<S>, S>,
                                    run<BackwardPass, Backward<S>, S>};

// An instruction set with engines of its own for every type.
constexpr cpu::Isa own_isa(const char* name, bool (*supported)()) {
  return {name,        supported, &kEngine<float>, &kEngine<double>, &kEngine<bfloat16>,
          sample_keep, count_fmas};
}

}  // namespace brnn::BRNN_ISA
