// persistent_forward_tf32.cu compiles the persistent recurrence forward for float32 by TF32 tensor
// cores.
#include "../persistent/host.cuh"

namespace brnn::cuda::persistent {

template <>
const std::vector<ForwardKernel<float>>& forward_kernels<float>() {
  static const auto kernels = compile_forward_kernels<float>();
  return kernels;
}

}  // namespace brnn::cuda::persistent
