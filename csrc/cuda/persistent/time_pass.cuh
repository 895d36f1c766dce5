// time_pass.cuh has what forward and backward share of a pass over time: which elements a thread
// has, how long their sequences are, where the sums over warps and the state of waiting batch tiles
// lie.
#pragma once

#include <type_traits>

#include "../plan/shared_layout.h"
#include "tile.cuh"

namespace brnn::cuda {

// With OwnMasks each gate has recurrent masks of its own.
template <class Params, class Tile, Pass Direction, template <class> class CellOf, bool OwnMasks>
class TimePass {
 protected:
  static constexpr int kElements = Tile::elements;
  static constexpr SharedLayout kLayout =
      shared_layout(Direction, Tile::tiling, traits_of<CellOf>(), OwnMasks);
  using Sum = std::conditional_t<kLayout.sum == 4, float4, float>;
  static_assert(sizeof(Sum) == 4 * kLayout.sum);

  BRNN_DEVICE explicit TimePass(const Params& p) : p_(p), at_(p.exchange.chunks, p.batch_tiles) {
    write_at_ =
        (at_.local * Tile::k_warps + at_.warp) * kTileElements + partial_index(at_.g, at_.q, 0);
    read_at_ = sum_of(0);
    opaque(write_at_), opaque(read_at_);  // not again in every step
    sums_ = shared_memory<Sum>();
    states_ = reinterpret_cast<float*>(sums_ + kSumBuffers * kLayout.buffer);
    stored_masks_ =
        reinterpret_cast<uint32_t*>(states_ + p.batch_tiles * kLayout.states) + threadIdx.x;
  }

  // ---- shared memory: the parts of shared_layout.h, one after the other

  BRNN_DEVICE uint32_t* stages() const {
    return stored_masks_ + p_.batch_tiles * kLayout.masks - threadIdx.x;
  }
  BRNN_DEVICE float* stored_state(int n, int element) const {
    return states_ + ((n * Tile::unit_tiles + at_.local) * kTileElements + at_.thread +
                      element * Tile::makers) *
                         kLayout.state;
  }
  BRNN_DEVICE uint32_t* stored_masks(int n) const { return stored_masks_ + n * kLayout.masks; }
  // Says where the first warp's sum of an element lies in a buffer.
  BRNN_DEVICE int sum_of(int element) const {
    return at_.local * Tile::k_warps * kTileElements +
           partial_index_of_element(at_.unit(element), at_.row(element));
  }
  BRNN_DEVICE int buffer_of(int s, int n) const {
    return (s * tiles() + n) % kSumBuffers * kLayout.buffer;
  }

  // ---- elements

  BRNN_DEVICE int tiles() const { return Tile::looped ? p_.batch_tiles : 1; }
  BRNN_DEVICE int unit(int element) const { return at_.tile * kTileUnits + at_.unit(element); }
  BRNN_DEVICE int sequence(int n, int element) const {
    return (at_.batch_tile0 + n) * kTileSequences + at_.row(element);
  }
  BRNN_DEVICE bool exists(int n, int element) const {
    return unit(element) < p_.H && sequence(n, element) < p_.B;
  }
  BRNN_DEVICE int time(int s) const { return p_.reverse ? p_.T - 1 - s : s; }
  BRNN_DEVICE int length(int b) const { return int(length_of(p_.lengths, b, p_.T)); }

  // Loads the steps of each of this thread's elements; there are none where there is no such
  // element.
  BRNN_DEVICE void load_lengths(int n) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) length_[i] = exists(n, i) ? length(sequence(n, i)) : 0;
  }

  // The resets of step s, a bit for each row of the batch tile. They are asked for before the wait,
  // off the path of h and dz, where a register is left for them; else before the sum over warps.
  static constexpr bool kResetsEarly = Tile::chunks <= 3;
  BRNN_DEVICE uint32_t load_resets(int s, int n) const {
    return p_.resets ? p_.resets[(at_.batch_tile0 + n) * p_.T + time(s)] : 0u;
  }
  BRNN_DEVICE bool resets(uint32_t rows, int element) const { return rows >> at_.row(element) & 1; }

  // ---- between launches

  // What a launch leaves for the next: two numbers of an element, as wide as it held them.
  BRNN_DEVICE float& carried(int which, int n, int element) const {
    return p_.carried[(int64_t(which) * p_.B + sequence(n, element)) * p_.H + unit(element)];
  }

  const Params& p_;
  const Place<Tile> at_;
  int write_at_, read_at_;
  Sum* sums_;
  float* states_;
  uint32_t* stored_masks_;  // of this thread
  int length_[kElements] = {};
};

}  // namespace brnn::cuda
