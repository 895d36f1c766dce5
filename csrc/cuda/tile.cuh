// tile.cuh - how the recurrence is cut: numbers into words, units and sequences over threads, U
// over the registers of the warps.
//
// A block owns `unit_tiles` tiles of 16 hidden units, every gate of them, so that the pointwise
// update never leaves the block. k, the index of what U multiplies, is cut into chunks of 512 bytes
// for a batch tile of 8 sequences; a warp owns `chunks` of them. Its slice of U stays in registers
// as mma A fragments for the whole sequence.
//
// k is permuted inside a chunk, in U and in the masks alike, so that 16 bytes of a row of the plain
// layout [8 sequences][16 words] are a lane's B fragments of two mma.
#pragma once

#include "device.cuh"
#include "tilings.h"

namespace brnn::cuda {

constexpr int kChunkWords = kChunkBytes / 4;  // 8 sequences times 16 words

// How numbers of type S fill words of 32 bit; float stands for tf32.
template <class S>
struct Number {
  static constexpr int per_word = 4 / int(sizeof(S));
  static constexpr int chunk_units = units_of_chunk(sizeof(S));
  static constexpr uint32_t kFirst = per_word == 2 ? 0xFFFFu : ~0u;  // bits of the first unit

  // The first unit of word i of a lane's fragments: 4 words of each chunk; q = lane % 4.
  BRNN_DEVICE static int unit_of_word(int chunk0, int i, int q) {
    return (chunk0 + i / 4) * chunk_units + (4 * q + i % 4) * per_word;
  }
};

// Rows r and r + 8 of an mma tile are neighbouring units, so that a lane's results make a word.
BRNN_DEVICE int unit_of_row(int row) { return 2 * (row & 7) + (row >> 3); }

template <Tiling Cut>
struct Tile {
  static constexpr Tiling tiling = Cut;
  static constexpr int chunks = Cut.chunks, k_warps = Cut.k_warps, unit_tiles = Cut.unit_tiles;
  static constexpr bool looped = Cut.looped;
  static constexpr int threads = Cut.threads();
  static constexpr int group = 32 * k_warps;  // threads that share a unit tile
  static constexpr int makers = group < kTileCells ? group : kTileCells;  // who updates cells
  static constexpr int cells = kTileCells / makers;                       // of each maker
  static constexpr bool whole_sums = k_warps == 1;  // a warp's accumulators need no sum over warps
  // One barrier a step suffices: the sums of a step are read before its next barrier but one.
  static constexpr int sum_buffers = 2;
};

// Where a thread stands.
template <class Tile>
struct Place {
  int lane, g, q;    // g = lane / 4: row of fragments; q = lane % 4
  int local, tile;   // unit tile within the block, within the layer
  int thread, warp;  // within the threads that share the unit tile
  int chunk0, own0;  // first chunk of the warp; chunks before own0 belong to the warp below
  int batch_tile0;   // first batch tile of the block
  bool maker;

  // `chunks`: of the layer. The last slice is moved down to stay inside.
  BRNN_DEVICE Place(int chunks, int batch_tiles) {
    const int id = int(threadIdx.x);
    lane = id % 32, g = lane / 4, q = lane % 4;
    local = id / Tile::group, tile = int(blockIdx.x) * Tile::unit_tiles + local;
    thread = id % Tile::group, warp = thread / 32;
    own0 = warp * Tile::chunks;
    chunk0 = own0 < chunks - Tile::chunks ? own0 : chunks - Tile::chunks;
    batch_tile0 = int(blockIdx.y) * batch_tiles;
    maker = thread < Tile::makers;
  }

