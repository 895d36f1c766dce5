// packed_weights.cuh puts a weight into the order in which warps keep it: mma A fragments, 16 bytes
// a lane.
//
// A kernel of its own packs it once per call. So the recurrence begins with plain loads, whatever H
// is, forward and backward alike, and holds no code for ragged rows (which halved its compile
// time).
#pragma once

#include "tile.cuh"

namespace brnn::cuda {

template <class S>
struct PackParams {
  const S* weight;  // [G*H, K]; by_columns [G*K, H]: backward multiplies by the transpose
  uint4* packed;    // [unit tiles, k_warps, G, chunks, 2, 32]
  bool by_columns;
  int gates, H, K;
  int unit_tiles, k_warps, chunks;
  int all_chunks;  // of k
};

constexpr int kPackThreads = 256;

// How many 16-byte words are packed; the host sizes memory and grid by it, so it is no device
// function.
BRNN_INLINE int64_t packed_count(int unit_tiles, int k_warps, int gates, int chunks) {
  return int64_t(unit_tiles) * k_warps * gates * chunks * 64;
}

// Four words of numbers that lie `stride` apart; zeros after `count`.
template <class S>
BRNN_DEVICE uint4 load_words(const S* from, int64_t stride, int count) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (Number<S>::per_word == 2) {
      words[i] = 2 * i < count ? from[2 * i * stride].bits : 0u;
      if (2 * i + 1 < count) words[i] |= uint32_t(from[(2 * i + 1) * stride].bits) << 16;
    } else {
      words[i] = i < count ? float_to_bits(from[i * stride]) : 0u;
    }
  }
  return {words[0], words[1], words[2], words[3]};
}
// The same along a row, in one load where its address allows.
template <class S>
BRNN_DEVICE uint4 load_row(const S* from, int count, bool aligned) {
  return aligned ? *reinterpret_cast<const uint4*>(from) : load_words(from, 1, count);
}

// Rounds the words of float32 operands for the tensor cores; 16-bit words stay.
template <class S>
BRNN_DEVICE uint4 as_operand(uint4 v) {
  if constexpr (DtypeOf<S>::rounds_operands) {
    const auto rounded = [](uint32_t w) { return to_tf32(bits_to_float(w)); };
    return {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)};
  }
  return v;
}

template <class S>
__global__ void __launch_bounds__(kPackThreads)
    pack_weights_kernel(const __grid_constant__ PackParams<S> p) {
  const int64_t at = int64_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (at >= packed_count(p.unit_tiles, p.k_warps, p.gates, p.chunks)) return;
  const int lane = int(at % 32), half = int(at / 32 % 2), chunk = int(at / 64 % p.chunks);
  const int gate = int(at / 64 / p.chunks % p.gates);
  const int slice = int(at / 64 / p.chunks / p.gates);  // tile * k_warps + warp
  const int own0 = slice % p.k_warps * p.chunks, chunk0 = first_chunk(own0, p.chunks, p.all_chunks);
  const int unit = slice / p.k_warps * kTileUnits + unit_of_row(lane / 4 + 8 * half);
  const int k = Number<S>::unit_of_word(chunk0 + chunk, 0, lane % 4);

  uint4 words{0, 0, 0, 0};
  if (unit < p.H && k < p.K && chunk0 + chunk >= own0) {
    if (p.by_columns)
      words = load_words(p.weight + (int64_t(gate) * p.K + k) * p.H + unit, p.H, p.K - k);
    else
      words = load_row(p.weight + (int64_t(gate) * p.H + unit) * p.K + k, p.K - k,
                       p.K % (4 * Number<S>::per_word) == 0);
  }
  p.packed[at] = as_operand<S>(words);
}

// A warp's slice of a weight: G gates, 16 rows of its unit tile, its chunks of k.
template <class S, int G, int Chunks>
struct Weights {
  uint32_t fragments[G][2 * Chunks][4];

  // From what pack_weights_kernel wrote; slice: unit tile * k_warps + warp.
  BRNN_DEVICE void load(const uint4* packed, int slice, int lane) {
    packed += int64_t(slice) * G * Chunks * 64 + lane;
#pragma unroll
    for (int gate = 0; gate < G; ++gate)
#pragma unroll
      for (int chunk = 0; chunk < Chunks; ++chunk)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 words = packed[((gate * Chunks + chunk) * 2 + half) * 32];
          fragments[gate][2 * chunk][half] = words.x,
                              fragments[gate][2 * chunk][half + 2] = words.y;
          fragments[gate][2 * chunk + 1][half] = words.z;
          fragments[gate][2 * chunk + 1][half + 2] = words.w;
        }
  }
};

}  // namespace brnn::cuda
