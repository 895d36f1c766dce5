// The persistent recurrence backward, float16.
#include "../persistent/host.cuh"

namespace brnn::cuda::recurrence {

template <>
const std::vector<BackwardKernel<float16>>& backward_kernels<float16>() {
  static const auto kernels = compile_backward_kernels<float16>();
  return kernels;
}

}  // namespace brnn::cuda::recurrence
