// emulator_kernels.cuh - small kernels that put the emulator itself to the test: one for each
// primitive, and a recurrence over blocks, right and wrong. A line with a bug says "BUG name".
#pragma once

#include "cuda/device/launch.cuh"

namespace brnn::testing {

using namespace cuda;

// ---- primitives

struct MmaParams {
  int type;           // 0 bfloat16, 1 float16, 2 tf32
  const uint32_t* a;  // [16, words] rows
  const uint32_t* b;  // [8, words] columns
  float* c;           // [16, 8]
};
// One warp; words per row: 8, of two 16-bit numbers each or of one tf32.
__global__ void __launch_bounds__(32) mma_kernel(const __grid_constant__ MmaParams p) {
  const int lane = threadIdx.x, g = lane / 4, q = lane % 4;
  const uint32_t a[4] = {p.a[g * 8 + q], p.a[(g + 8) * 8 + q], p.a[g * 8 + q + 4],
                         p.a[(g + 8) * 8 + q + 4]};
  const uint32_t b0 = p.b[g * 8 + q], b1 = p.b[g * 8 + q + 4];
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = p.c[(g + i / 2 * 8) * 8 + q * 2 + i % 2];
  if (p.type == 0) {
    mma(bfloat16{}, c, a, b0, b1);
  } else if (p.type == 1) {
    mma(float16{}, c, a, b0, b1);
  } else {
    mma(float{}, c, a, b0, b1);
  }
  for (int i = 0; i < 4; ++i) p.c[(g + i / 2 * 8) * 8 + q * 2 + i % 2] = c[i];
}

struct MatricesParams {
  const uint16_t* matrices;  // [4, 8, 8]
  uint32_t* words;           // [32, 4]
  bool transposed;
};
__global__ void __launch_bounds__(32) matrices_kernel(const __grid_constant__ MatricesParams p) {
  uint16_t* const shared = shared_memory<uint16_t>();
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) shared[i] = p.matrices[i];
  __syncwarp();
  uint32_t words[4];
  if (p.transposed) {
    load_matrices_transposed(words, shared + lane * 8);
  } else {
    load_matrices(words, shared + lane * 8);
  }
  for (int i = 0; i < 4; ++i) p.words[lane * 4 + i] = words[i];
}

struct NumbersParams {
  const float* x;     // [n]
  uint32_t* bits;     // [n, 5] bfloat16, float16, tf32, exp2, reciprocal
  uint32_t* widened;  // [n, 2] the 16-bit numbers as float
  int n;
};
__global__ void __launch_bounds__(32) numbers_kernel(const __grid_constant__ NumbersParams p) {
  for (int i = threadIdx.x; i < p.n; i += 32) {
    const float x = p.x[i];
    const uint32_t narrow = pack(bfloat16{}, x, 1.f), half = pack(float16{}, x, 1.f);
    p.bits[i * 5] = narrow;
    p.bits[i * 5 + 1] = half;
    p.bits[i * 5 + 2] = to_tf32(x);
    p.bits[i * 5 + 3] = std::bit_cast<uint32_t>(exp2_approx(x));
    p.bits[i * 5 + 4] = std::bit_cast<uint32_t>(reciprocal_approx(x));
    p.widened[i * 2] = std::bit_cast<uint32_t>(to_float(bfloat16{uint16_t(narrow)}));
    p.widened[i * 2 + 1] = std::bit_cast<uint32_t>(to_float(float16{uint16_t(half)}));
  }
}

struct WarpParams {
  int* out;  // [64, 5]
};
__global__ void __launch_bounds__(64) warp_kernel(const __grid_constant__ WarpParams p) {
  const int t = threadIdx.x;
  int* const out = p.out + t * 5;
  out[0] = __shfl_sync(~0u, t, 5);
  out[1] = __shfl_xor_sync(~0u, t, 3);
  out[2] = __shfl_sync(0xFFu << (t & 24), t, 2, 8);  // groups of 8 lanes, each on its own
  out[3] = __any_sync(~0u, t == 40);
  out[4] = int(__shfl_xor_sync(~0u, double(t), 16));
}

struct CopyParams {
  const uint32_t* from;  // [blocks, 128]
  uint32_t* to;          // [blocks, 128]
  int bug;               // 0 none, 1 no wait, 2 no barrier
};
// Two groups of copies by 32 threads: 16 bytes each, then 4 bytes each, the last of them zeros.
__global__ void __launch_bounds__(32) copy_kernel(const __grid_constant__ CopyParams p) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [128 + 32]
  const int t = threadIdx.x, first = blockIdx.x * 128;
  copy_async(shared + t * 4, p.from + first + t * 4, true);
  copy_async_commit();
  copy_async_word(shared + 128 + t, p.from + first + t, t < 31);
  copy_async_commit();
  if (p.bug != 1) copy_async_wait<1>();
  if (p.bug != 2) __syncthreads();
  uint32_t sum = 0;
  for (int i = 0; i < 4; ++i) sum += shared[i * 32 + 31 - t];  // BUG copy
  copy_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) p.to[first + i * 32 + t] = sum * i + shared[128 + (t + i) % 32];
}

// ---- a recurrence whose steps need all of the step before

