// masks.h draws dropout masks with whole vectors, because torch.rand and a comparison take several
// times as long.
#pragma once

#include "../masks.h"
#include "simd.h"

namespace brnn::BRNN_ISA {

constexpr int kMaskLanes = kVectorBytes / sizeof(uint32_t);
typedef uint8_t MaskBytes __attribute__((vector_size(kMaskLanes)));

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

// Draws keep[count].
inline void sample_keep(uint8_t* keep, int64_t count, uint64_t seed, double p) {
  const int64_t dropping = dropping_words(p);
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
