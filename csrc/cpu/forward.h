// forward.h runs a whole layer forward, in chunks of time: it makes the input part of a chunk for
// all its steps at once, then, step by step, the recurrent part and the gate algebra. The input
// part so uses a panel of weights for many rows, and is still in cache when a step reads it.
#pragma once

#include <type_traits>

#include "operands.h"
#include "parallel.h"
#include "phases.h"

namespace brnn::BRNN_ISA {

using cpu::Laps;
using cpu::Phase;

// So many rows of the input part are made before the recurrence consumes them: enough to use a
// panel of weights many times, few enough to stay in cache.
constexpr int64_t kInputRows = 96;

// S is how tensors are stored, E what products multiply, C what sums and gate algebra are made in.
template <class S, class E, template <class> class CellOf>
class ForwardPass {
  using C = typename Element<E>::Sum;
  using Algebra = CellOf<Math<C, S>>;
  using V = Vec<C>;
  static constexpr int G = Algebra::gates;
  static constexpr int kTile = Panels<E>::kTile;
  static constexpr int kRows = kTileRows<E>;

 public:
  ForwardPass(const Forward<S>& layer, int threads, void* scratch)
      : p_(layer),
        split_(Split::of<E>(threads, layer.B, G * layer.H, layer.H)),
        most_rows_(divide_up(layer.B, split_.batch)),
        chunk_steps_(min(layer.T, divide_up(kInputRows, most_rows_))),
        pitch_(round_up(layer.H, V::size)),
        arena_(scratch) {
    const int64_t ih = Panels<E>::count(G, p_.I, p_.H), hh = Panels<E>::count(G, p_.H, p_.H);
    const int vectors =
        split_.units > 1 ? 2 : panel_vectors<E>(hh * int64_t{sizeof(E)}, most_rows_);
    panels_ih_ = {take<E>(ih), G, p_.I, p_.H, vectors, input_order(vectors), true};
    panels_hh_ = {take<E>(hh), G, p_.H, p_.H, vectors, order_of<E>(hh * int64_t{sizeof(E)}, p_.B)};
    if (p_.B == 1) panels_hh_.order.most = p_.H;  // h is one row, for any number of threads
    keep_x_ = {arena_, p_.mask_x, G, p_.B, p_.I};
    keep_h_ = {arena_, p_.mask_h, G, p_.B, p_.H};
    bias_ih_ = take<C>(G * pitch_);
    bias_hh_ = take<C>(G * pitch_);
    taken_ = take<int64_t>(threads * Piece::kApart);
    zeros_ = take<S>(p_.resets ? p_.H : 0);
    Arena one(nullptr);
    Part(*this, 0, one);
    part_bytes_ = one.used();
    part_base_ = take<char>(split_.batch * int64_t(part_bytes_));
  }

  size_t scratch_bytes() const { return arena_.used(); }

  void run(const Host& host) {
    parallel_ranges(host, panels(), [&](int64_t begin, int64_t end) {
      Laps laps;
      for (int64_t panel = begin; panel < end; ++panel) {
        pack_transposed(p_.weight_ih, panels_ih_, panel);
        pack_transposed(p_.weight_hh, panels_hh_, panel);
        keep_x_.pack(share_of(p_.B, panel, panels()));
        keep_h_.pack(share_of(p_.B, panel, panels()));
      }
      laps.end(Phase::pack_weights);
    });
    if (p_.resets) std::memset(static_cast<void*>(zeros_), 0, size_t(p_.H) * sizeof(S));
    pack_bias(p_.bias_ih, bias_ih_);
    pack_bias(p_.bias_hh, bias_hh_);
    run_phases(host, split_, taken_, [&](const auto& run) { over_time(run); });
  }

 private:
  // A Part has the sequences of one part of the batch and their scratch.
  struct Part {
    int64_t b0, rows;
    Rows<E> x;    // masked input of a chunk, row = step * rows + sequence
    C* input;     // W (m x) of a chunk: [panel][G][chunk rows][width]
    Rows<E> h;    // masked h_{t-1}: as many sets for each piece, see pack_hidden
    Rows<E> r_h;  // r * masked h_{t-1}; reset_before only
    C* r;         // [rows][pitch]; reset_before only
    C* state;     // [rows][pitch] what the cell carries