// Names as in the enumeration, for Python.
enum class StepBug {
  correct,
  no_wait,              // for the others' flags
  no_barrier,           // between a block's writes and its flag
  relaxed_flag,         // does not order what was written before
  waits_for_nobody,     // a flag that no block sets
  halves,               // published 16 bits at a time
  no_cluster_barrier,   // a barrier of the block only
  leaves_early,         // while others still write into its shared memory
  no_barrier_at_start,  // writes into blocks that may not have started
};
constexpr const char* step_bug_names[] = {"correct",
                                          "no_wait",
                                          "no_barrier",
                                          "relaxed_flag",
                                          "waits_for_nobody",
                                          "halves",
                                          "no_cluster_barrier",
                                          "leaves_early",
                                          "no_barrier_at_start"};

struct StepParams {
  uint32_t* h;      // [T+1, N], h[0] given; the rest ~0 where data are polled
  uint32_t* flags;  // [T, blocks + 1], zero; nobody sets the last
  int T, N;         // a block of 32 threads owns 32 of the N
  StepBug bug;
};

BRNN_DEVICE uint32_t step(const uint32_t* h, int N, int j) {
  uint32_t sum = j;
  for (int k = 0; k < N; ++k) sum = sum * 31 + h[k];
  return sum >> 2;  // never ~0
}

__global__ void __launch_bounds__(32) flags_kernel(const __grid_constant__ StepParams p) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [N]
  const unsigned t = threadIdx.x, j = blockIdx.x * 32 + t;
  const unsigned blocks = gridDim.x, row = blocks + 1;
  for (int s = 0; s < p.T; ++s) {
    const bool waits = t < blocks || (p.bug == StepBug::waits_for_nobody && t == blocks);
    if (s && waits && p.bug != StepBug::no_wait)
      while (load_acquire(p.flags + (s - 1) * row + t) == 0) {
      }
    __syncthreads();
    for (int i = t; i < p.N; i += 32) shared[i] = load_l2(p.h + s * p.N + i);  // READ h
    __syncthreads();
    p.h[(s + 1) * p.N + j] = step(shared, p.N, j);  // WRITE h
    if (p.bug != StepBug::no_barrier) __syncthreads();
    if (t == 0 && p.bug == StepBug::relaxed_flag) store_relaxed(p.flags + s * row + blockIdx.x, 1);
    if (t == 0 && p.bug != StepBug::relaxed_flag) store_release(p.flags + s * row + blockIdx.x, 1);
  }
}

__global__ void __launch_bounds__(32) data_kernel(const __grid_constant__ StepParams p) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [2, N]
  const int t = threadIdx.x, j = blockIdx.x * 32 + t;
  for (int s = 0; s < p.T; ++s) {
    uint32_t* const now = shared + s % 2 * p.N;
    for (int i = t * 4; i < p.N; i += 128) {
      const uint4* from = reinterpret_cast<const uint4*>(p.h + s * p.N + i);
      uint4 v = load_relaxed(from);
      while (v.x == ~0u || v.y == ~0u || v.z == ~0u || v.w == ~0u) {
        spin();
        v = load_relaxed(from);
      }
      *reinterpret_cast<uint4*>(now + i) = v;
    }
    __syncthreads();
    const uint32_t h = step(now, p.N, j);
    uint32_t* const to = p.h + (s + 1) * p.N + j;
    if (p.bug == StepBug::halves) {
      reinterpret_cast<uint16_t*>(to)[0] = uint16_t(h);  // BUG halves
      if (t % 2) spin();
      reinterpret_cast<uint16_t*>(to)[1] = uint16_t(h >> 16);
    } else {
      store_relaxed(to, h);
    }
  }
}

__global__ void __launch_bounds__(32) cluster_kernel(const __grid_constant__ StepParams p) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [2, N]
  const int t = threadIdx.x, j = blockIdx.x * 32 + t;
  for (int i = t; i < p.N; i += 32) shared[i] = p.h[i];
  if (p.bug == StepBug::no_barrier_at_start) {
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();
  }
  for (int s = 0; s < p.T; ++s) {
    const uint32_t h = step(shared + s % 2 * p.N, p.N, j);
    p.h[(s + 1) * p.N + j] = h;
    uint32_t* const next = shared + (s + 1) % 2 * p.N + j;
    for (unsigned rank = 0; rank < gridDim.x; ++rank) *cluster_map(next, rank) = h;  // WRITE peer
    if (p.bug == StepBug::leaves_early && s == p.T - 1) break;
    if (p.bug == StepBug::no_cluster_barrier) {
      __syncthreads();
    } else {
      cluster_arrive();
      cluster_wait();
    }
  }
}

// ---- speed

struct BarrierParams {
  float* out;  // [blocks, threads]
  int steps;
};
__global__ void barrier_kernel(const __grid_constant__ BarrierParams p) {
  float* const shared = shared_memory<float>();  // [threads]
  float v = threadIdx.x;
  for (int i = 0; i < p.steps; ++i) {
    shared[threadIdx.x] = v;
    __syncthreads();
    v += shared[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
    v = 0.25f * (v + __shfl_xor_sync(~0u, v, 1));
  }
  p.out[blockIdx.x * blockDim.x + threadIdx.x] = v;
}

}  // namespace brnn::testing
