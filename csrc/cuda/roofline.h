// roofline.h - three rates that bound the persistent kernels and that no data sheet gives: what
// bench/roofline.py measures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace brnn::cuda {

// Runs one of
//   "l2_reads"      every block reads all of `memory` through L2, `repeats` times
//   "tensor_cores"  every warp does `repeats` x 8 independent mma m16n8k16 in bfloat16
//   "fences"        one thread a block: `repeats` times a store of 4 bytes and a fence
// on blocks x threads and writes the cycles that each block took to cycles [blocks]. Throws
// std::runtime_error on another rate or where the launch fails.
void roofline(const std::string& rate, void* memory, size_t bytes, int blocks, int threads,
              int repeats, int64_t* cycles, void* stream);

}  // namespace brnn::cuda
