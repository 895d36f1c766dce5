// instance.h - the engine for the instruction set that BRNN_ISA names and the compiler was told.
#pragma once

#include "../backward.h"
#include "../forward.h"

namespace brnn::BRNN_ISA {

template <class S>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};

// Pass = ForwardPass or BackwardPass; use(pass) gets the one for the cell.
template <template <class, class, template <class> class> class Pass, class Layer, class S,
          class Use>
auto with_pass(Cell cell, const Layer& layer, int threads, void* scratch, const Use& use) {
  using C = typename ComputeType<S>::type;
  switch (cell) {
    case Cell::lstm: {
      return use(Pass<S, C, Lstm>(layer, threads, scratch));
    }
    case Cell::gru: {
      return use(Pass<S, C, Gru>(layer, threads, scratch));
    }
    case Cell::gru_reset_before: {
      return use(Pass<S, C, GruResetBefore>(layer, threads, scratch));
    }
  }
  __builtin_unreachable();  // the enumeration has no other value
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

template <class S>
constexpr cpu::Engine<S> kEngine = {
    scratch_bytes<ForwardPass, Forward<S>, S>, run<ForwardPass, Forward<S>, S>,
    scratch_bytes<BackwardPass, Backward<S>, S>, run<BackwardPass, Backward<S>, S>};

}  // namespace brnn::BRNN_ISA
