// tile.cuh says how the recurrence is cut: numbers into words, units and sequences over threads, U
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

#include "../device/intrinsics.cuh"
#include "../plan/tilings.h"

namespace brnn::cuda {

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
  static constexpr int makers =
      group < kTileElements ? group : kTileElements;       // who updates elements
  static constexpr int elements = kTileElements / makers;  // of each maker
  static constexpr bool whole_sums = k_warps == 1;  // a warp's accumulators need no sum over warps
};

// Where a warp's slice of k begins: the last one is moved down to stay inside.
BRNN_DEVICE int first_chunk(int own0, int chunks, int all_chunks) {
  return own0 < all_chunks - chunks ? own0 : all_chunks - chunks;
}

// Where a thread stands.
template <class Tile>
struct Place {
  int lane, g, q;    // g = lane / 4: row of fragments; q = lane % 4
  int local, tile;   // unit tile within the block, within the layer
  int thread, warp;  // within the threads that share the unit tile
  int chunk0, own0;  // first chunk of the warp; chunks before own0 belong to the warp below
  int batch_tile0;   // first batch tile of the block
  bool maker;

  // `chunks` are those of the layer.
  BRNN_DEVICE Place(int chunks, int batch_tiles) {
    const int id = int(threadIdx.x);
    lane = id % 32, g = lane / 4, q = lane % 4;
    local = id / Tile::group, tile = int(blockIdx.x) * Tile::unit_tiles + local;
    thread = id % Tile::group, warp = thread / 32;
    own0 = warp * Tile::chunks;
    chunk0 = first_chunk(own0, Tile::chunks, chunks);
    batch_tile0 = int(blockIdx.y) * batch_tiles;
    maker = thread < Tile::makers;
  }

  // These give the elements that this thread updates. They are in fragment order where a warp holds
  // whole sums, else 16 neighbouring units of a sequence per half warp.
  BRNN_DEVICE int unit(int element) const {
    return Tile::whole_sums ? 2 * g + (element >> 1)
                            : (thread + element * Tile::makers) % kTileUnits;
  }
  // Gives the warp's slice of a weight (packed_weights.cuh).
  BRNN_DEVICE int slice() const { return tile * Tile::k_warps + warp; }
  BRNN_DEVICE int row(int element) const {
    return Tile::whole_sums ? 2 * q + (element & 1)
                            : (thread + element * Tile::makers) / kTileUnits;
  }
};

// ---- sums over the warps that share a unit tile, through shared memory

// Where a warp's partial sum of the element (unit 2g + j/2, sequence 2q + j%2) lies: neither the
// lanes of a writing warp (one j) nor those of a reading one (16 units, two sequences) meet in a
// bank, be a sum 4 bytes or 16. With j = 0 at `first`, the others lie at partial_index_after(first,
// j).
BRNN_DEVICE int partial_index(int g, int q, int j) {
  return j * 32 + ((q ^ j) & 3) * 8 + ((g + 2 * q + 2 * (j & 2)) & 7);
}
BRNN_DEVICE int partial_index_after(int first, int j) {
  return (first ^ ((j & 2) * 2 | j * 8)) + j * 32;
}
BRNN_DEVICE int partial_index_of_element(int unit, int row) {
  return partial_index(unit >> 1, row >> 1, (unit & 1) * 2 + (row & 1));
}

// Waits for all threads of the unit tile.
template <class Tile>
BRNN_DEVICE void group_barrier(int local) {
  if constexpr (Tile::unit_tiles == 1)
    __syncthreads();
  else
    named_barrier(1 + local, Tile::group);
}

}  // namespace brnn::cuda
