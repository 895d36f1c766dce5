// persistent_forward_bfloat16.cu compiles the persistent recurrence forward for bfloat16.
#include "../persistent/host.cuh"

namespace brnn::cuda::persistent {

template <>
const std::vector<ForwardKernel<bfloat16>>& forward_kernels<bfloat16>() {
  static const auto kernels = compile_forward_kernels<bfloat16>();
  return kernels;
}

}  // namespace brnn::cuda::persistent
