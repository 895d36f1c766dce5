// The persistent recurrence backward, float32 by TF32 tensor cores.
#include "../persistent/host.cuh"

namespace brnn::cuda::recurrence {

template <>
const std::vector<BackwardKernel<float>>& backward_kernels<float>() {
  static const auto kernels = compile_backward_kernels<float>();
  return kernels;
}

}  // namespace brnn::cuda::recurrence
