// masks.h has the random numbers of which dropout masks are drawn, for every backend:
// Threefry-4x32-20 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"). It counts,
// so that the same seed gives the same mask wherever it is drawn and in whatever order, and it
// adds, rotates and xors only, which all machines do with whole words.
#pragma once

#include <cstdint>

#include "cells.h"

namespace brnn {

// Sixteen counters give four words each: keep[16 w + n] of a block comes from word w of its
// counter n.
constexpr int kCounters = 16, kMaskBlock = 4 * kCounters;

// A Draw is a mask to be drawn: keep[i] is 1 with probability 1 - p, to within 2^-33.
struct Draw {
  uint8_t* keep;        // [count]
  int64_t count;        // 0: no mask
  const int64_t* seed;  // where the mask lies
  double p;

  BRNN_INLINE int64_t blocks() const { return (count + kMaskBlock - 1) / kMaskBlock; }
};

// Counts those of the 2^32 words that drop: the words below that number, none or all of them for
// p = 0 and p = 1.
BRNN_INLINE int64_t dropping_words(double p) { return static_cast<int64_t>(p * 0x1p32 + 0.5); }

// ---- Word: uint32_t, or a vector of them

template <class Word>
BRNN_INLINE Word rotate(Word x, uint32_t by) {
  return x << by | x >> (32 - by);
}

// Replaces the counters {x[0], x[1], 0, 0} by their random words.
template <class Word>
BRNN_INLINE void threefry(Word (&x)[4], uint64_t seed) {
  constexpr uint32_t kRotations[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5},
                                         {6, 20},  {17, 11}, {25, 10}, {18, 20}};
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  const uint32_t key[5] = {low, high, 0, 0, 0x1BD11BDA ^ low ^ high};
  for (int i = 0; i < 4; ++i) x[i] += key[i];
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 20
#endif
  for (int round = 0; round < 20; ++round) {
    const int a = round % 2 ? 3 : 1, b = 4 - a;
    x[0] += x[a], x[a] = rotate(x[a], kRotations[round % 8][0]) ^ x[0];
    x[2] += x[b], x[b] = rotate(x[b], kRotations[round % 8][1]) ^ x[2];
    if (round % 4 == 3) {
      const int next = round / 4 + 1;
      for (int i = 0; i < 4; ++i) x[i] += key[(next + i) % 5];
      x[3] += static_cast<uint32_t>(next);
    }
  }
}

}  // namespace brnn
