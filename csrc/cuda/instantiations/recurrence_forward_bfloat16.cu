// The persistent recurrence forward, bfloat16.
#include "../persistent/host.cuh"

namespace brnn::cuda::recurrence {

template <>
const std::vector<ForwardKernel<bfloat16>>& forward_kernels<bfloat16>() {
  static const auto kernels = compile_forward_kernels<bfloat16>();
  return kernels;
}

}  // namespace brnn::cuda::recurrence
