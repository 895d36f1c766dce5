// The persistent recurrence in the emulator, bfloat16.
#include "recurrence_tilings.h"

namespace brnn::cuda::recurrence {

template <>
const std::vector<ForwardKernel<bfloat16>>& forward_kernels<bfloat16>() {
  static const auto kernels = emulated_forward_kernels<bfloat16>();
  return kernels;
}
template <>
const std::vector<BackwardKernel<bfloat16>>& backward_kernels<bfloat16>() {
  static const auto kernels = emulated_backward_kernels<bfloat16>();
  return kernels;
}

}  // namespace brnn::cuda::recurrence
