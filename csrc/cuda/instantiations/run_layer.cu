// run_layer.cu compiles run_layer.cuh for every storage type.
#include "../persistent/host.cuh"
#include "../run_layer.cuh"

namespace brnn::cuda {

template size_t forward_scratch_bytes(const Plan&, Cell, const Forward<bfloat16>&);
template size_t forward_scratch_bytes(const Plan&, Cell, const Forward<float16>&);
template size_t forward_scratch_bytes(const Plan&, Cell, const Forward<float>&);
template size_t forward_scratch_bytes(const Plan&, Cell, const Forward<double>&);
template void forward(const Plan&, Cell, const Forward<bfloat16>&, const Host&, void*);
template void forward(const Plan&, Cell, const Forward<float16>&, const Host&, void*);
template void forward(const Plan&, Cell, const Forward<float>&, const Host&, void*);
template void forward(const Plan&, Cell, const Forward<double>&, const Host&, void*);
template size_t backward_scratch_bytes(const Plan&, Cell, const Backward<bfloat16>&);
template size_t backward_scratch_bytes(const Plan&, Cell, const Backward<float16>&);
template size_t backward_scratch_bytes(const Plan&, Cell, const Backward<float>&);
template size_t backward_scratch_bytes(const Plan&, Cell, const Backward<double>&);
template void backward(const Plan&, Cell, const Backward<bfloat16>&, const Host&, void*);
template void backward(const Plan&, Cell, const Backward<float16>&, const Host&, void*);
template void backward(const Plan&, Cell, const Backward<float>&, const Host&, void*);
template void backward(const Plan&, Cell, const Backward<double>&, const Host&, void*);

}  // namespace brnn::cuda
