// shared_layout.h says where the parts of a persistent kernel's shared memory lie. The plan asks
// how much they are together and the kernels where each begins. Both ask here, so that no kernel
// reaches past what its plan gave it.
//
// Everything is counted in words of 4 bytes. The parts, in this order:
//   sums    [kSumBuffers][unit tiles][k warps][128]    what each warp sums, for one warp to add up
//   states  [batch tiles][unit tiles][128]             of a looped block: what its elements carry
//   masks   [batch tiles][words of a thread][threads]  of a looped block: masks as bits
//   stages  [2][planes][chunks][128 words]             of an exchange that does not go through L2
#pragma once

#include "tilings.h"

namespace brnn::cuda {

// One barrier a step suffices: the sums of a step are read before its next barrier but one.
inline constexpr int kSumBuffers = 2;

struct SharedLayout {
  int sum, state, mask;  // words of a sum, of what an element carries, of a thread's masks
  int buffer;            // sums of a step; none where a warp has all of k
  int states, masks;     // words of a batch tile; none unless a block is looped
};

// With `untied` each gate has recurrent masks of its own.
constexpr SharedLayout shared_layout(Pass pass, const Tiling& t, const CellTraits& cell,
                                     bool untied) {
  const bool forward = pass == Pass::forward;
  SharedLayout layout{};
  // Forward sums a value for each gate, in the 16 bytes of a load unless there is one gate.
  // Backward adds the gates first.
  layout.sum = forward && cell.gates > 1 ? 4 : 1;
  // Forward carries h, and c where the cell has one; backward what is held outside a length, and
  // what skips the gates.
  layout.state = forward && !cell.has_c ? 1 : 2;
  layout.mask = forward && untied ? cell.gates * packed_words(t.chunks) : 1;
  layout.buffer = t.k_warps == 1 ? 0 : t.unit_tiles * t.k_warps * kTileElements;
  if (t.looped) {
    layout.states = t.unit_tiles * kTileElements * layout.state;
    layout.masks = layout.mask * t.threads();
  }
  return layout;
}

// Counts the words of the stages of h_t, or of dz of every gate, of one batch tile.
constexpr int stage_words(Engine engine, Pass pass, int gates, int all_chunks) {
  const int planes = pass == Pass::forward ? 1 : gates;
  return traits(engine).exchanges_shared ? 2 * planes * all_chunks * kChunkWords : 0;
}

// Counts all of it. `all_chunks` are those that the blocks over the units publish.
constexpr int shared_bytes(Engine engine, Pass pass, const Tiling& t, const CellTraits& cell,
                           bool untied, int batch_tiles, int all_chunks) {
  const SharedLayout layout = shared_layout(pass, t, cell, untied);
  const int sums = kSumBuffers * layout.buffer * layout.sum;
  const int stages = stage_words(engine, pass, cell.gates, all_chunks);
  return 4 * (sums + batch_tiles * (layout.states + layout.masks) + stages);
}

}  // namespace brnn::cuda
