// stepwise_float64.cu compiles the stepwise recurrence and the library products for float64.
#include "../stepwise/products.cuh"
#include "../stepwise/stepwise.cuh"

namespace brnn::cuda {

namespace stepwise {
template size_t forward_scratch_bytes(Cell, const Forward<double>&);
template void forward(Cell, const Forward<double>&, double*, const Host&, void*);
template size_t backward_scratch_bytes(Cell, const Backward<double>&);
template void backward(Cell, const Backward<double>&, double*, const Host&, void*);
}  // namespace stepwise

namespace products {
template size_t input_part_scratch_bytes(Cell, const Forward<double>&);
template void input_part(Cell, const Forward<double>&, double*, const Host&, void*);
template size_t input_gradient_scratch_bytes(Cell, const Backward<double>&);
template void input_gradient(Cell, const Backward<double>&, const double*, const Host&, void*);
template size_t weight_gradients_scratch_bytes(Cell, const Backward<double>&);
template void weight_gradients(Cell, const Backward<double>&, const double*, const Host&, void*);
}  // namespace products

}  // namespace brnn::cuda
