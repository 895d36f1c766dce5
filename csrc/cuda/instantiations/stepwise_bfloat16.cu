// stepwise_bfloat16.cu compiles the stepwise recurrence for bfloat16.
#include "../stepwise/stepwise.cuh"

namespace brnn::cuda {

namespace stepwise {
template size_t forward_scratch_bytes(Cell, const Forward<bfloat16>&);
template void forward(Cell, const Forward<bfloat16>&, bfloat16*, const Host&, void*);
template size_t backward_scratch_bytes(Cell, const Backward<bfloat16>&);
template void backward(Cell, const Backward<bfloat16>&, bfloat16*, const Host&, void*);
}  // namespace stepwise

}  // namespace brnn::cuda
