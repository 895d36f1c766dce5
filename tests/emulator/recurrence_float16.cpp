// The persistent recurrence in the emulator, float16.
#include "recurrence_tilings.h"

namespace brnn::cuda::recurrence {

template <>
const std::vector<ForwardKernel<float16>>& forward_kernels<float16>() {
  static const auto kernels = emulated_forward_kernels<float16>();
  return kernels;
}
template <>
const std::vector<BackwardKernel<float16>>& backward_kernels<float16>() {
  static const auto kernels = emulated_backward_kernels<float16>();
  return kernels;
}

}  // namespace brnn::cuda::recurrence
