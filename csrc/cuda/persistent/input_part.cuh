// input_part.cuh gives the input part a = W (m x) + b of a step to the threads that update
// elements. It is read from where gate_gemm left it, or computed here where a warp has registers
// left for its slice of W: then it never goes through memory.
#pragma once

#include "packed_weights.cuh"
#include "tile.cuh"
#include "word_masks.cuh"

namespace brnn::cuda {

// From gates [T, B, G*H].
template <class S, class Tile, int G>
class StoredInput {
 public:
  // Of element `element` at row (t, b) and a unit; held as loaded until it is used.
  BRNN_DEVICE void prefetch_element(int element, const S* gates, int64_t row, int unit, int H) {
#pragma unroll
    for (int k = 0; k < G; ++k) raw_[element][k] = load_l2(gates + (row * G + k) * H + unit);
  }
  BRNN_DEVICE void get(float (&a)[G], int element) const {
#pragma unroll
    for (int k = 0; k < G; ++k) a[k] = to_float(raw_[element][k]);
  }

 private:
  S raw_[Tile::elements][G] = {};
};

// From x [T, B, I], of at most `Chunks` chunks, by the warp that has all of k: its accumulators lie
// in the order of its elements. Algebra: see cells.h.
template <class S, class Tile, class Algebra, int Chunks>
class FusedInput {
  static_assert(Tile::whole_sums && !Tile::looped);
  static constexpr int G = Algebra::gates;

 public:
  BRNN_DEVICE void start(const Place<Tile>& at, const uint4* weights, const S* bias_ih,
                         const S* bias_hh, const Mask& mask, int B, int I, int H) {
    I_ = I, q_ = at.q;
    sequence_ = at.batch_tile0 * kTileSequences + at.g;
    scale_ = float(mask.scale);
    weights_.load(weights, at.tile, at.lane);
    masks_.load(MaskView{mask.keep, mask.gate_stride, B, I}, sequence_, 0, 0, at.q);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int unit = at.tile * kTileUnits + at.unit(2 * j);
#pragma unroll
      for (int k = 0; k < G; ++k) {
        bias_[j][k] = 0.f;
        if (bias_ih && unit < H)
          bias_[j][k] = to_float(bias_ih[k * H + unit]) +
                        (bias_is_recurrent<Algebra>(k) ? 0.f : to_float(bias_hh[k * H + unit]));
      }
    }
  }

  // Asks for x_t of this lane's sequence; zeros where there is none.
  BRNN_DEVICE void prefetch(const S* x_t, bool inside) {
    const bool aligned = I_ % (4 * Number<S>::per_word) == 0;
#pragma unroll
    for (int chunk = 0; chunk < Chunks; ++chunk) {
      const int k = Number<S>::unit_of_word(chunk, 0, q_);
      words_[chunk] = {0, 0, 0, 0};
      if (inside && k < I_)
        words_[chunk] = load_row(x_t + int64_t(sequence_) * I_ + k, I_ - k, aligned);
    }
  }
  // What was asked for, times W: off the path of h.
  BRNN_DEVICE void multiply() {
    masks_.stay_packed();
#pragma unroll
    for (int k = 0; k < G; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums_[k][j] = 0.f;
#pragma unroll
    for (int chunk = 0; chunk < Chunks; ++chunk) {
      const uint4 x = as_operand<S>(words_[chunk]);
#pragma unroll
      for (int k = 0; k < G; ++k) {
        mma(S{}, sums_[k], weights_.fragments[k][2 * chunk], masks_.apply(x.x, k, 4 * chunk),
            masks_.apply(x.y, k, 4 * chunk + 1));
        mma(S{}, sums_[k], weights_.fragments[k][2 * chunk + 1],
            masks_.apply(x.z, k, 4 * chunk + 2), masks_.apply(x.w, k, 4 * chunk + 3));
      }
    }
  }
  BRNN_DEVICE void get(float (&a)[G], int element) const {
#pragma unroll
    for (int k = 0; k < G; ++k) a[k] = sums_[k][element] * scale_ + bias_[element >> 1][k];
  }
  BRNN_DEVICE int sequence() const { return sequence_; }

 private:
  int I_, q_, sequence_;
  float scale_;
  Weights<S, G, Chunks> weights_;
  WordMasks<MaskForm::packed, S, G, Chunks> masks_;
  uint4 words_[Chunks];
  float bias_[2][G], sums_[G][4];
};

}  // namespace brnn::cuda
