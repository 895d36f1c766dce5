// masks.h draws dropout masks from Threefry-4x32-20 (Salmon et al., 2011, "Parallel random numbers:
// as easy as 1, 2, 3"), because torch.rand and a comparison take several times as long. It counts,
// so every instruction set draws the same mask from a seed; and it adds, rotates and xors only,
// which all of them do with whole vectors.
#pragma once

#include "simd.h"

namespace brnn::BRNN_ISA {

constexpr int kMaskLanes = kVectorBytes / sizeof(uint32_t);
typedef uint8_t MaskBytes __attribute__((vector_size(kMaskLanes)));

// Sixteen counters give four words each: keep[16 w + n] comes from word w of counter n.
constexpr int kCounters = 16, kMaskBlock = 4 * kCounters;

inline Words rotate(Words x, uint32_t by) { return x << by | x >> (32 - by); }

// Replaces the counters {x[0], x[1], 0, 0} by their random words.
inline void threefry(Words (&x)[4], uint64_t seed) {
  constexpr uint32_t kRotations[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5},
                                         {6, 20},  {17, 11}, {25, 10}, {18, 20}};
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  const uint32_t key[5] = {low, high, 0, 0, 0x1BD11BDA ^ low ^ high};
  for (int i = 0; i < 4; ++i) x[i] += key[i];
#pragma GCC unroll 20
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

// Draws keep[kMaskBlock] of that block: it is 1 where the word exceeds `last`, the last one that
// drops.
inline void sample_block(uint8_t* keep, uint64_t block, uint64_t seed, uint32_t last) {
  Words lane{};
  for (int l = 0; l < kMaskLanes; ++l) lane[l] = static_cast<uint32_t>(l);
  for (int n = 0; n < kCounters; n += kMaskLanes) {
    const uint64_t counter = block * kCounters + static_cast<uint64_t>(n);
    const uint32_t low = static_cast<uint32_t>(counter),
                   high = static_cast<uint32_t>(counter >> 32);
    Words x[4] = {lane + low, Words{} + high, Words{}, Words{}};
    threefry(x, seed);
    for (int w = 0; w < 4; ++w) {
      const auto bytes = __builtin_convertvector((Words)(x[w] > last) & 1, MaskBytes);
      std::memcpy(keep + kCounters * w + n, &bytes, sizeof bytes);
    }
  }
}

// Draws keep[count]: each is 1 with probability 1 - p to within 2^-33; exactly none or all are for
// p = 1 and p = 0.
inline void sample_keep(uint8_t* keep, int64_t count, uint64_t seed, double p) {
  const int64_t dropping = static_cast<int64_t>(p * 0x1p32 + 0.5);  // of 2^32 words
  if (dropping == 0 || dropping == int64_t{1} << 32) {
    std::memset(keep, dropping == 0, static_cast<size_t>(count));
    return;
  }
  const uint32_t last = static_cast<uint32_t>(dropping - 1);
  int64_t done = 0;
  for (; done + kMaskBlock <= count; done += kMaskBlock)
    sample_block(keep + done, static_cast<uint64_t>(done / kMaskBlock), seed, last);
  if (done == count) return;
  uint8_t rest[kMaskBlock];
  sample_block(rest, static_cast<uint64_t>(done / kMaskBlock), seed, last);
  std::memcpy(keep + done, rest, static_cast<size_t>(count - done));
}

}  // namespace brnn::BRNN_ISA
