// intrinsics.cuh has every device primitive that the kernels use, its PTX and nothing else, so that
// no other file has inline assembly (barriers and shuffles of a warp have CUDA's own words) and
// each primitive can be tested by itself.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../../cells.h"
#include "../../layer.h"

#define BRNN_DEVICE __device__ __forceinline__

namespace brnn::cuda {

// ---- shared memory

// Gives the dynamic shared memory of the block, 128-byte aligned.
template <class T>
BRNN_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char brnn_shared_memory[];
  return reinterpret_cast<T*>(brnn_shared_memory);
}

// ---- tensor cores: c [16, 8] += a [16, k] b [k, 8], row-major a, column-major b, fragments as in
// the PTX manual. For 16-bit numbers k = 16 and a word holds two, the lower one first; for tf32
// k = 8 and a word is one number.

BRNN_DEVICE void mma(bfloat16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
BRNN_DEVICE void mma(float16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// For tf32 the words are float bits, rounded by to_tf32.
BRNN_DEVICE void mma(float, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Loads four 8 x 8 matrices of 16-bit numbers from shared memory. Lane l gives the address of row l
// % 8 of matrix l / 8 and receives words (row l / 4, column pair l % 4) of all four.
BRNN_DEVICE void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
// Does the same with each matrix transposed.
BRNN_DEVICE void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// ---- numbers

// Packs two numbers in a word, `low` first; every NaN becomes 0x7FFF. The pair form is one ALU
// instruction, the single one goes through the slow pipe.
BRNN_DEVICE uint32_t pack(bfloat16, float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
BRNN_DEVICE uint32_t pack(float16, float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
// Rounds to the upper 19 bits; every NaN becomes 0x7FFFFFFF.
BRNN_DEVICE uint32_t to_tf32(float value) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0,%1;" : "=r"(word) : "f"(value));
  return value != value ? 0x7FFFFFFFu : word;
}
BRNN_DEVICE float to_float(bfloat16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }
BRNN_DEVICE float to_float(float16 value) {
  float wide;
  asm("cvt.f32.f16 %0,%1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
BRNN_DEVICE float to_float(float value) { return value; }
BRNN_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
BRNN_DEVICE uint32_t float_to_bits(float value) { return __float_as_uint(value); }

// Byte i of the result is the byte of `bytes` that hexadecimal digit i of `digits` counts, 0 to 3.
BRNN_DEVICE uint32_t permute_bytes(uint32_t bytes, uint32_t digits) {
  return __byte_perm(bytes, 0, digits);
}

// Bits of byte i of the result are the highest bit of the byte that digit i counts. (The intrinsic
// of permute_bytes does not say that it can.)
template <uint32_t Digits>
BRNN_DEVICE uint32_t spread_signs(uint32_t bytes) {
  uint32_t word;
  asm("prmt.b32 %0,%1,0,%2;" : "=r"(word) : "r"(bytes), "n"(Digits | 0x8888));
  return word;
}

BRNN_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
BRNN_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

// What is computed from the word stays where it is written: the compiler hoists it out of no loop.
BRNN_DEVICE void opaque(uint32_t& word) { asm volatile("" : "+r"(word)); }
BRNN_DEVICE void opaque(int& word) { asm volatile("" : "+r"(word)); }
// The value is computed where this is written, not where it is used.
BRNN_DEVICE void opaque(float& value) { asm volatile("" : "+f"(value)); }

// ---- memory between blocks

BRNN_DEVICE uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0,[%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
BRNN_DEVICE void store_release(uint32_t* to, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0],%1;" ::"l"(to), "r"(value) : "memory");
}
// Loads four words, each of them whole; the four together may be torn.
BRNN_DEVICE uint4 load_relaxed(const uint4* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
BRNN_DEVICE uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0,[%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
BRNN_DEVICE void store_relaxed(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0],%1;" ::"l"(to), "r"(value) : "memory");
}
// Loads from L2, past L1, what another block has written.
template <class T>
BRNN_DEVICE T load_l2(const T* from) {
  if constexpr (requires { from->bits; })
    return {__ldcg(&from->bits)};
  else
    return __ldcg(from);
}

// Asks for the sector of 32 bytes at an address to be brought to L2, and waits for nothing. L2 may
// bring more.
BRNN_DEVICE void prefetch_l2(const void* sector) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(sector) : "memory");
}

// ---- synchronisation

// Waits at barrier `id` (1 to 15) for `threads` threads of the block.
BRNN_DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0,%1;" ::"r"(id), "r"(threads) : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Gives the place in the shared memory of block `rank` of the cluster that `mine` is in this
// block's.
template <class T>
BRNN_DEVICE T* cluster_map(T* mine, uint32_t rank) {
  T* theirs;
  asm("mapa.u64 %0,%1,%2;" : "=l"(theirs) : "l"(mine), "r"(rank));
  return theirs;
}
// Every thread of the cluster arrives (its writes become visible), then waits for all.
BRNN_DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
BRNN_DEVICE void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
#else  // no clusters before sm_90; the plan never picks them there
template <class T>
BRNN_DEVICE T* cluster_map(T* mine, uint32_t) {
  return mine;
}
BRNN_DEVICE void cluster_arrive() { __trap(); }
BRNN_DEVICE void cluster_wait() { __trap(); }
#endif

// ---- asynchronous copies

// Copies 16 bytes from global to shared memory; zeros where `inside` is false.
BRNN_DEVICE void copy_async(void* to, const void* from, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile(
      "cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
      "l"(from), "r"(bytes)
      : "memory");
}
// Copies 8 bytes likewise.
BRNN_DEVICE void copy_async_half(void* to, const void* from, bool inside) {
  const int bytes = inside ? 8 : 0;
  asm volatile(
      "cp.async.ca.shared.global [%0],[%1],8,%2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
      "l"(from), "r"(bytes)
      : "memory");
}
// Copies 4 bytes likewise.
BRNN_DEVICE void copy_async_word(void* to, const void* from, bool inside) {
  const int bytes = inside ? 4 : 0;
  asm volatile(
      "cp.async.ca.shared.global [%0],[%1],4,%2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
      "l"(from), "r"(bytes)
      : "memory");
}
BRNN_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `Pending` of this thread's groups are under way.
template <int Pending>
BRNN_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// These make a word of one number, with the rounding that a value takes when it becomes one.
BRNN_DEVICE uint32_t pack(float, float value, float) { return to_tf32(value); }

BRNN_DEVICE bfloat16 round_to(bfloat16 s, float value) { return {uint16_t(pack(s, value, 0.f))}; }
BRNN_DEVICE float16 round_to(float16 s, float value) { return {uint16_t(pack(s, value, 0.f))}; }
BRNN_DEVICE float round_to(float, float value) { return value; }

// This is Math for cells.h: its absolute error is below 2e-7, in six instructions.
struct DeviceMath {
  using Value = float;
  BRNN_DEVICE static float value(float x) { return x; }
  BRNN_DEVICE static float sigmoid(float x) {
    return reciprocal_approx(1.f + exp2_approx(-1.4426950408889634f * x));
  }
  BRNN_DEVICE static float tanh(float x) {
    return 1.f - 2.f * reciprocal_approx(1.f + exp2_approx(2.8853900817779268f * x));
  }
};

}  // namespace brnn::cuda
