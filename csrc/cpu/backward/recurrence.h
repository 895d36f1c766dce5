// recurrence.h is the first phase of a chunk backward: it makes dz, the gradients of all gates,
// step by step from the chunk's last step to its first, and in the end what the layer's initial
// state gets.
//
// It is the one phase whose steps wait for each other, so it is divided as forward is: by
// sequences, or by units where threads are more than sequences can feed.
#pragma once

#include "shared.h"

namespace brnn::BRNN_ISA {

template <class S, class E, class Algebra>
class Recurrence {
  using C = typename Element<E>::Sum;
  using V = Vec<C>;
  static constexpr int G = Algebra::gates;
  static constexpr int kSlots = Algebra::slots;
  static constexpr int kTile = Panels<E>::kTile;

 public:
  Recurrence(const BackwardShared<S, E>& shared, const Split& split, Arena& arena)
      : p_(shared.layer),
        slots_of_q_(shared.cell.slot_of_q),
        parts_(split.batch),
        pitch_(round_up(p_.H, V::size)),
        panels_(shared.panels_hh),
        keep_(shared.keep_h),
        dz_(shared.dz),
        dz_next_(rows_of<E>(arena, kSlots, p_.B, p_.H)),
        carry_(arena.take<C>(p_.B * pitch_)),
        dh_masked_(arena.take<C>(Algebra::reset_before ? p_.B * pitch_ : 0)) {}

  // Runs the steps end-1 .. begin.
  template <class Run>
  void steps(const Run& run, int64_t begin, int64_t end) const {
    const auto sequences = [this](int64_t part) { return share_of(p_.B, part, parts_); };
    run([&](int64_t part, const Piece& piece) { start_chunk(sequences(part), piece, begin, end); });
    for (int64_t s = end - 1; s >= begin; --s) {
      run([&](int64_t part, const Piece& piece) { step(sequences(part), piece, s, begin, end); });
      if constexpr (Algebra::reset_before)
        run([&](int64_t part, const Piece& piece) {
          reset_gradients(sequences(part), piece, s, begin);
        });
    }
    if (begin == 0)
      run([&](int64_t part, const Piece& piece) { initial_state(sequences(part), piece); });
  }

 private:
  int lanes(int64_t u) const { return int(min<int64_t>(V::size, p_.H - u)); }
  // Tells whether each sequence from b on resets at step s; nullptr where none does.
  const uint8_t* resets_of(int64_t s, int64_t b) const {
    return p_.resets && s < p_.T ? p_.resets + p_.time(s) * p_.B + b : nullptr;
  }
  // Gives h that entered step s.
  V hidden_before(int64_t s, int64_t b, int64_t u, int n) const {
    return p_.resets_at(b, p_.time(s)) ? V{} : load(row_before(p_, p_.h0, p_.y, s, b) + u, n);
  }
  // Gives the state that is carried and never masked: c_{t-1} of the LSTM, h_{t-1} of the GRU.
  V state_before(int64_t s, int64_t b, int64_t u, int n) const {
    if constexpr (!Algebra::has_c) return hidden_before(s, b, u, n);
    return p_.resets_at(b, p_.time(s)) ? V{} : load(row_before(p_, p_.c0, p_.saved, s, b) + u, n);
  }

  // What the chunk after this one left in the first rows of dz is where this one starts.
  void start_chunk(const Share& sequences, const Piece& piece, int64_t begin, int64_t end) const {
    piece.each(sequences.size(), [&](int64_t i) {
      const int64_t b = sequences.begin + i;
      for (int slot = 0; slot < kSlots && end < p_.T; ++slot)
        for (int64_t k = 0; k < p_.H; k += kBlock<E>)
          std::memcpy(dz_next_.at(slot, b, k), dz_.at(slot, b, k), kBlock<E> * sizeof(E));
      for (int64_t s = begin; s < end; ++s) dz_.clear_tail(kSlots, (s - begin) * p_.B + b, p_.H);
      for (int64_t u = 0; u < p_.H && end == p_.T; u += V::size)
        store(carry_ + b * pitch_ + u, p_.dc_n ? load(p_.dc_n + b * p_.H + u, lanes(u)) : V{});
    });
  }

