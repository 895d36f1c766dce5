// forward.cuh runs the recurrence forward, all time steps in one kernel or, where the exchange of
// all would take too much memory, in one after the other for some of them.
//
// Per step and batch tile, a warp
//   1. asks for its slice of h_{t-1} and waits for exactly that, not for a grid;
//   2. multiplies: per gate AND with the mask, mma with its slice of U in registers;
//   3. leaves its sums in shared memory; after one barrier the makers add them up, apply cells.h,
//   4. publish h_t for the peers and, off the path of h, write y and what backward needs and ask
//      for the input part of the next step.
#pragma once

#include <type_traits>

#include "exchange.cuh"
#include "input_part.cuh"
#include "operand_stream.cuh"
#include "packed_weights.cuh"
#include "tile.cuh"
#include "time_pass.cuh"
#include "word_masks.cuh"

namespace brnn::cuda {

template <class S>
struct ForwardParams {
  int T, B, H;
  int first, end;  // steps of this launch
  float* carried;  // [2, B, H] the state and h between launches; nullptr: one for all steps
  bool reverse;
  const int64_t* lengths;  // [B] or nullptr: all T; see length_of
  const uint8_t* resets;   // [batch tiles, T] packed_resets.cuh; or nullptr: none

  const uint4* weights;  // packed weight_hh [G*H, H] (packed_weights.cuh)
  const S* bias_hh;      // [G*H] or nullptr; the input part has it, but for what is recurrent in it
  Mask mask_h;           // but for its scale
  float scale_h;  // a float: a conversion from double goes through the slow pipe in every step
  const S* h0;    // [B, H]
  const S* c0;    // [B, H]; where the cell has a c

  S* gates;  // [T, B, G*H] the input part unless it is fused; activated gates after it if `save`
  bool save;
  S* y;      // [T, B, H]
  S* h_n;    // [B, H]
  S* c_n;    // [B, H]; where the cell has a c
  S* saved;  // [T, B, H] if `save`; where the cell has something to save

  int I;                       // the rest only where the input part is fused
  const S* x;                  // [T, B, I]
  const uint4* input_weights;  // packed weight_ih [G*H, I]
  const S* bias_ih;            // [G*H] or nullptr
  Mask mask_x;

