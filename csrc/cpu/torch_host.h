// torch_host.h is where torch meets the CPU engine: it brings torch's threads, and memory for one
// call. The engine itself knows nothing of torch.
#pragma once

#include <torch/csrc/stable/ops.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <string>
#include <type_traits>

#include "../layer_call.h"
#include "engine.h"

namespace brnn::cpu {

// Gives torch's threads, as many as the work is worth: below about 2 MFLOP each, waking them costs
// more than they bring, and far more beside another busy process.
inline Host host(double flop) {
  const auto alone = [](int64_t count, Body body, void* context) { body(context, 0, count); };
  const auto together = [](int64_t count, Body body, void* context) {
    torch::stable::parallel_for(0, count, 1,
                                [&](int64_t begin, int64_t end) { body(context, begin, end); });
  };
  const double worth = 1 + flop / 2e6, there = torch::stable::get_num_threads();
  const int threads = static_cast<int>(worth < there ? worth : there);
  return {threads > 1 ? ParallelFor(together) : ParallelFor(alone), threads};
}

// Counts the products of a layer forward; backward makes twice as many.
inline double forward_flop(double T, double B, double I, double H, double G) {
  return 2 * T * B * G * H * (I + H);
}

// This is memory for the time of one call. It lies in huge pages where there are some: weights that
// stream from beyond a core's own cache come a quarter faster.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : alignment_(bytes < 4 * kHugePage ? 64 : kHugePage),
        block_(std::malloc(bytes + alignment_)) {
    if (!block_) checks::no_memory(std::to_string(bytes) + " bytes of scratch");
#if defined(__linux__)
    if (alignment_ == kHugePage) madvise(get(), bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  }
  ~Scratch() { std::free(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* get() const {
    const auto address = reinterpret_cast<uintptr_t>(block_);
    return reinterpret_cast<void*>((address + alignment_ - 1) / alignment_ * alignment_);
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  const size_t alignment_;
  void* const block_;
};

// This is the Backend of layer_call.h.
class Backend {
 public:
  static constexpr uintptr_t alignment = 1;
  template <class S>
  static constexpr bool has = DtypeOf<S>::on_cpu;

  static void check(const Tensor& x, const Options& options) {
    checks::check_cpu_engine(x, options.engine);
  }

  Backend(Cell cell, const Tensor&, const Options&) : cell_(cell) {}

  static void draw(const Tensor&, const Draw& first, const Draw& second) {
    for (const Draw& mask : {first, second})
      if (mask.count)
        isa().sample_keep(mask.keep, mask.count, static_cast<uint64_t>(*mask.seed), mask.p);
  }

  template <class S>
  void run(const Forward<S>& layer) const {
    const Host threads = host(flop(layer));
    const auto& engine = isa().engine<S>();
    const Scratch memory(engine.forward_scratch_bytes(cell_, layer, threads.threads));
    engine.forward(cell_, layer, threads, memory.get());
  }

  template <class S>
  void run(const Backward<S>& layer) const {
    const Host threads = host(2 * flop(layer));
    const auto& engine = isa().engine<S>();
    const Scratch memory(engine.backward_scratch_bytes(cell_, layer, threads.threads));
    engine.backward(cell_, layer, threads, memory.get());
  }

 private:
  template <class S>
  double flop(const Layer<S>& layer) const {
    return forward_flop(layer.T, layer.B, layer.I, layer.H, traits(cell_).gates);
  }

  Cell cell_;
};

}  // namespace brnn::cpu
