// stepwise_float32.cu compiles the stepwise recurrence and the library products for float32.
#include "../stepwise/products.cuh"
#include "../stepwise/stepwise.cuh"

namespace brnn::cuda {

namespace stepwise {
template size_t forward_scratch_bytes(Cell, const Forward<float>&);
template void forward(Cell, const Forward<float>&, float*, const Host&, void*);
template size_t backward_scratch_bytes(Cell, const Backward<float>&);
template void backward(Cell, const Backward<float>&, float*, const Host&, void*);
}  // namespace stepwise

namespace products {
template size_t input_part_scratch_bytes(Cell, const Forward<float>&);
template void input_part(Cell, const Forward<float>&, float*, const Host&, void*);
template size_t input_gradient_scratch_bytes(Cell, const Backward<float>&);
template void input_gradient(Cell, const Backward<float>&, const float*, const Host&, void*);
template size_t weight_gradients_scratch_bytes(Cell, const Backward<float>&);
template void weight_gradients(Cell, const Backward<float>&, const float*, const Host&, void*);
}  // namespace products

}  // namespace brnn::cuda
