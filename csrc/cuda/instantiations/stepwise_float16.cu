// stepwise_float16.cu - the stepwise recurrence and the library products in float16.
#include "../stepwise/products.cuh"
#include "../stepwise/stepwise.cuh"

namespace brnn::cuda {

namespace stepwise {
template size_t forward_scratch_bytes(Cell, const Forward<float16>&);
template void forward(Cell, const Forward<float16>&, float16*, const Host&, void*);
template size_t backward_scratch_bytes(Cell, const Backward<float16>&);
template void backward(Cell, const Backward<float16>&, float16*, const Host&, void*);
}  // namespace stepwise

namespace library {
template size_t input_part_scratch_bytes(Cell, const Forward<float16>&);
template void input_part(Cell, const Forward<float16>&, float16*, const Host&, void*);
template size_t input_gradient_scratch_bytes(Cell, const Backward<float16>&);
template void input_gradient(Cell, const Backward<float16>&, const float16*, const Host&, void*);
template size_t weight_gradients_scratch_bytes(Cell, const Backward<float16>&);
template void weight_gradients(Cell, const Backward<float16>&, const float16*, const Host&, void*);
}  // namespace library

}  // namespace brnn::cuda
