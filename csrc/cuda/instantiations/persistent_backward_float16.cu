// persistent_backward_float16.cu compiles the persistent recurrence backward for float16.
#include "../persistent/host.cuh"

namespace brnn::cuda::persistent {

template <>
const std::vector<BackwardKernel<float16>>& backward_kernels<float16>() {
  static const auto kernels = compile_backward_kernels<float16>();
  return kernels;
}

}  // namespace brnn::cuda::persistent
