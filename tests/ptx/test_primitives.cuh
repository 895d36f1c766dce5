// test_primitives.cuh - small kernels that call each primitive of the product once, for
// test_primitives.py, which computes the same by numpy. test_kernels.cu includes this: nvcc is
// started once.
#pragma once

#include "machine/product.h"

namespace brnn::cuda {

#define KERNEL(threads, name, Params) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)

struct MmaParams {
  const uint32_t* a;  // [16, words] rows
  const uint32_t* b;  // [8, words] columns
  float* c;           // [16, 8]
};
// One warp; words per row: 8, of two 16-bit numbers each or of one tf32.
template <class S>
BRNN_DEVICE void multiply(const MmaParams& p) {
  const int lane = threadIdx.x, g = lane / 4, q = lane % 4;
  const uint32_t a[4] = {p.a[g * 8 + q], p.a[(g + 8) * 8 + q], p.a[g * 8 + q + 4],
                         p.a[(g + 8) * 8 + q + 4]};
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = p.c[(g + i / 2 * 8) * 8 + q * 2 + i % 2];
  mma(S{}, c, a, p.b[g * 8 + q], p.b[g * 8 + q + 4]);
  for (int i = 0; i < 4; ++i) p.c[(g + i / 2 * 8) * 8 + q * 2 + i % 2] = c[i];
}
KERNEL(32, mma_bfloat16, MmaParams) { multiply<bfloat16>(p); }
KERNEL(32, mma_float16, MmaParams) { multiply<float16>(p); }
KERNEL(32, mma_tf32, MmaParams) { multiply<float>(p); }

struct MatricesParams {
  const uint16_t* matrices;  // [4, 8, 8]
  uint32_t* words;           // [32, 4]
  int transposed;
};
KERNEL(32, matrices, MatricesParams) {
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
KERNEL(32, numbers, NumbersParams) {
  for (int i = threadIdx.x; i < p.n; i += 32) {
    const float x = p.x[i];
    const uint32_t narrow = pack(bfloat16{}, x, 1.f), half = pack(float16{}, x, 1.f);
    p.bits[i * 5] = narrow;
    p.bits[i * 5 + 1] = half;
    p.bits[i * 5 + 2] = to_tf32(x);
    p.bits[i * 5 + 3] = float_to_bits(exp2_approx(x));
    p.bits[i * 5 + 4] = float_to_bits(reciprocal_approx(x));
    p.widened[i * 2] = float_to_bits(to_float(bfloat16{uint16_t(narrow)}));
    p.widened[i * 2 + 1] = float_to_bits(to_float(float16{uint16_t(half)}));
  }
}

struct WarpParams {
  int* out;  // [64, 7]
};
KERNEL(64, warps, WarpParams) {
  const int t = threadIdx.x;
  int* const out = p.out + t * 7;
  out[0] = __shfl_sync(~0u, t, 5);
  out[1] = __shfl_xor_sync(~0u, t, 3);
  out[2] = __shfl_sync(0xFFu << (t & 24), t, 2, 8);  // groups of 8 lanes, each on its own
  out[3] = __any_sync(~0u, t == 40);
  out[4] = int(__shfl_xor_sync(~0u, t * 0x100000001ll, 16) >> 32);
  out[5] = int(permute_bytes(uint32_t(t) * 0x01020304u, 0x0123));
  out[6] = int(spread_signs<0x3320>(uint32_t(t) * 0x01020304u << 2));
}

struct CopyParams {
  const uint32_t* from;  // [blocks, 128]
  uint32_t* to;          // [blocks, 128]
};
// Two groups of copies by 32 threads: 16 bytes each, half of them in two, then 4 bytes each, the
// last of them zeros.
template <bool Waits, bool Meets>
BRNN_DEVICE void copy(const CopyParams& p) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [128 + 32]
  const int t = threadIdx.x, first = blockIdx.x * 128;
  if (t % 2) {
    copy_async(shared + t * 4, p.from + first + t * 4, true);
  } else {
    copy_async_half(shared + t * 4, p.from + first + t * 4, true);
    copy_async_half(shared + t * 4 + 2, p.from + first + t * 4 + 2, true);
  }
  copy_async_commit();
  copy_async_word(shared + 128 + t, p.from + first + t, t < 31);
  copy_async_commit();
  if (Waits) copy_async_wait<1>();
  if (Meets) __syncthreads();
  uint32_t sum = 0;
  for (int i = 0; i < 4; ++i) sum += shared[i * 32 + 31 - t];  // BUG copy
  copy_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) p.to[first + i * 32 + t] = sum * i + shared[128 + (t + i) % 32];
}
KERNEL(32, copies, CopyParams) { copy<true, true>(p); }
KERNEL(32, copies_without_wait, CopyParams) { copy<false, true>(p); }
KERNEL(32, copies_without_barrier, CopyParams) { copy<true, false>(p); }

}  // namespace brnn::cuda
