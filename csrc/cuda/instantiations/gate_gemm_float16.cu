// gate_gemm_float16.cu compiles the products of gate_gemm.h for float16. Every file of this folder
// is one part of the build, so that they compile side by side.
#include "../gate_gemm/host.cuh"

namespace brnn::cuda::gate_gemm {

template void input_part(Cell, const Forward<float16>&, float16*, void*);
template void input_gradient(Cell, const Backward<float16>&, const float16*, void*);
template size_t weight_gradients_scratch_bytes(Cell, const Backward<float16>&);
template void weight_gradients(Cell, const Backward<float16>&, const float16*, void*, void*);

}  // namespace brnn::cuda::gate_gemm
