// The persistent recurrence forward, float32 by TF32 tensor cores.
#include "../persistent/host.cuh"

namespace brnn::cuda::recurrence {

template <>
const std::vector<ForwardKernel<float>>& forward_kernels<float>() {
  static const auto kernels = compile_forward_kernels<float>();
  return kernels;
}

}  // namespace brnn::cuda::recurrence