  ExchangeMemory exchange;
  int batch_tiles;  // of a block
};

// InputChunks counts those of x, where the input part is computed inside; else it is 0.
template <template <class> class CellOf, class S, class Exchange, class Tile, MaskForm Form,
          int InputChunks>
class ForwardPass
    : TimePass<ForwardParams<S>, Tile, Pass::forward, CellOf, Form != MaskForm::none> {
  using Algebra = CellOf<DeviceMath>;
  static constexpr int G = Algebra::gates;
  using Base = TimePass<ForwardParams<S>, Tile, Pass::forward, CellOf, Form != MaskForm::none>;
  using Base::buffer_of, Base::exists, Base::length, Base::load_lengths, Base::sequence,
      Base::sum_of;
  using Base::carried, Base::kResetsEarly, Base::load_resets, Base::resets;
  using Base::kElements, Base::kLayout, Base::p_, Base::at_, Base::write_at_, Base::read_at_,
      Base::length_;
  using Base::stored_masks, Base::sums_, Base::stored_state, Base::tiles, Base::time, Base::unit;
  static constexpr int kCandidate = Algebra::candidate;
  static constexpr bool kHasBias = kCandidate >= 0 && bias_is_recurrent<Algebra>(kCandidate);
  static constexpr bool kFused = InputChunks > 0;
  using Input = std::conditional_t<kFused, FusedInput<S, Tile, Algebra, kFused ? InputChunks : 1>,
                                   StoredInput<S, Tile, G>>;
  using Words = WordMasks<Form, S, G, Tile::chunks>;
  static constexpr int kResident = blocks_per_multiprocessor(Pass::forward, Tile::tiling, G,
                                                             Form != MaskForm::none, InputChunks);
  // Masks take what registers there are, and a fetch ahead would spill.
  static constexpr bool kFullOfMasks = Form == MaskForm::ready && Tile::chunks > 3;
  static constexpr bool kPublishMasked = Form == MaskForm::none;  // one mask, or none
  static_assert(!Tile::looped || kPublishMasked || Words::words == kLayout.mask);
  using Sum = typename Base::Sum;  // of all gates, of one warp

 public:
  BRNN_DEVICE explicit ForwardPass(const ForwardParams<S>& p)
      : Base(p), exchange_(p.exchange, Base::stages(), at_) {}

  BRNN_DEVICE void run() {
    weights_.load(p_.weights, at_.slice(), at_.lane);
    start();
#pragma unroll 1
    for (int s = first(); s < end(); ++s) {
#pragma unroll 1
      for (int n = 0; n < tiles(); ++n) step(s, n);
      exchange_.next_input();
      exchange_.next_output();
    }
    if (at_.maker) finish();
  }

 private:
  // Steps of this launch, which are all where the exchange does not grow with them.
  BRNN_DEVICE int first() const { return Exchange::kGrows ? p_.first : 0; }
  BRNN_DEVICE int end() const { return Exchange::kGrows ? p_.end : p_.T; }

  // ---- before the first step: masks, state, the first stage of the exchange

  BRNN_DEVICE void start() {
    const MaskView keep{p_.mask_h.keep, p_.mask_h.gate_stride, p_.B, p_.H};
    exchange_.begin();
    for (int n = 0; n < tiles(); ++n) {
      const int b = (at_.batch_tile0 + n) * kTileSequences + at_.g;
      masks_.load(keep, b, at_.chunk0, at_.own0, at_.q);
      kept_units_ = kPublishMasked ? tied_units(n) : ~0u;
      store_masks(n);
      if (at_.maker) {
        load_lengths(n);
        load_state(n);
        publish(n);
      }
      exchange_.commit(first(), n, at_.maker);
    }
    exchange_.next_output();
    if (at_.maker) {
      load_bias();
      if constexpr (kFused)
        input_.start(at_, p_.input_weights, p_.bias_ih, p_.bias_hh, p_.mask_x, p_.B, p_.I, p_.H);
      prefetch(first(), 0);
      if constexpr (kFused) {
        input_.multiply();
        if (first() + 1 < end()) prefetch(first() + 1, 0);
      }
    }
  }

  // One mask for all gates is applied before h is published: a bit for each of this thread's
  // elements.
  BRNN_DEVICE uint32_t tied_units(int n) const {
    const MaskView tied{p_.mask_h.keep, 0, p_.B, p_.H};
    uint32_t units = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i) units |= tied(0, sequence(n, i), unit(i)) << i;
    return units;
  }

