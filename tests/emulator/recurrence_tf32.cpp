// The persistent recurrence in the emulator, float32 by TF32 tensor cores.
#include "recurrence_tilings.h"

namespace brnn::cuda::recurrence {

template <>
const std::vector<ForwardKernel<float>>& forward_kernels<float>() {
  static const auto kernels = emulated_forward_kernels<float>();
  return kernels;
}
template <>
const std::vector<BackwardKernel<float>>& backward_kernels<float>() {
  static const auto kernels = emulated_backward_kernels<float>();
  return kernels;
}

}  // namespace brnn::cuda::recurrence
