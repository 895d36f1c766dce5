// peak.h finds out how many products a core can make, for the benchmarks: sums in registers alone,
// as many chains of them as a microkernel has, so that none waits for the last.
#pragma once

#include "microkernel.h"

namespace brnn::BRNN_ISA {

// sum + 1 by one instruction that multiplies; the compiler sees no product that it could make once.
BRNN_INLINE void count_one(Vec<float>& sum, Vec<float> one) {
#if defined(BRNN_NEON)
  asm("fmla %0.4s, %1.4s, %1.4s" : "+w"(sum.v) : "w"(one.v));
#else
  sum = sum * one + one;
#endif
}

// Multiplies and adds in float for some milliseconds. Returns how many products it made: every sum
// counts its own.
inline double count_fmas() {
  using V = Vec<float>;
  constexpr int kSums = Product<float>::sums, kRounds = 1 << 20;  // floats count to 2^24
  volatile float start = 0, step = 1;  // known at run time only: equal sums would be made once
  const V one = broadcast<float>(step);
  V sum[kSums];
  for (V& each : sum) each = broadcast<float>(start);
  for (int round = 0; round < kRounds; ++round)
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) count_one(sum[i], one);
  double products = 0;
  for (int i = 0; i < kSums; ++i)
    for (int lane = 0; lane < V::size; ++lane) products += sum[i].v[lane];
  return products;
}

}  // namespace brnn::BRNN_ISA
