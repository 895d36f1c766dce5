// roofline.cu - three rates that bound the persistent kernels and that no data sheet gives. It is
// compiled by bench/roofline.py, with the kernels' own instructions and without torch.
#include <cstring>

#include "device/intrinsics.cuh"

namespace brnn::cuda {
namespace {

struct Params {
  uint32_t* memory;  // [words]
  int64_t words;
  int repeats;
  int64_t* cycles;  // [blocks]
};

// Cycles from the first thread's start to the last one's end.
template <class Work>
BRNN_DEVICE void timed(const Params& p, const Work& work) {
  __syncthreads();
  const long long start = clock64();
  work();
  __syncthreads();
  if (threadIdx.x == 0) p.cycles[blockIdx.x] = clock64() - start;
}

__global__ void __launch_bounds__(1024) l2_reads(const __grid_constant__ Params p) {
  constexpr int kInFlight = 8;  // loads of a thread
  const uint4* const words = reinterpret_cast<const uint4*>(p.memory);
  const int64_t count = p.words / 4;
  uint32_t seen = 0;
  timed(p, [&] {
    for (int repeat = 0; repeat < p.repeats; ++repeat) {
      for (int64_t i = threadIdx.x; i < count; i += kInFlight * blockDim.x) {
        uint4 v[kInFlight];
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          const int64_t at = i + j * blockDim.x;
          v[j] = load_relaxed(words + (at < count ? at : 0));
        }
        for (const uint4& word : v) seen |= word.x & word.y & word.z & word.w;
      }
    }
  });
  if (seen == 0x12345678) p.cycles[0] = seen;  // the loads have a use
}

__global__ void __launch_bounds__(1024) tensor_cores(const __grid_constant__ Params p) {
  constexpr int kChains = 8;  // independent sums, so that none waits for the one before
  float sums[kChains][4] = {};
  uint32_t a[4] = {threadIdx.x, threadIdx.x, threadIdx.x, threadIdx.x};
  timed(p, [&] {
    for (int repeat = 0; repeat < p.repeats; ++repeat) {
#pragma unroll
      for (int chain = 0; chain < kChains; ++chain) mma(bfloat16{}, sums[chain], a, a[0], a[1]);
      opaque(a[0]);
    }
  });
  float total = 0;
  for (const auto& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
  if (total == 12345.f) p.cycles[0] = 1;  // the sums have a use
}

// Each block writes to a cache line of its own.
__global__ void __launch_bounds__(1024) fences(const __grid_constant__ Params p) {
  uint32_t* const mine = p.memory + 32 * blockIdx.x;
  timed(p, [&] {
    if (threadIdx.x != 0) return;
    for (int repeat = 0; repeat < p.repeats; ++repeat) {
      store_relaxed(mine, repeat);
      __threadfence();
    }
  });
}

}  // namespace
}  // namespace brnn::cuda

// Runs one of
//   "l2_reads"      every block reads all of `memory` through L2, `repeats` times
//   "tensor_cores"  every warp does `repeats` x 8 independent mma m16n8k16 in bfloat16
//   "fences"        one thread a block: `repeats` times a store of 4 bytes and a fence, which takes
//                   128 bytes of memory a block
// on blocks x threads and writes the cycles that each block took to cycles [blocks]. Returns null,
// or what is wrong.
extern "C" const char* roofline(const char* rate, void* memory, int64_t bytes, int blocks,
                                int threads, int repeats, int64_t* cycles, void* stream) {
  using namespace brnn::cuda;
  const Params params{static_cast<uint32_t*>(memory), bytes / 4, repeats, cycles};
  const auto on = static_cast<cudaStream_t>(stream);
  if (!std::strcmp(rate, "l2_reads"))
    l2_reads<<<blocks, threads, 0, on>>>(params);
  else if (!std::strcmp(rate, "tensor_cores"))
    tensor_cores<<<blocks, threads, 0, on>>>(params);
  else if (!std::strcmp(rate, "fences"))
    fences<<<blocks, threads, 0, on>>>(params);
  else
    return "rate: expected l2_reads, tensor_cores or fences";
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