    Part(const ForwardPass& f, int64_t index, Arena& arena) {
      const Share share = share_of(f.p_.B, index, f.split_.batch);
      b0 = share.begin;
      rows = share.size();
      const int64_t most = f.most_rows_, chunk = f.chunk_steps_ * most, H = f.p_.H;
      const auto rows_of = [&](int64_t sets, int64_t count, int64_t K) {
        return Rows<E>(arena.take<E>(Rows<E>::count(sets, count, K)), count, K);
      };
      x = rows_of(f.keep_x_.sets, chunk, f.p_.I);
      input = arena.take<C>(G * chunk * f.pitch_);
      h = rows_of(f.split_.units * f.keep_h_.sets, most, H);
      if (Algebra::reset_before) r_h = rows_of(1, most, H);
      r = arena.take<C>(Algebra::reset_before ? most * f.pitch_ : 0);
      state = arena.take<C>(most * f.pitch_);
    }
  };

  template <class T>
  T* take(int64_t count) {
    return arena_.take<T>(count);
  }
  Part part(int64_t index) const {
    Arena arena(part_base_ + index * part_bytes_);
    return Part(*this, index, arena);
  }
  int64_t panels() const { return panels_hh_.panels(); }
  int width(int64_t panel) const { return panels_hh_.width(panel); }
  int lanes(int64_t u) const { return int(min<int64_t>(V::size, p_.H - u)); }
  // Gives the values of one gate and one panel of Part::input, row by row.
  C* input_of(const Part& part, int64_t panel, int gate, int64_t row) const {
    const int64_t rows = chunk_steps_ * most_rows_;
    return part.input + G * rows * panels_hh_.begin(panel) + (gate * rows + row) * width(panel);
  }

  // The width of a panel, which goes by the threads, may decide how K is cut, since sums in one
  // chain are the same in pieces of any length; not those in two.
  Order input_order(int vectors) const {
    const bool few = p_.T * p_.B <= kFewRows;
    return {!few && vectors > 2 ? kWideBlock<E> : kBlock<E>, few};
  }

  // Packs a bias to [G][pitch], with zeros where there is none.
  void pack_bias(const S* bias, C* to) const {
    for (int gate = 0; gate < G; ++gate)
      for (int64_t u = 0; u < p_.H; u += V::size)
        store(to + gate * pitch_ + u, bias ? load(bias + gate * p_.H + u, lanes(u)) : V{});
  }

  template <class Run>
  void over_time(const Run& run) const {
    run([&](int64_t i, const Piece& piece) { start(part(i), piece); });
    for (int64_t s0 = 0; s0 < p_.T; s0 += chunk_steps_) {
      const int64_t steps = min(chunk_steps_, p_.T - s0);
      run([&](int64_t i, const Piece& piece) { pack_input(part(i), piece, s0, steps); });
      run([&](int64_t i, const Piece& piece) { input_part(part(i), piece, steps); });
      for (int64_t s = s0; s < s0 + steps; ++s) {
        if constexpr (Algebra::reset_before)
          run([&](int64_t i, const Piece& piece) { reset_gates(part(i), piece, s, s - s0); });
        run([&](int64_t i, const Piece& piece) { update(part(i), piece, s, s - s0); });
      }
    }
  }

  void start(const Part& part, const Piece& piece) const {
    piece.each(part.rows, [&](int64_t row) {
      const int64_t b = part.b0 + row;
      const S* h0 = p_.h0 + b * p_.H;
      const S* state0 = Algebra::has_c ? p_.c0 + b * p_.H : h0;
      if (Algebra::reset_before) part.r_h.clear_tail(1, row, p_.H);
      for (int64_t u = 0; u < p_.H; u += V::size) {
        const int n = lanes(u);
        store(part.state + row * pitch_ + u, load(state0 + u, n));
        store(p_.h_n + b * p_.H + u, load(h0 + u, n), n);  // stays where the length is 0
        if (Algebra::has_c) store(p_.c_n + b * p_.H + u, load(state0 + u, n), n);
      }
    });
  }

  // Packs m x for `steps` steps from s0.
  void pack_input(const Part& part, const Piece& piece, int64_t s0, int64_t steps) const {
    Laps laps;
    piece.each(steps * part.rows, [&](int64_t row) {
      const int64_t b = part.b0 + row % part.rows, t = p_.time(s0 + row / part.rows);
      pack_row(p_.x + (t * p_.B + b) * p_.I, p_.I, keep_x_, b, part.x, row);
    });
    laps.end(Phase::pack_input);
  }

  Rows<E> own_hidden(const Part& part, const Piece& piece) const {
    return part.h.from_set(piece.index * keep_h_.sets);
  }