  BRNN_DEVICE void load_state(int n) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      state_[i] = h_[i] = 0.f;
      if (!exists(n, i)) continue;
      const int64_t from = int64_t(sequence(n, i)) * p_.H + unit(i);
      h_[i] = first() > 0 ? carried(0, n, i) : to_float(p_.h0[from]);
      state_[i] = !Algebra::has_c ? h_[i] : first() > 0 ? carried(1, n, i) : to_float(p_.c0[from]);
    }
    store_state(n);
  }

  BRNN_DEVICE void load_bias() {
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      bias_[i] = kHasBias && p_.bias_hh && unit(i) < p_.H
                     ? to_float(p_.bias_hh[kCandidate * p_.H + unit(i)])
                     : 0.f;
  }

  // Masks and state of a batch tile that is not at work wait in shared memory.
  BRNN_DEVICE void store_masks(int n) {
    if (!Tile::looped) return;
    if (kPublishMasked)
      *stored_masks(n) = kept_units_;
    else
      masks_.save(stored_masks(n), Tile::threads);
  }
  BRNN_DEVICE void fetch_masks(int n) {
    if (!Tile::looped) return;
    if (kPublishMasked)
      kept_units_ = *stored_masks(n);
    else
      masks_.restore(stored_masks(n), Tile::threads);
  }
  BRNN_DEVICE void store_state(int n) const {
    if constexpr (Tile::looped) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        stored_state(n, i)[0] = state_[i];
        if (Algebra::has_c) stored_state(n, i)[1] = h_[i];
      }
    }
  }
  BRNN_DEVICE void fetch_state(int n) {
    if constexpr (Tile::looped) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        state_[i] = stored_state(n, i)[0];
        h_[i] = Algebra::has_c ? stored_state(n, i)[1] : state_[i];
      }
    }
  }

  // ---- a step

  BRNN_DEVICE void step(int s, int n) {
    fetch_masks(n);
    masks_.stay_packed();
    if (Tile::looped && at_.maker) load_lengths(n);  // before the wait, off the path of h
    uint32_t reset_rows = 0;
    if (kResetsEarly) reset_rows = load_resets(s, n);
    float sums[G][4] = {};
    exchange_.wait(s, n);
    multiply_stream<1, Tile::chunks, Tile::tiling.ahead>(
        exchange_, n, [] {}, [&](int chunk, const uint4& words) { multiply(sums, chunk, words); });
    if (!kResetsEarly) reset_rows = load_resets(s, n);
    const int buffer = buffer_of(s, n);
    if constexpr (!Tile::whole_sums) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sums_[buffer + partial_index_after(write_at_, j)] = sum_of_gates(sums, j);
      group_barrier<Tile>(at_.local);
    }
    if (at_.maker) update(s, n, buffer, reset_rows, sums);
    if constexpr (kFused) input_.multiply();
    if (s + 1 < end()) exchange_.commit(s + 1, n, at_.maker);
    if (at_.maker) {
      write(s, n);
      const int next = n + 1 < tiles() ? n + 1 : 0;
      const int soon = (next > 0 ? s : s + 1) + kFused;  // a fused part is a step further already
      if (soon < end()) prefetch(soon, next);
    } else if constexpr (kFetchesAhead<Tile, kResident> && !kFullOfMasks) {
      fetch_ahead(s, n);
    }
  }

  // Memory to L2, for later steps: see fetch_ahead.cuh. The output stage is the one of step s + 1.
  BRNN_DEVICE void fetch_ahead(int s, int n) const {
    if (fetches_stages(at_)) {
      if (s + kStagesAhead < end()) exchange_.fetch(at_, n, kStagesAhead - 1);
    } else if (fetches_rows(at_) && s + kStepsAhead < p_.T && at_.tile * kTileUnits < p_.H) {
      const int64_t first = int64_t(time(s + kStepsAhead)) * p_.B;
      fetch_rows<S, Tile, G>(at_, n, p_.H, [&](int sequence, int gate) -> const S* {
        return sequence < p_.B ? p_.gates + ((first + sequence) * G + gate) * p_.H : nullptr;
      });
    }
  }

  BRNN_DEVICE static Sum sum_of_gates(const float (&sums)[G][4], int j) {
    if constexpr (G == 1)
      return sums[0][j];
    else
      return {sums[0][j], sums[1][j], G > 2 ? sums[G > 2 ? 2 : 0][j] : 0.f,
              G > 3 ? sums[G - 1][j] : 0.f};
  }

  BRNN_DEVICE void multiply(float (&sums)[G][4], int chunk, const uint4& h) const {
#pragma unroll
    for (int gate = 0; gate < G; ++gate) {
      mma(S{}, sums[gate], weights_.fragments[gate][2 * chunk], masks_.apply(h.x, gate, 4 * chunk),
          masks_.apply(h.y, gate, 4 * chunk + 1));
    }
#pragma unroll
    for (int gate = 0; gate < G; ++gate) {
      mma(S{}, sums[gate], weights_.fragments[gate][2 * chunk + 1],
          masks_.apply(h.z, gate, 4 * chunk + 2), masks_.apply(h.w, gate, 4 * chunk + 3));
    }
  }

  // Makes the sums of one element over all warps.
  BRNN_DEVICE void sum_over_warps(float (&q)[G], int element, int buffer,
                                  const float (&sums)[G][4]) const {
    if constexpr (Tile::whole_sums) {
#pragma unroll
      for (int k = 0; k < G; ++k) q[k] = sums[k][element];
    } else {
      const int at = element ? sum_of(element) : read_at_;
#pragma unroll
      for (int w = 0; w < Tile::k_warps; ++w) {
        const Sum part = sums_[buffer + at + w * kTileElements];
        if constexpr (G == 1) {
          q[0] = w ? q[0] + part : part;
        } else {
          q[0] = w ? q[0] + part.x : part.x;
          q[1] = w ? q[1] + part.y : part.y;
          if constexpr (G > 2) q[2] = w ? q[2] + part.z : part.z;
          if constexpr (G > 3) q[3] = w ? q[3] + part.w : part.w;
        }
      }
    }
  }

  // Zero enters the step in place of the state: a NaN of the segment before is gone, too.
  BRNN_DEVICE void enter_zero(float (&q)[kElements][G], uint32_t rows) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (!resets(rows, i)) continue;
      state_[i] = h_[i] = 0.f;
