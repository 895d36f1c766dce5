// stepwise_float16.cu compiles the stepwise recurrence for float16.
#include "../stepwise/stepwise.cuh"

namespace brnn::cuda {

namespace stepwise {
template size_t forward_scratch_bytes(Cell, const Forward<float16>&);
template void forward(Cell, const Forward<float16>&, float16*, const Host&, void*);
template size_t backward_scratch_bytes(Cell, const Backward<float16>&);
template void backward(Cell, const Backward<float16>&, float16*, const Host&, void*);
}  // namespace stepwise

}  // namespace brnn::cuda