  // Packs m h_{t-1} for step s. Each piece makes a copy of its own: what another core has just
  // written comes slowly, and masked for each gate it would be several times as much.
  Rows<E> pack_hidden(const Part& part, const Piece& piece, int64_t s) const {
    Laps laps;
    const Rows<E> own = own_hidden(part, piece);
    const int64_t t = p_.time(s);
    for (int64_t row = 0; row < part.rows; ++row) {
      const int64_t b = part.b0 + row;
      const bool first = s == 0 || p_.starts(b, t);  // rows that wait hold numbers too
      if (!first && !p_.inside(b, t)) continue;
      const S* last = first ? p_.h0 + b * p_.H : p_.y + (p_.time(s - 1) * p_.B + b) * p_.H;
      pack_row(p_.resets_at(b, t) ? zeros_ : last, p_.H, keep_h_, b, own, row);
    }
    laps.end(Phase::pack_hidden);
    return own;
  }

  // Makes W (m x) for `steps` steps. It goes gate by gate, so that the rows of one gate stay in
  // cache.
  void input_part(const Part& part, const Piece& piece, int64_t steps) const {
    const Product<E> product;
    Laps laps;
    piece.each(G * panels(), [&](int64_t item) {
      const int gate = int(item / panels());
      const int64_t panel = item % panels();
      multiply_rows(product, steps * part.rows, part.x, keep_x_.set_of(gate), 0, panels_ih_, gate,
                    panel, {input_of(part, panel, gate, 0), width(panel), false});
    });
    laps.end(Phase::input_product);
  }

  // Visits panels by all rows. It goes back and forth, so that a step starts with the panels that
  // the last one left in cache.
  template <class F>
  void for_each_tile(const Part& part, const Piece& piece, int64_t s, const F& f) const {
    const Blocks blocks(part.rows, panels_hh_.tile_rows(), Product<E>::even);
    piece.each(panels(), s % 2, [&](int64_t panel) {
      for (int64_t j = 0; j < blocks.count; ++j) f(panel, blocks.begin(j), blocks.size(j));
    });
  }

  // Makes r and r * masked h for all units, which the gate n multiplies with U.
  void reset_gates(const Part& part, const Piece& piece, int64_t s, int64_t step) const {
    const Product<E> product;
    const Rows<E> h = pack_hidden(part, piece, s);
    for_each_tile(part, piece, s, [&](int64_t panel, int64_t row, int count) {
      alignas(64) C q[kTile];
      Laps laps;
      multiply_rows(product, count, h, keep_h_.set_of(0), row, panels_hh_, 0, panel,
                    {q, width(panel), false});
      laps.end(Phase::recurrent_product);
      const C* input = input_of(part, panel, 0, step * part.rows + row);
      for (int v = 0; v < width(panel); v += V::size) {
        const int64_t u = panels_hh_.begin(panel) + v;
        const V b_ih = load(bias_ih_ + u), b_hh = load(bias_hh_ + u);
        for (int i = 0; i < count; ++i) {
          const V a = load(input + i * width(panel) + v) * scale_x_ + b_ih;
          V r;
          if constexpr (Algebra::reset_before)
            Algebra::forward_reset(a, load(q + i * width(panel) + v) * scale_h_ + b_hh, r);
          store(part.r + (row + i) * pitch_ + u, r);
          const E* const own = h.at(keep_h_.set_of(Algebra::candidate), row + i, u);
          const V masked_h = to_sum(load_lanes<E>(own, V::size));
          store(part.r_h.at(0, row + i, u), to_lanes<E>(first_lanes(lanes(u), r * masked_h)));
        }
      }
      laps.end(Phase::gates);
    });
  }

  // Makes the recurrent part and does the gate algebra of step s.
  void update(const Part& part, const Piece& piece, int64_t s, int64_t step) const {
    const Product<E> product;
    const Rows<E> h = Algebra::reset_before ? own_hidden(part, piece) : pack_hidden(part, piece, s);
    for_each_tile(part, piece, s, [&](int64_t panel, int64_t row, int count) {
      alignas(64) C q[G][kTile];
      Laps laps;
      for (int gate = Algebra::reset_before ? 1 : 0; gate < G; ++gate) {
        const bool by_reset = Algebra::reset_before && gate == Algebra::candidate;
        const Rows<E>& from = by_reset ? part.r_h : h;
        multiply_rows(product, count, from, by_reset ? 0 : keep_h_.set_of(gate), row, panels_hh_,
                      gate, panel, {q[gate], width(panel), false});
      }
      laps.end(Phase::recurrent_product);
      const C* input[G];
      for (int k = 0; k < G; ++k) input[k] = input_of(part, panel, k, step * part.rows + row);
      for (int v = 0; v < width(panel); v += V::size) {
        const Tile tile = {
            s, p_.time(s), row, part.b0 + row, count, width(panel), panels_hh_.begin(panel) + v};
        gates_and_state(part, tile, input, q[0] + v);
        output(part, tile, q[G - 1] + v);
        for (int k = 0; k < G; ++k) input[k] += V::size;
      }
      laps.end(Phase::gates);
    });
  }

