// fetch_ahead.cuh brings to L2 what a step will want, some steps before it does. Stages and gates
// of a long layer do not stay in L2 from when they were written, and the first look at a word, or
// the gates that elements wait for, would take the time of a trip to memory.
//
// Warps that update no elements do it while they wait for the others. A block asks for its own
// share: the words that it publishes, the rows of its units.
#pragma once

#include "tile.cuh"

namespace brnn::cuda {

inline constexpr int kSectorBytes = 32;  // of L2, which fetches no less
// Memory answers within a step or two. A stage is also polled a step early.
inline constexpr int kStagesAhead = 4, kStepsAhead = 2;

// Whether a block has such warps, one for the stages and one for the rest, and registers for it:
// with 6 chunks, or two blocks on a multiprocessor, it would spill.
template <class Tile, int Resident>
inline constexpr bool kFetchesAhead =
    Tile::unit_tiles == 1 && Tile::group >= Tile::makers + 64 && Tile::chunks <= 4 && Resident < 2;
// This thread's warp is the one for the stages, or the one for the rest.
template <class Tile>
BRNN_DEVICE bool fetches_stages(const Place<Tile>& at) {
  return at.warp == Tile::k_warps - 1;
}
template <class Tile>
BRNN_DEVICE bool fetches_rows(const Place<Tile>& at) {
  return at.warp == Tile::k_warps - 2;
}

// Calls fetch(i) for i in 0 .. Count - 1 by the lanes of a warp. Nothing of it is hoisted out of
// the loop over steps: registers are scarcer than the time of these warps.
template <int Count, class Fetch>
BRNN_DEVICE void share_out(int lane, const Fetch& fetch) {
  opaque(lane);
#pragma unroll
  for (int first = 0; first < Count; first += 32)
    if (first + 32 <= Count || first + lane < Count) fetch(first + lane);
}

// Fetches the block's units of `Count` rows for each sequence of batch tile n: row(sequence, i) is
// where they lie, or nullptr.
template <class S, class Tile, int Count, class Row>
BRNN_DEVICE void fetch_rows(const Place<Tile>& at, int n, int H, const Row& row) {
  constexpr int kUnits = kSectorBytes / int(sizeof(S)), kSectors = kTileUnits / kUnits;
  share_out<Count * kTileSequences * kSectors>(at.lane, [&](int i) {
    const int sequence = (at.batch_tile0 + n) * kTileSequences + i / kSectors % kTileSequences;
    const S* const from = row(sequence, i / kSectors / kTileSequences);
    const int unit = at.tile * kTileUnits + i % kSectors * kUnits;
    if (from && unit < H) prefetch_l2(from + unit);
  });
}

}  // namespace brnn::cuda
