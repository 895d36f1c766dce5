// masks.cu compiles the kernel that draws masks.
#include "../masks/kernels.cuh"

namespace brnn::cuda::masks {

void sample(const Draws& draws, void* stream) { launch_sample(draws, stream); }

}  // namespace brnn::cuda::masks
