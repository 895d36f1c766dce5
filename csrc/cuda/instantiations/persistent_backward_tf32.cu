// persistent_backward_tf32.cu compiles the persistent recurrence backward for float32 by TF32
// tensor cores.
#include "../persistent/host.cuh"

namespace brnn::cuda::persistent {

template <>
const std::vector<BackwardKernel<float>>& backward_kernels<float>() {
  static const auto kernels = compile_backward_kernels<float>();
  return kernels;
}

}  // namespace brnn::cuda::persistent