  // A Tile is one vector of units of some sequences at one step; their sums lie `width` apart.
  struct Tile {
    int64_t s, t, row, b;  // b: the sequence of `row`
    int count, width;
    int64_t u;
  };

  // Makes what a step keeps from `input` and `product` [G][kTile], at the tile's column: the gates,
  // what else backward needs, the state. The last gate replaces its product.
  BRNN_INTERLEAVED void gates_and_state(const Part& part, const Tile& tile,
                                        const C* const (&input)[G], C* product) const {
    const auto [s, t, row, b, count, width, u] = tile;
    const int64_t H = p_.H, pitch = pitch_, at = (t * p_.B + b) * H;
    const int n = lanes(u);
    V b_ih[G], b_hh[G];
    for (int k = 0; k < G; ++k) {
      b_ih[k] = load(bias_ih_ + k * pitch + u);
      b_hh[k] = load(bias_hh_ + k * pitch + u);
    }
    const V scale_x = scale_x_, scale_h = scale_h_;
    S* gates = p_.gates ? p_.gates + at * G + u : nullptr;
    S* all_saved = Algebra::has_saved && p_.saved ? p_.saved + at + u : nullptr;
    C* carried = part.state + row * pitch + u;
    const C* r = part.r + row * pitch + u;
    for (int i = 0; i < count; ++i, carried += pitch, r += pitch) {
      V a[G], q[G], gate[G], saved{}, state;
      for (int k = 0; k < G; ++k) {
        a[k] = load(input[k] + i * width) * scale_x + b_ih[k];
        q[k] = load(product + k * kTile + i * width) * scale_h + b_hh[k];
      }
      if constexpr (Algebra::reset_before) gate[0] = load(r);
      const V entering = p_.resets_at(b + i, t) ? V{} : load(carried);
      Algebra::forward(a, q, entering, gate, saved, state);
      store(product + (G - 1) * kTile + i * width, gate[G - 1]);
      if (p_.inside(b + i, t)) {
        store(carried, state);
      } else {  // past its length a sequence keeps its state and writes zeros
        saved = V{};
#pragma GCC unroll 4
        for (int k = 0; k < G; ++k) gate[k] = V{};
      }
      if (gates) {
#pragma GCC unroll 4
        for (int k = 0; k < G; ++k) store(gates + (i * G + k) * H, gate[k], n);
      }
      if (all_saved) store(all_saved + i * H, saved, n);
    }
  }

  // Writes y. It stands apart from the gates: nothing of a step waits for it, and a processor looks
  // ahead by a few rows of this, but not by one of both.
  BRNN_INTERLEAVED void output(const Part& part, const Tile& tile, const C* last_gate) const {
    const auto [s, t, row, b, count, width, u] = tile;
    const int64_t H = p_.H, pitch = pitch_;
    const int n = lanes(u);
    S* const y = p_.y + (t * p_.B + b) * H + u;
    const C* const carried = part.state + row * pitch + u;
    for (int i = 0; i < count; ++i) {
      if (!p_.inside(b + i, t)) {
        store(y + i * H, typename Element<E>::Lanes{}, n);
        continue;
      }
      const V state = load(carried + i * pitch);
      V out = Algebra::output(load(last_gate + i * width), state);
      if constexpr (!std::is_same_v<S, E>) out = rounded_to<S>(out);
      const auto result = to_lanes<E>(out);
      store(y + i * H, result, n);
      if (p_.ends(b + i, t)) {
        store(p_.h_n + (b + i) * H + u, result, n);
        if (Algebra::has_c) store(p_.c_n + (b + i) * H + u, state, n);
      }
    }
  }

  const Forward<S>& p_;
  const Split split_;
  const int64_t most_rows_, chunk_steps_;
  const int64_t pitch_;  // units of a row of state, rounded up to whole vectors
  const V scale_x_ = broadcast(C(p_.mask_x.scale)), scale_h_ = broadcast(C(p_.mask_h.scale));
  Arena arena_;
  Panels<E> panels_ih_, panels_hh_;
  MaskBits<C> keep_x_, keep_h_;
  C *bias_ih_, *bias_hh_;  // [G][pitch]
  int64_t* taken_;         // see Piece
  S* zeros_;               // [H] what enters where there is a reset
  char* part_base_;
  size_t part_bytes_;
};

}  // namespace brnn::BRNN_ISA