  // The cells that this thread updates. Fragment order where a warp holds whole sums, else 16
  // neighbouring units of a sequence per half warp.
  BRNN_DEVICE int unit(int cell) const {
    return Tile::whole_sums ? 2 * g + (cell >> 1) : (thread + cell * Tile::makers) % kTileUnits;
  }
  BRNN_DEVICE int row(int cell) const {
    return Tile::whole_sums ? 2 * q + (cell & 1) : (thread + cell * Tile::makers) / kTileUnits;
  }
};

// Four words of 16 bytes at `from`; zeros after `count` numbers.
template <class S>
BRNN_DEVICE uint4 load_row(const S* from, int count, bool aligned) {
  if (aligned) return *reinterpret_cast<const uint4*>(from);
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(S) == 2) {
      words[i] = 2 * i < count ? from[2 * i].bits : 0u;
      if (2 * i + 1 < count) words[i] |= uint32_t(from[2 * i + 1].bits) << 16;
    } else {
      words[i] = i < count ? to_tf32(from[i]) : 0u;
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// Rounds the words of float32 operands for the tensor cores; 16-bit words stay.
template <class S>
BRNN_DEVICE uint4 as_operand(uint4 v) {
  if constexpr (sizeof(S) == 4) {
    const auto rounded = [](uint32_t w) { return to_tf32(bits_to_float(w)); };
    return {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)};
  }
  return v;
}

// A weight's slice [G][16 rows of the unit tile][the warp's chunks] as mma A fragments.
template <class S, int G, int Chunks>
struct Weights {
  uint32_t fragments[G][2 * Chunks][4];

  BRNN_DEVICE void set(int gate, int chunk, int half, const uint4& words) {
    fragments[gate][2 * chunk][half] = words.x, fragments[gate][2 * chunk][half + 2] = words.y;
    fragments[gate][2 * chunk + 1][half] = words.z;
    fragments[gate][2 * chunk + 1][half + 2] = words.w;
  }

  // Rows of weight [G*H, K] itself: what forward multiplies by.
  template <class Tile>
  BRNN_DEVICE void load_rows(const S* weight, int H, int K, const Place<Tile>& at) {
    const bool aligned = K % (4 * Number<S>::per_word) == 0;
#pragma unroll
    for (int gate = 0; gate < G; ++gate)
#pragma unroll
      for (int chunk = 0; chunk < Chunks; ++chunk)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int unit = at.tile * kTileUnits + unit_of_row(at.g + 8 * half);
          const int k = Number<S>::unit_of_word(at.chunk0 + chunk, 0, at.q);
          const S* from = weight + (int64_t(gate) * H + unit) * K + k;
          uint4 words{0, 0, 0, 0};
          if (unit < H && k < K && at.chunk0 + chunk >= at.own0)
            words = as_operand<S>(load_row(from, K - k, aligned));
          set(gate, chunk, half, words);
        }
  }

  // Columns of weight [G*H, H]: what backward multiplies by.
  template <class Tile>
  BRNN_DEVICE void load_columns(const S* weight, int H, const Place<Tile>& at) {
#pragma unroll
    for (int gate = 0; gate < G; ++gate)
#pragma unroll
      for (int chunk = 0; chunk < Chunks; ++chunk)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int unit = at.tile * kTileUnits + unit_of_row(at.g + 8 * half);
          const int k = Number<S>::unit_of_word(at.chunk0 + chunk, 0, at.q);
          const S* from = weight + (int64_t(gate) * H + k) * H + unit;
          uint4 words{0, 0, 0, 0};
          if (unit < H && at.chunk0 + chunk >= at.own0) words = load_column(from, H - k, H);
          set(gate, chunk, half, words);
        }
  }

 private:
  BRNN_DEVICE static uint4 load_column(const S* from, int count, int H) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(S) == 2) {
        words[i] = 2 * i < count ? from[int64_t(2 * i) * H].bits : 0u;
        if (2 * i + 1 < count) words[i] |= uint32_t(from[int64_t(2 * i + 1) * H].bits) << 16;
      } else {
        words[i] = i < count ? to_tf32(from[int64_t(i) * H]) : 0u;
      }
    }
    return {words[0], words[1], words[2], words[3]};
  }
};

// ---- sums over the warps that share a unit tile, through shared memory

// Where a warp's partial sum of the cell (unit 2g + j/2, sequence 2q + j%2) lies: no two lanes of a
// writing warp (one j) or a reading one (16 units, one sequence) meet in a bank.
BRNN_DEVICE int partial_slot(int g, int q, int j) {
  return j * 32 + q * 8 + ((g + 2 * q + 2 * (j & 2)) & 7);
}
BRNN_DEVICE int partial_slot_of_cell(int unit, int row) {
  return partial_slot(unit >> 1, row >> 1, (unit & 1) * 2 + (row & 1));
}

// All threads of the unit tile.
template <class Tile>
BRNN_DEVICE void group_barrier(int local) {
  if constexpr (Tile::unit_tiles == 1)
    __syncthreads();
  else
    named_barrier(1 + local, Tile::group);
}

}  // namespace brnn::cuda
