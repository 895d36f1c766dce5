// kernels.cuh draws masks (masks.h). A quarter of a block of 64 places belongs to a thread: four
// counters side by side, whose words of one number are four bytes that lie together.
#pragma once

#include "../device/launch.cuh"
#include "masks.h"

namespace brnn::cuda::masks {

constexpr int kThreads = 128;
constexpr int kThreadsOfBlock = 4, kCountersOfThread = kCounters / kThreadsOfBlock;

struct Part {
  uint8_t* keep;  // [count]
  int64_t count;
  const int64_t* seed;  // [1]
  int64_t dropping;     // of 2^32 words
  int64_t threads;      // that draw it
};

struct SampleParams {
  Part first, second;
};

// Gives the bytes keep[16 w + 4 quarter + i] of a block, i from the low end, for each w.
BRNN_DEVICE void draw_quarter(uint32_t (&bytes)[4], const Part& p, int64_t block, int quarter) {
  const uint64_t seed = static_cast<uint64_t>(*p.seed);
  for (int w = 0; w < 4; ++w) bytes[w] = 0;
#pragma unroll
  for (int i = 0; i < kCountersOfThread; ++i) {
    const uint64_t counter = uint64_t(block) * kCounters + quarter * kCountersOfThread + i;
    uint32_t x[4] = {uint32_t(counter), uint32_t(counter >> 32), 0, 0};
    threefry(x, seed);
    for (int w = 0; w < 4; ++w) bytes[w] |= uint32_t(int64_t{x[w]} >= p.dropping) << (8 * i);
  }
}

BRNN_DEVICE void write_bytes(const Part& p, int64_t at, uint32_t bytes) {
  if (at + 4 <= p.count) {
    *reinterpret_cast<uint32_t*>(p.keep + at) = bytes;
    return;
  }
#pragma unroll 1
  for (int i = 0; at + i < p.count; ++i) p.keep[at + i] = uint8_t(bytes >> (8 * i));
}

// S only makes it an instance.
template <class S>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleParams p) {
  int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool second = thread >= p.first.threads;
  const Part part = second ? p.second : p.first;
  if (second) thread -= p.first.threads;
  if (thread >= part.threads) return;
  const int64_t block = thread / kThreadsOfBlock;
  const int quarter = int(thread % kThreadsOfBlock);
  uint32_t bytes[4];
  draw_quarter(bytes, part, block, quarter);
  for (int w = 0; w < 4; ++w)
    write_bytes(part, block * kMaskBlock + w * kCounters + quarter * kCountersOfThread, bytes[w]);
}

inline Part part_of(const Draw& draw) {
  return {draw.keep, draw.count, draw.seed, dropping_words(draw.p),
          draw.blocks() * kThreadsOfBlock};
}

inline void launch_sample(const Draws& draws, void* stream) {
  const SampleParams p{part_of(draws.first), part_of(draws.second)};
  const int64_t threads = p.first.threads + p.second.threads;
  if (threads == 0) return;
  const Grid grid{.x = unsigned((threads + kThreads - 1) / kThreads), .threads = kThreads};
  launch(sample_kernel<uint8_t>, grid, stream, p);
}

}  // namespace brnn::cuda::masks
