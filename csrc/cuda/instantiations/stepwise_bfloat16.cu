// stepwise_bfloat16.cu - the stepwise recurrence and the library products in bfloat16.
#include "../stepwise/products.cuh"
#include "../stepwise/stepwise.cuh"

namespace brnn::cuda {

namespace stepwise {
template size_t forward_scratch_bytes(Cell, const Forward<bfloat16>&);
template void forward(Cell, const Forward<bfloat16>&, bfloat16*, const Host&, void*);
template size_t backward_scratch_bytes(Cell, const Backward<bfloat16>&);
template void backward(Cell, const Backward<bfloat16>&, bfloat16*, const Host&, void*);
}  // namespace stepwise

namespace library {
template size_t input_part_scratch_bytes(Cell, const Forward<bfloat16>&);
template void input_part(Cell, const Forward<bfloat16>&, bfloat16*, const Host&, void*);
template size_t input_gradient_scratch_bytes(Cell, const Backward<bfloat16>&);
template void input_gradient(Cell, const Backward<bfloat16>&, const bfloat16*, const Host&, void*);
template size_t weight_gradients_scratch_bytes(Cell, const Backward<bfloat16>&);
template void weight_gradients(Cell, const Backward<bfloat16>&, const bfloat16*, const Host&,
                               void*);
}  // namespace library

}  // namespace brnn::cuda
