// persistent_forward_float16.cu compiles the persistent recurrence forward for float16.
#include "../persistent/host.cuh"

namespace brnn::cuda::persistent {

template <>
const std::vector<ForwardKernel<float16>>& forward_kernels<float16>() {
  static const auto kernels = compile_forward_kernels<float16>();
  return kernels;
}

}  // namespace brnn::cuda::persistent