  template <class F>
  void for_each_tile(const Share& sequences, const Piece& piece, int64_t s, const F& f) const {
    const Blocks blocks(sequences.size(), panels_.tile_rows(), Product<E>::even);
    piece.each(panels_.panels(), s % 2, [&](int64_t panel) {
      for (int64_t j = 0; j < blocks.count; ++j)
        f(panel, sequences.begin + blocks.begin(j), blocks.size(j));
    });
  }

  void step(const Share& sequences, const Piece& piece, int64_t s, int64_t begin,
            int64_t end) const {
    const Product<E> product;
    const bool last = s + 1 == p_.T, at_edge = s + 1 == end;
    const Rows<E>& next = at_edge ? dz_next_ : dz_;
    const int64_t next_row = at_edge ? 0 : (s + 1 - begin) * p_.B;
    for_each_tile(sequences, piece, s, [&](int64_t panel, int64_t b, int count) {
      alignas(64) C dh[kTile];
      Laps laps;
      if (last)
        std::memset(dh, 0, sizeof dh);
      else
        through_recurrence(product, next, next_row + b, panel, b, count, dh);
      laps.end(Phase::recurrent_product);
      for (int v = 0; v < panels_.width(panel); v += V::size)
        gate_gradients(s, (s - begin) * p_.B + b, b, count, panels_.begin(panel) + v, dh + v,
                       panels_.width(panel));
      laps.end(Phase::gates);
    });
  }

  // Makes dh [count][width] = sum over gates of m_k (U_k^T dz_k), with dz from `row` on. The mask's
  // scale is left out.
  void through_recurrence(const Product<E>& product, const Rows<E>& dz, int64_t row, int64_t panel,
                          int64_t b, int count, C* dh) const {
    constexpr int gates = gates_of_h<Algebra>();  // the others went through reset_gradients
    masked_sum(product, dz, row, panels_, panel, keep_, p_.B, b, count, gates, slots_of_q_, dh);
    if constexpr (Algebra::reset_before) {
      const int width = panels_.width(panel);
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size)
          add_to(dh + i * width + v,
                 load(dh_masked_ + (b + i) * pitch_ + panels_.begin(panel) + v));
    }
  }

  // Makes dz of step s from dh, whose rows lie `width` apart, for some sequences and a vector of
  // units.
  BRNN_INTERLEAVED void gate_gradients(int64_t s, int64_t dz_row, int64_t b0, int count, int64_t u,
                                       const C* dh, int width) const {
    const int64_t t = p_.time(s), H = p_.H, at = (t * p_.B + b0) * H, pitch = pitch_;
    const int n = lanes(u);
    const S* const dy = p_.dy ? p_.dy + at + u : nullptr;
    const S* const gates = p_.gates + at * G + u;
    const S* const all_saved = Algebra::has_saved ? p_.saved + at + u : nullptr;
    C* const carried = carry_ + b0 * pitch + u;
    E* to = dz_.at(0, dz_row, u);
    const int64_t slot_stride = dz_.set_stride();
    const uint8_t* const resets = resets_of(s, b0);
    const uint8_t* const resets_next = resets_of(s + 1, b0);
    for (int i = 0; i < count; ++i, to += kBlock<E>) {
      const int64_t b = b0 + i;
      V dh_b = resets_next && resets_next[i] ? V{} : load(dh + i * width) * scale_;
      V dslot[kSlots] = {};
      if (p_.inside(b, t)) {
        if (dy) dh_b = dh_b + load(dy + i * H, n);
        if (p_.dh_n && p_.ends(b, t)) dh_b = dh_b + load(p_.dh_n + b * H + u, n);
        V gate[G];
        for (int k = 0; k < G; ++k) gate[k] = load(gates + (i * G + k) * H, n);
        const V saved = Algebra::has_saved ? load(all_saved + i * H, n) : V{};
        V carry = load(carried + i * pitch);
        V factor[Algebra::factors];
        Algebra::weigh(gate, saved, state_before(s, b, u, n), factor);
        Algebra::backward(factor, dh_b, carry, dslot);
        store(carried + i * pitch, resets && resets[i] ? V{} : carry);
      } else if (began_later(b) && t == p_.length(b)) {
        write_dh0(b, u, n, dh_b);
      }
      for (int k = 0; k < kSlots; ++k) store(to + k * slot_stride, to_lanes<E>(dslot[k]));
    }
  }

