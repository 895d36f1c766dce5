// torch_host.h is where torch meets the CUDA engines: it brings the device guard, the current
// stream, memory from torch's allocator, matrix products by its cuBLAS, and properties of the
// device.
//
// Nothing of torch's CUDA library is linked: the few functions are looked up when first needed, so
// that the extension also loads where torch has no CUDA.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../layer_call.h"
#include "run_layer.h"

namespace brnn::cuda {

// Gives the limits of a GPU of this machine, which are read once.
const Device& device(int index);

// Gives the plan for such a GPU. It is made once, because that takes as long as a short layer.
Plan planned(const Problem& problem, int device, const std::string& engine);

// For the time of one call the device of `tensor` is current, and this is torch's stream there.
class Stream {
 public:
  explicit Stream(const Tensor& tensor);

  int device() const { return device_; }
  void* get() const { return stream_; }  // cudaStream_t

 private:
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

// This is the Backend of layer_call.h.
class Backend {
 public:
  static constexpr uintptr_t alignment = 16;
  template <class S>
  static constexpr bool has = true;

  static void check(const Tensor& x, const Options& options) {
    checks::check_cuda_engine(x, options.engine);
  }

  Backend(Cell cell, const Tensor& x, const Options& options);

  static void draw(const Tensor& seeds, const Draw& first, const Draw& second);

  template <class S>
  void run(const Forward<S>& layer) const {
    const Plan plan = plan_of(layer);
    const Tensor memory = scratch(forward_scratch_bytes(plan, cell_, layer));
    forward(plan, cell_, layer, host(), memory.mutable_data_ptr());
  }

  template <class S>
  void run(const Backward<S>& layer) const {
    const Plan plan = plan_of(layer);
    const Tensor memory = scratch(backward_scratch_bytes(plan, cell_, layer));
    backward(plan, cell_, layer, host(), memory.mutable_data_ptr());
  }

 private:
  template <class S>
  Plan plan_of(const Layer<S>& l) const {
    return planned({.cell = cell_,
                    .T = l.T,
                    .B = l.B,
                    .I = l.I,
                    .H = l.H,
                    .precision = precision_,
                    .untied_h = l.mask_h.untied(),
                    .save = save_},
                   stream_.device(), engine_);
  }
  // The memory is given back to the allocator when the call returns; what runs on the stream by
  // then comes first.
  Tensor scratch(size_t bytes) const;
  Host host() const;

  Cell cell_;
  Tensor x_;
  Stream stream_;
  std::string engine_;
  Precision precision_;
  bool save_;
};

}  // namespace brnn::cuda
