// backward.cuh runs the recurrence backward, in one kernel or several. It has the shape of
// forward.cuh in reverse: a block owns some tiles of 16 units, U^T stays in registers, dz of every
// gate is the exchanged operand.
//
//   dh_{t-1} = sum over gates of m_k s (U_k^T dz_k)
//
// There is one accumulator per gate. Masks and the sum over gates come before the sum over warps,
// so that a quarter of forward's partial sums goes through shared memory.
#pragma once

#include "exchange.cuh"
#include "operand_stream.cuh"
#include "packed_weights.cuh"
#include "tile.cuh"
#include "time_pass.cuh"
#include "word_masks.cuh"

namespace brnn::cuda {

template <class S>
struct BackwardParams {
  int T, B, H;
  int first, end;  // rounds of this launch: round i makes dz of step T - 1 - i, round T dh0 and dc0
  float* carried;  // [2, B, H] see held_ and carry_, between launches; nullptr: one for all rounds
  bool reverse;
  const int64_t* lengths;  // [B] or nullptr: all T; see length_of
  const uint8_t* resets;   // [batch tiles, T] packed_resets.cuh; or nullptr: none

  const uint4* weights;  // packed transpose of weight_hh [G*H, H] (packed_weights.cuh)
  Mask mask_h;           // but for its scale
  float scale_h;         // see ForwardParams
  const S* h0;           // [B, H]
  const S* c0;           // [B, H]; where the cell has a c
  const S* y;            // [T, B, H]
  const S* gates;        // [T, B, G*H]
  const S* saved;        // [T, B, H]; where the cell has something to save
  const S* dy;           // [T, B, H] or nullptr: zero
  const S* dh_n;         // [B, H] or nullptr
  const S* dc_n;         // [B, H] or nullptr

  S* dz;   // [T, B, slots*H]
  S* dh0;  // [B, H]
  S* dc0;  // [B, H]; where the cell has a c

  ExchangeMemory exchange;
  int batch_tiles;  // of a block
};

template <template <class> class CellOf, class S, class Exchange, class Tile>
class BackwardPass : TimePass<BackwardParams<S>, Tile, Pass::backward, CellOf, true> {
  using Algebra = CellOf<DeviceMath>;
  static constexpr int G = Algebra::gates;
  static constexpr int kSlots = Algebra::slots;
  using Base = TimePass<BackwardParams<S>, Tile, Pass::backward, CellOf, true>;
  using Base::buffer_of, Base::exists, Base::length, Base::load_lengths, Base::sequence,
      Base::sum_of;
  using Base::carried, Base::load_resets, Base::resets;
  using Base::kElements, Base::p_, Base::at_, Base::write_at_, Base::read_at_, Base::length_;
  using Base::stored_masks, Base::sums_, Base::stored_state, Base::tiles, Base::time, Base::unit;
  static constexpr bool kEarly = Exchange::kTravels && Tile::chunks <= 4;  // see prepare
  static constexpr bool kResetsEarly = kEarly || Base::kResetsEarly;
  static constexpr int kResident = blocks_per_multiprocessor(Pass::backward, Tile::tiling, G, true);
  // Two lanes that have the halves of a word publish a gate each.
  static constexpr bool kSharesWords = kEarly && kElements == 1 && Number<S>::per_word == 2;

 public:
  BRNN_DEVICE explicit BackwardPass(const BackwardParams<S>& p)
      : Base(p), exchange_(p.exchange, Base::stages(), at_) {}

  BRNN_DEVICE void run() {
    weights_.load(p_.weights, at_.slice(), at_.lane);
    start();
    // A round takes dz of the round before.
#pragma unroll 1
    for (int i = first(); i < end(); ++i) {
#pragma unroll 1
      for (int n = 0; n < tiles(); ++n) round(i, n);
      if (i > 0) exchange_.next_input();
      exchange_.next_output();
    }
    if (end() <= p_.T && at_.maker) leave_state();
  }

