// packed_resets.cuh - the resets of a step for a batch tile as the bits of one byte. So a thread
// asks for one byte a step, however many elements it has, and one branch that all threads take
// alike leads around what a reset costs. The bytes of a tile lie together, so that L1 has most of
// them.
#pragma once

#include "tile.cuh"

namespace brnn::cuda {

struct ResetParams {
  const uint8_t* resets;   // [T, B]; see resets_at
  const int64_t* lengths;  // [B] or nullptr: all T; see length_of
  int T, B;
  int batch_tiles;
  uint16_t* packed;  // bytes [batch tiles, T]; bit r: zero enters the step in row r
};

constexpr int kResetThreads = 128;

// A thread makes two bytes that lie side by side: half the stores, and the race detector of the
// tests tells no single bytes apart.
BRNN_INLINE int64_t packed_pairs(int T, int batch_tiles) {
  return (int64_t{T} * batch_tiles + 1) / 2;
}

// The rows of a batch tile that zero enters at time t, a step inside their sequences.
BRNN_DEVICE unsigned resetting_rows(const ResetParams& p, int tile, int t) {
  unsigned rows = 0;
#pragma unroll
  for (int r = 0; r < kTileSequences; ++r) {
    const int b = tile * kTileSequences + r;
    if (b < p.B && t < length_of(p.lengths, b, p.T))
      rows |= unsigned(resets_at(p.resets, b, t, p.B)) << r;
  }
  return rows;
}

// It is a template of one instance, pack_resets_kernel<uint8_t>, which several objects may have.
template <class Flag>
__global__ void __launch_bounds__(kResetThreads)
    pack_resets_kernel(const __grid_constant__ ResetParams p) {
  const int64_t pair = int64_t{blockIdx.x} * kResetThreads + threadIdx.x;
  if (pair >= packed_pairs(p.T, p.batch_tiles)) return;
  unsigned bytes = 0;
  for (int i = 0; i < 2; ++i) {
    const int64_t at = 2 * pair + i;  // the last one may be padding, where no sequence is
    bytes |= resetting_rows(p, int(at / p.T), int(at % p.T)) << (8 * i);
  }
  p.packed[pair] = uint16_t(bytes);
}

}  // namespace brnn::cuda
