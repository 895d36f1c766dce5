// masks.h says how masks are drawn on a GPU: both of a layer by one launch, from seeds that lie on
// the device, so that the host waits for nothing and a captured graph draws anew at each replay.
// The bits are those that the CPU draws from the same seeds.
#pragma once

#include "../../masks.h"

namespace brnn::cuda::masks {

struct Draws {
  Draw first, second;  // `keep` begins at a multiple of 4 bytes
};

// Launches on that cudaStream_t. Throws std::runtime_error where the launch fails.
void sample(const Draws& draws, void* stream);

}  // namespace brnn::cuda::masks