 private:
  // Rounds of this launch, which are all where the exchange does not grow with them.
  BRNN_DEVICE int first() const { return Exchange::kGrows ? p_.first : 0; }
  BRNN_DEVICE int end() const { return Exchange::kGrows ? p_.end : p_.T + 1; }

  // ---- before the first round

  BRNN_DEVICE void start() {
    exchange_.begin();
    for (int n = 0; n < tiles(); ++n) {
      load_masks(n);
      if (at_.maker) {
        load_lengths(n);
        load_state(n);
        if (first() > 0) publish_again(n);
      }
      if (first() > 0) exchange_.commit(first() - 1, n, at_.maker);
    }
    if (first() > 0) exchange_.next_output();
    if (at_.maker) prefetch(p_.T - 1 - first(), 0);
  }

  // Publishes dz of the round that ended the launch before, which is rounded already.
  BRNN_DEVICE void publish_again(int n) {
    float dslot[kElements][kSlots] = {};
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (!exists(n, i)) continue;
      const S* const from = p_.dz + offset_of_dz(p_.T - first(), n, i);
#pragma unroll
      for (int k = 0; k < kSlots; ++k) dslot[i][k] = to_float(from[int64_t(k) * p_.H]);
    }
    find_offset(n);
    publish(dslot, n);
  }

  // Bit 4 * gate + j tells whether the gate keeps the unit of result j of this lane's accumulators.
  BRNN_DEVICE void load_masks(int n) {
    const MaskView keep{p_.mask_h.keep, p_.mask_h.gate_stride, p_.B, p_.H};
    masks_ = 0;
    for (int gate = 0; gate < G; ++gate)
      for (int j = 0; j < 4; ++j) {
        const int b = (at_.batch_tile0 + n) * kTileSequences + 2 * at_.q + (j & 1);
        const int u = at_.tile * kTileUnits + 2 * at_.g + (j >> 1);
        masks_ |= keep(gate, b, u) << (4 * gate + j);
      }
    if (Tile::looped) *stored_masks(n) = masks_;
  }