  // Goes the way through r of a GRU that resets before U. It needs dz_n of all units, so it is a
  // phase of its own.
  void reset_gradients(const Share& sequences, const Piece& piece, int64_t s, int64_t begin) const {
    constexpr int n_gate = Algebra::candidate, n_slot = Algebra::slot_of_q(n_gate);
    const Product<E> product;
    const int64_t t = p_.time(s);
    for_each_tile(sequences, piece, s, [&](int64_t panel, int64_t b0, int count) {
      alignas(64) C dq[kTile];
      Laps laps;
      const int64_t dz_row = (s - begin) * p_.B + b0;
      const int width = panels_.width(panel);
      multiply_rows(product, count, dz_, n_slot, dz_row, panels_, n_gate, panel,
                    {dq, width, false});
      laps.end(Phase::recurrent_product);
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size) {
          const int64_t b = b0 + i, u = panels_.begin(panel) + v;
          const int n = lanes(u);
          V dmasked{}, dr{};
          if (p_.inside(b, t)) {
            const V r = load(row_at(p_, p_.gates, t, b, G * p_.H) + u, n);
            const V h = hidden_before(s, b, u, n);
            if constexpr (Algebra::reset_before)
              dmasked = Algebra::backward_reset(r, keep_(n_gate, b, u, h) * scale_,
                                                first_lanes(n, load(dq + i * width + v)), dr);
            dmasked = keep_(n_gate, b, u, dmasked);
          }
          store(dz_.at(0, dz_row + i, u), to_lanes<E>(dr));
          store(dh_masked_ + b * pitch_ + u, dmasked);
        }
      laps.end(Phase::gates);
    });
  }

  // Makes dh0 and dc0 from dz of the first step.
  void initial_state(const Share& sequences, const Piece& piece) const {
    const Product<E> product;
    for_each_tile(sequences, piece, 0, [&](int64_t panel, int64_t b0, int count) {
      alignas(64) C dh[kTile];
      through_recurrence(product, dz_, b0, panel, b0, count, dh);
      const uint8_t* const resets = resets_of(0, b0);
      const int width = panels_.width(panel);
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size) {
          const int64_t b = b0 + i, u = panels_.begin(panel) + v;
          const int n = lanes(u);
          if (Algebra::has_c) store(p_.dc0 + b * p_.H + u, load(carry_ + b * pitch_ + u), n);
          V d = resets && resets[i] ? V{} : load(dh + i * width + v) * scale_;
          if (p_.dh_n && p_.length(b) == 0) d = d + load(p_.dh_n + b * p_.H + u, n);
          if (!began_later(b)) write_dh0(b, u, n, d);
        }
    });
  }

  // A reversed sequence that is shorter than T starts from h0 after steps that pass it by, and
  // dz of those is zero: its dh0 is written where they begin.
  bool began_later(int64_t b) const {
    return p_.reverse && p_.length(b) > 0 && p_.length(b) < p_.T;
  }

  void write_dh0(int64_t b, int64_t u, int n, V dh) const {
    const V carry =
        Algebra::has_c ? V{} : load(carry_ + b * pitch_ + u);  // of the GRU it is part of dh
    store(p_.dh0 + b * p_.H + u, dh + carry, n);
  }

  static void add_to(C* p, V a) { store(p, load(p) + a); }

  const Backward<S>& p_;
  const int* const slots_of_q_;  // by gate
  const int64_t parts_;          // of the batch
  const int64_t pitch_;          // units of a row of carry, rounded up to whole vectors
  const V scale_ = broadcast(C(p_.mask_h.scale));
  Panels<E> panels_;
  MaskBits<C> keep_;
  Rows<E> dz_;
  Rows<E> dz_next_;  // [slots][..][B][..] dz of the step after this chunk
  C* carry_;         // [B][pitch] dc of the LSTM, the part of dh that skips the gates of the GRU
  C* dh_masked_;     // [B][pitch] what reaches m h_{t-1} through r, not scaled; reset_before only
};

}  // namespace brnn::BRNN_ISA
