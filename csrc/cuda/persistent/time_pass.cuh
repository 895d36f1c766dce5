// time_pass.cuh - what forward and backward share of a pass over time: which cells a thread has,
// how long their sequences are, where the sums over warps and the state of waiting batch tiles lie.
#pragma once

#include "tile.cuh"

namespace brnn::cuda {

// States: floats that a cell carries from step to step.
template <class Params, class Tile, int States>
class TimePass {
 protected:
  static constexpr int C = Tile::cells;

  BRNN_DEVICE explicit TimePass(const Params& p) : p_(p), at_(p.exchange.chunks, p.batch_tiles) {
    write_at_ = (at_.local * Tile::k_warps + at_.warp) * kTileCells + partial_slot(at_.g, at_.q, 0);
    read_at_ = sum_of(0);
    opaque(write_at_), opaque(read_at_);  // not again in every step
  }

  // ---- shared memory: sums [2][unit tiles][K warps][128], then of a looped block states
  // [batch tiles][unit tiles][128][States] and masks [batch tiles][words][threads], then the slots
  // of an exchange within the block

  static constexpr int kBuffer = Tile::unit_tiles * Tile::k_warps * kTileCells;
  static constexpr int kSums = Tile::whole_sums ? 0 : Tile::sum_buffers * kBuffer;
  BRNN_DEVICE int stored_states() const {
    return Tile::looped ? p_.batch_tiles * Tile::unit_tiles * kTileCells * States : 0;
  }
  BRNN_DEVICE int stored_state(int n, int cell) const {
    return ((n * Tile::unit_tiles + at_.local) * kTileCells + at_.thread + cell * Tile::makers) *
           States;
  }
  // Where the first warp's sum of a cell lies in a buffer.
  BRNN_DEVICE int sum_of(int cell) const {
    return at_.local * Tile::k_warps * kTileCells +
           partial_slot_of_cell(at_.unit(cell), at_.row(cell));
  }
  BRNN_DEVICE int buffer_of(int s, int n) const {
    return (s * tiles() + n) % Tile::sum_buffers * kBuffer;
  }

  // ---- cells

  BRNN_DEVICE int tiles() const { return Tile::looped ? p_.batch_tiles : 1; }
  BRNN_DEVICE int unit(int cell) const { return at_.tile * kTileUnits + at_.unit(cell); }
  BRNN_DEVICE int sequence(int n, int cell) const {
    return (at_.batch_tile0 + n) * kTileSequences + at_.row(cell);
  }
  BRNN_DEVICE bool exists(int n, int cell) const {
    return unit(cell) < p_.H && sequence(n, cell) < p_.B;
  }
  BRNN_DEVICE int time(int s) const { return p_.reverse ? p_.T - 1 - s : s; }
  BRNN_DEVICE int length(int b) const { return int(length_of(p_.lengths, b, p_.T)); }

  // Steps of each of this thread's cells; none where there is no such cell.
  BRNN_DEVICE void load_lengths(int n) {
#pragma unroll
    for (int i = 0; i < C; ++i) length_[i] = exists(n, i) ? length(sequence(n, i)) : 0;
  }

  const Params& p_;
  const Place<Tile> at_;
  int write_at_, read_at_;
  int length_[C] = {};
};

}  // namespace brnn::cuda