  BRNN_DEVICE void load_state(int n) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int64_t from = int64_t(sequence(n, i)) * p_.H + unit(i);
      held_[i] = carry_[i] = 0.f;
      if (!exists(n, i)) continue;
      if (first() > 0) {
        held_[i] = carried(0, n, i);
        carry_[i] = carried(1, n, i);
      } else {
        if (p_.dh_n) held_[i] = to_float(p_.dh_n[from]);
        if (p_.dc_n) carry_[i] = to_float(p_.dc_n[from]);
      }
    }
    store_state(n);
  }
  BRNN_DEVICE void leave_state() {
#pragma unroll 1
    for (int n = 0; n < tiles(); ++n) {
      fetch_state(n);
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        if (exists(n, i)) carried(0, n, i) = held_[i], carried(1, n, i) = carry_[i];
    }
  }

  // This waits in shared memory while another batch tile is at work.
  BRNN_DEVICE void store_state(int n) const {
    if constexpr (Tile::looped) {
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        stored_state(n, i)[0] = held_[i], stored_state(n, i)[1] = carry_[i];
    }
  }
  BRNN_DEVICE void fetch_state(int n) {
    if constexpr (Tile::looped) {
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        held_[i] = stored_state(n, i)[0], carry_[i] = stored_state(n, i)[1];
    }
  }

  // ---- a round

  BRNN_DEVICE void round(int i, int n) {
    float masked[4];
    int s = p_.T - 1 - i;
    if (kEarly) opaque(s);
    if (i > 0)
      multiply(masked, i, s, n);
    else if (at_.maker)
      prepare(i, s, n);
    if (at_.maker) {
      float dh[kElements] = {};
      if (i > 0) collect(dh, masked, buffer_of(i, n));
      if (!kEarly) fetch_state(n);
      if (cuts_) cut(dh);
      if (s < 0) {
        write_initial(n, dh);
        return;
      }
      float dslot[kElements][kSlots];
      gate_gradients(dslot, dh, s);
      publish(dslot, n);
      exchange_.commit(i, n, true);
      store_state(n);
      write(dslot, s, n);
      const int next = n + 1 < tiles() ? n + 1 : 0;
      if (next > 0 || s > 0) prefetch(next > 0 ? s : s - 1, next);
    } else if (s >= 0) {
      exchange_.commit(i, n, false);
      if constexpr (kFetchesAhead<Tile, kResident>) fetch_ahead(i, s, n);
    }
  }

  // Memory to L2, for later rounds: see fetch_ahead.cuh. The output stage is the one that round i +
  // 1 reads.
  BRNN_DEVICE void fetch_ahead(int i, int s, int n) const {
    if (fetches_stages(at_)) {
      if (i + kStagesAhead + 1 < end()) exchange_.fetch(at_, n, kStagesAhead);
    } else if (fetches_rows(at_) && s >= kStepsAhead && at_.tile * kTileUnits < p_.H) {
      constexpr int kSavedRows =
          Algebra::has_saved && !Algebra::has_c;  // a saved c is the state before
      const int t = time(s - kStepsAhead), before = p_.reverse ? t + 1 : t - 1;
      fetch_rows<S, Tile, G + 2 + kSavedRows>(
          at_, n, p_.H, [&](int sequence, int which) -> const S* {
            const int64_t row = int64_t(t) * p_.B + sequence;
            const S* from = p_.gates + (row * G + which) * p_.H;
            if (which == G) from = p_.dy ? p_.dy + row * p_.H : nullptr;
            if (which == G + 1)
              from = before < 0 || before >= p_.T ? nullptr
                                                  : (Algebra::has_c ? p_.saved : p_.y) +
                                                        (int64_t(before) * p_.B + sequence) * p_.H;
            if (kSavedRows && which == G + 2) from = p_.saved + row * p_.H;
            return sequence < p_.B ? from : nullptr;
          });
    }
  }

  // What a maker needs beside dz. It is done while dz is under way, as much of it as registers are
  // left for.
  BRNN_DEVICE void prepare(int i, int s, int n) {
    if (Tile::looped && tiles() > 1) load_lengths(n);
    if (kResetsEarly || i == 0) load_resets_of(i, s, n);
    if constexpr (kEarly) {
      fetch_state(n);
      if (s < 0) return;
#pragma unroll
      for (int c = 0; c < kElements; ++c) weigh(c, s);
    }
    find_offset(n);
  }
  // Knows where this lane's first word of a pair of planes goes.
  BRNN_DEVICE void find_offset(int n) {
    if constexpr (kSharesWords) {
      offset_ = exchange_.offset_of_pair(at_.unit(0) % 2, n, word_offset<S>(unit(0), at_.row(0)));
      if (kResident < 2) opaque(offset_);
    }
  }

  BRNN_DEVICE void load_resets_of(int i, int s, int n) {
    if (i > 0) cuts_ = load_resets(s + 1, n);
    if (s >= 0) resets_ = load_resets(s, n);
  }

  // Makes factors of dh from what step s left in an element. Past its length a sequence has finite
  // ones.
  BRNN_DEVICE void weigh(int i, int s) {
    float gate[G];
#pragma unroll
    for (int k = 0; k < G; ++k) gate[k] = to_float(gates_[i][k]);
    inside_[i] = time(s) < length_[i];
    const bool sees = inside_[i] && !resets(resets_, i);
    Algebra::weigh(gate, to_float(saved_[i]), sees ? to_float(previous_[i]) : 0.f, factors_[i]);
    wide_dy_[i] = to_float(dy_[i]);
    if (!kEarly) return;
    opaque(inside_[i]);
#pragma unroll
    for (float& factor : factors_[i]) opaque(factor);
  }

  // Makes what dz of the round before gives to the elements of this lane's accumulators, and leaves
  // it for their makers.
  BRNN_DEVICE void multiply(float (&masked)[4], int i, int s, int n) {
    float sums[G][4] = {};
    exchange_.wait(i - 1, n);
    const auto meanwhile = [&] {
      if (at_.maker) prepare(i, s, n);
    };
    const auto use = [&](int at, const uint4& words) {
      using Order = StreamOrder<G, Tile::chunks>;
      const int gate = Order::plane(at), chunk = Order::chunk(at);
      mma(S{}, sums[gate], weights_.fragments[gate][2 * chunk], words.x, words.y);
      mma(S{}, sums[gate], weights_.fragments[gate][2 * chunk + 1], words.z, words.w);
    };
    multiply_stream<G, Tile::chunks, Tile::tiling.ahead>(exchange_, n, meanwhile, use);
    if (!kResetsEarly && at_.maker) load_resets_of(i, s, n);
    uint32_t masks = Tile::looped ? *stored_masks(n) : masks_;
    opaque(masks);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      masked[j] = 0.f;
#pragma unroll
      for (int gate = 0; gate < G; ++gate)
        masked[j] += masks >> (4 * gate + j) & 1 ? sums[gate][j] : 0.f;
    }
    if constexpr (!Tile::whole_sums) {
      const int buffer = buffer_of(i, n);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums_[buffer + partial_index_after(write_at_, j)] = masked[j];
      group_barrier<Tile>(at_.local);
    }
  }

  // Makes dh of this thread's elements.
  BRNN_DEVICE void collect(float (&dh)[kElements], const float (&masked)[4], int buffer) const {
#pragma unroll
    for (int c = 0; c < kElements; ++c) {
      if constexpr (Tile::whole_sums) {
        dh[c] = masked[c];
      } else {
        const int at = c ? sum_of(c) : read_at_;
#pragma unroll
        for (int w = 0; w < Tile::k_warps; ++w) dh[c] += sums_[buffer + at + w * kTileElements];
      }
      dh[c] *= p_.scale_h;
    }
  }

  // Nothing flows back from a step that zero enters. (held_ is zero then.)
  BRNN_DEVICE void cut(float (&dh)[kElements]) {
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      if (resets(cuts_, i)) dh[i] = carry_[i] = 0.f;
  }

  // Makes dslot of step s; past its length a sequence passes dh on as it is.
  BRNN_DEVICE void gate_gradients(float (&dslot)[kElements][kSlots], const float (&dh)[kElements],
                                  int s) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const float total = dh[i] + held_[i];
      if constexpr (kEarly) {  // no branch on the path
        float carry = inside_[i] ? carry_[i] : 0.f;
        Algebra::backward(factors_[i], inside_[i] ? total + wide_dy_[i] : 0.f, carry, dslot[i]);
        if (inside_[i]) carry_[i] = carry;
        held_[i] = inside_[i] ? 0.f : total;
      } else {
#pragma unroll
        for (int k = 0; k < kSlots; ++k) dslot[i][k] = 0.f;
        held_[i] = total;
        if (time(s) >= length_[i]) continue;
        weigh(i, s);
        Algebra::backward(factors_[i], total + wide_dy_[i], carry_[i], dslot[i]);
        held_[i] = 0.f;
      }
    }
  }

  BRNN_DEVICE void publish(const float (&dslot)[kElements][kSlots], int n) {
    constexpr int kPaired = kSharesWords ? G / 2 * 2 : 0;
    if constexpr (kPaired > 0) {
#pragma unroll
      for (int gate = 0; gate < kPaired; gate += 2)
        publish_pair<S>(exchange_, gate, offset_, at_.unit(0) % 2,
                        dslot[0][Algebra::slot_of_q(gate)], dslot[0][Algebra::slot_of_q(gate + 1)]);
    }
#pragma unroll
    for (int gate = kPaired; gate < G; ++gate) {
      float values[kElements];
#pragma unroll
      for (int i = 0; i < kElements; ++i) values[i] = dslot[i][Algebra::slot_of_q(gate)];
      publish_elements<S, Tile>(exchange_, at_, gate, n, values);
    }
  }

  // ---- off the path of dz

  BRNN_DEVICE void write(const float (&dslot)[kElements][kSlots], int s, int n) const {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (!exists(n, i)) continue;
      S* const to = p_.dz + offset_of_dz(s, n, i);
#pragma unroll
      for (int k = 0; k < kSlots; ++k) to[int64_t(k) * p_.H] = round_to(S{}, dslot[i][k]);
    }
  }

  // Says where the first slot of an element's dz lies.
  BRNN_DEVICE int64_t offset_of_dz(int s, int n, int element) const {
    return (int64_t(time(s)) * p_.B + sequence(n, element)) * kSlots * p_.H + unit(element);
  }

  BRNN_DEVICE void write_initial(int n, const float (&dh)[kElements]) const {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (!exists(n, i)) continue;
      const int64_t to = int64_t(sequence(n, i)) * p_.H + unit(i);
      p_.dh0[to] = round_to(S{}, dh[i] + held_[i] + (Algebra::has_c ? 0.f : carry_[i]));
      if (Algebra::has_c) p_.dc0[to] = round_to(S{}, carry_[i]);
    }
  }

  // Loads what step s left, which is held as loaded until it is used.
  BRNN_DEVICE void prefetch(int s, int n) {
    const int t = time(s), before = p_.reverse ? t + 1 : t - 1;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (!exists(n, i)) continue;
      const int b = sequence(n, i);
      const int64_t row = int64_t(t) * p_.B + b, at = row * p_.H + unit(i);
#pragma unroll
      for (int k = 0; k < G; ++k) gates_[i][k] = load_l2(p_.gates + (row * G + k) * p_.H + unit(i));
      if (Algebra::has_saved) saved_[i] = load_l2(p_.saved + at);
      if (p_.dy) dy_[i] = load_l2(p_.dy + at);
      // This spells out starts_at, so that only a reversed run loads the length.
      const bool starts = t == (p_.reverse ? length(b) - 1 : 0);
      const int64_t own = int64_t(b) * p_.H + unit(i);
      const S* states = Algebra::has_c ? p_.saved : p_.y;
      const S* initial = Algebra::has_c ? p_.c0 : p_.h0;
      const bool first = starts || before < 0 || before >= p_.T;
      previous_[i] = first ? load_l2(initial + own)
                           : load_l2(states + (int64_t(before) * p_.B + b) * p_.H + unit(i));
    }
  }

  Exchange exchange_;

  Weights<S, G, Tile::chunks> weights_;
  uint32_t masks_ = 0;
  uint32_t resets_ = 0;  // rows of the batch tile that zero enters at the step at work
  uint32_t cuts_ = 0;    // those at the step after it
  float held_[kElements] = {}, carry_[kElements] = {};  // carry: see Algebra::backward
  S gates_[kElements][G] = {}, saved_[kElements] = {};
  S previous_[kElements] = {}, dy_[kElements] = {};
  // Of the step at work; see Algebra::weigh.
  float factors_[kElements][Algebra::factors] = {}, wide_dy_[kElements] = {};
  int inside_[kElements] = {};
  int offset_ = 0;  // where this lane's first word of a pair of planes goes
};

template <template <class> class CellOf, class S, class Exchange, class Tile>
__global__ void __launch_bounds__(Tile::threads,
                                  blocks_per_multiprocessor(Pass::backward, Tile::tiling,
                                                            CellOf<DeviceMath>::gates, true))
    backward_kernel(const __grid_constant__ BackwardParams<S> p) {
  BackwardPass<CellOf, S, Exchange, Tile>(p).run();
}

}  // namespace brnn::cuda