#pragma unroll
      for (int k = 0; k < G; ++k) q[i][k] = 0.f;
    }
  }

  // `reset_rows` has the rows of the batch tile that zero enters.
  BRNN_DEVICE void update(int s, int n, int buffer, uint32_t reset_rows,
                          const float (&sums)[G][4]) {
    fetch_state(n);
    const int t = time(s);
    float q[kElements][G];
#pragma unroll
    for (int i = 0; i < kElements; ++i) sum_over_warps(q[i], i, buffer, sums);
    if (reset_rows) enter_zero(q, reset_rows);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      float a[G], state;
#pragma unroll
      for (int k = 0; k < G; ++k) q[i][k] *= p_.scale_h;
      if constexpr (kHasBias) q[i][kCandidate] += bias_[i];
      input_.get(a, i);
      Algebra::forward(a, q[i], state_[i], gates_[i], saved_[i], state);
      const float h = Algebra::output(gates_[i][G - 1], state);
      // Past its length a sequence keeps its state; padding must stay finite.
      if (t < length_[i]) state_[i] = state, h_[i] = h;
    }
    store_state(n);
    if (s + 1 < end()) publish(n);
  }

  // Publishes h of this thread's elements for the readers of the output stage.
  BRNN_DEVICE void publish(int n) {
    float h[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) h[i] = kept_units_ >> i & 1 ? h_[i] : 0.f;
    publish_elements<S, Tile>(exchange_, at_, 0, n, h);
  }

  // ---- off the path of h

  BRNN_DEVICE void write(int s, int n) const {
    const int t = time(s);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (!exists(n, i)) continue;
      const int b = sequence(n, i);
      const bool in = t < length_[i];
      const int64_t row = int64_t(t) * p_.B + b, at = row * p_.H + unit(i);
      p_.y[at] = round_to(S{}, in ? h_[i] : 0.f);
      if (p_.save) {
        if constexpr (Algebra::has_saved) p_.saved[at] = round_to(S{}, in ? saved_[i] : 0.f);
#pragma unroll
        for (int k = 0; k < G; ++k)
          p_.gates[(row * G + k) * p_.H + unit(i)] = round_to(S{}, in ? gates_[i][k] : 0.f);
      }
    }
  }

  // Asks for the input part of step s, or for the input.
  BRNN_DEVICE void prefetch(int s, int n) {
    const int64_t first = int64_t(time(s)) * p_.B;
    if constexpr (kFused) {
      const int b = input_.sequence();
      input_.prefetch(p_.x + first * p_.I, b < p_.B && time(s) < length(b));
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        if (exists(n, i))
          input_.prefetch_element(i, p_.gates, first + sequence(n, i), unit(i), p_.H);
    }
  }

  // ---- after the last step

  BRNN_DEVICE void finish() {
#pragma unroll 1
    for (int n = 0; n < tiles(); ++n) {
      fetch_state(n);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (!exists(n, i)) continue;
        const int64_t last = int64_t(sequence(n, i)) * p_.H + unit(i);
        if (end() == p_.T) {
          p_.h_n[last] = round_to(S{}, h_[i]);
          if (Algebra::has_c) p_.c_n[last] = round_to(S{}, state_[i]);
        } else {
          carried(0, n, i) = h_[i];
          if (Algebra::has_c) carried(1, n, i) = state_[i];
        }
      }
    }
  }

  Exchange exchange_;

  Weights<S, G, Tile::chunks> weights_;
  Words masks_;
  uint32_t kept_units_ = 0;
  float state_[kElements] = {};  // c where the cell has one, else h
  float h_[kElements] = {}, bias_[kElements] = {};
  float gates_[kElements][G] = {}, saved_[kElements] = {};
  Input input_;
};

template <template <class> class CellOf, class S, class Exchange, class Tile, MaskForm Form,
          int InputChunks>
__global__ void __launch_bounds__(Tile::threads,
                                  blocks_per_multiprocessor(Pass::forward, Tile::tiling,
                                                            CellOf<DeviceMath>::gates,
                                                            Form != MaskForm::none, InputChunks))
    forward_kernel(const __grid_constant__ ForwardParams<S> p) {
  ForwardPass<CellOf, S, Exchange, Tile, Form, InputChunks>(p).run();
}

}  // namespace brnn::cuda
