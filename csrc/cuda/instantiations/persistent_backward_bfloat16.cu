// persistent_backward_bfloat16.cu compiles the persistent recurrence backward for bfloat16.
#include "../persistent/host.cuh"

namespace brnn::cuda::persistent {

template <>
const std::vector<BackwardKernel<bfloat16>>& backward_kernels<bfloat16>() {
  static const auto kernels = compile_backward_kernels<bfloat16>();
  return kernels;
}

}  // namespace brnn::cuda::persistent
