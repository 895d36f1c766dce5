// forward.h - a whole layer forward, in chunks of time: the input part of a chunk for all its steps
// at once, then step by step the recurrent part and the gate algebra.
#pragma once

#include <type_traits>

#include "operands.h"
#include "parallel.h"

namespace brnn::BRNN_ISA {

// Rows of the input part that are made before the recurrence consumes them: enough to use a panel
// of weights many times, few enough to stay in cache.
constexpr int64_t kInputRows = 96;

// S is how tensors are stored, E what products multiply, C what sums and gate algebra are made in.
template <class S, class E, template <class> class CellOf>
class ForwardPass {
  using C = typename Element<E>::Sum;
  using Cell = CellOf<Math<C, S>>;
  using V = Vec<C>;
  static constexpr int G = Cell::gates;
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
    const int vectors = split_.units > 1 ? 2 : panel_vectors<E>(hh * int64_t{sizeof(E)});
    panels_ih_ = {take<E>(ih), G, p_.I, p_.H, vectors, true};
    panels_hh_ = {take<E>(hh), G, p_.H, p_.H, vectors};
    keep_x_ = {arena_, p_.mask_x, G, p_.B, p_.I};
    keep_h_ = {arena_, p_.mask_h, G, p_.B, p_.H};
    bias_ih_ = take<C>(G * pitch_);
    bias_hh_ = take<C>(G * pitch_);
    taken_ = take<int64_t>(threads * Piece::kApart);
    Arena one(nullptr);
    Part(*this, 0, one);
    part_bytes_ = one.used();
    part_base_ = take<char>(split_.batch * int64_t(part_bytes_));
  }

  size_t scratch_bytes() const { return arena_.used(); }

  void run(const Host& host) {
    parallel_ranges(host, panels(), [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        pack_transposed(p_.weight_ih, panels_ih_, panel);
        pack_transposed(p_.weight_hh, panels_hh_, panel);
        keep_x_.pack(share_of(p_.B, panel, panels()));
        keep_h_.pack(share_of(p_.B, panel, panels()));
      }
    });
    pack_bias(p_.bias_ih, bias_ih_);
    pack_bias(p_.bias_hh, bias_hh_);
    run_phases(host, split_, taken_, [&](const auto& run) { over_time(run); });
  }

 private:
  // The sequences of one part of the batch and their scratch.
  struct Part {
    int64_t b0, rows;
    Rows<E> x;      // masked input of a chunk, row = step * rows + sequence
    C* input;       // W (m x) of a chunk: [panel][G][chunk rows][width]
    Rows<E> h[2];   // masked h_{t-1} and h_t, in turn
    Rows<E> reset;  // r * masked h_{t-1}; reset_before only
    C* r;           // [rows][pitch]; reset_before only
    C* state;       // [rows][pitch] what the cell carries

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
      for (auto& side : h) side = rows_of(f.keep_h_.sets, most, H);
      if (Cell::reset_before) reset = rows_of(1, most, H);
      r = arena.take<C>(Cell::reset_before ? most * f.pitch_ : 0);
      state = arena.take<C>(most * f.pitch_);
    }
  };

  template <class T>
  T* take(int64_t count) {
    return arena_.template take<T>(count);
  }
  Part part(int64_t index) const {
    Arena arena(part_base_ + index * part_bytes_);
    return Part(*this, index, arena);
  }
  int64_t panels() const { return panels_hh_.panels(); }
  int width(int64_t panel) const { return panels_hh_.width(panel); }
  int lanes(int64_t u) const { return int(min<int64_t>(V::size, p_.H - u)); }
  // Values of one gate and one panel of Part::input, row by row.
  C* input_of(const Part& part, int64_t panel, int gate, int64_t row) const {
    const int64_t rows = chunk_steps_ * most_rows_;
    return part.input + G * rows * panels_hh_.begin(panel) + (gate * rows + row) * width(panel);
  }

  // [G][pitch], zeros where there is none.
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
        if constexpr (Cell::reset_before)
          run([&](int64_t i, const Piece& piece) { reset_gates(part(i), piece, s, s - s0); });
        run([&](int64_t i, const Piece& piece) { update(part(i), piece, s, s - s0); });
      }
    }
  }

  void start(const Part& part, const Piece& piece) const {
    piece.each(part.rows, [&](int64_t row) {
      const int64_t b = part.b0 + row;
      const S* h0 = p_.h0 + b * p_.H;
      const S* state0 = p_.c0 ? p_.c0 + b * p_.H : h0;
      pack_row(h0, p_.H, keep_h_, b, part.h[0], row);
      part.h[1].clear_tail(keep_h_.sets, row, p_.H);
      if (Cell::reset_before) part.reset.clear_tail(1, row, p_.H);
      for (int64_t u = 0; u < p_.H; u += V::size) {
        const int n = lanes(u);
        store(part.state + row * pitch_ + u, load(state0 + u, n));
        store(p_.h_n + b * p_.H + u, load(h0 + u, n), n);  // stays where the length is 0
        if (p_.c0) store(p_.c_n + b * p_.H + u, load(state0 + u, n), n);
      }
    });
  }

  // m x for `steps` steps from s0.
  void pack_input(const Part& part, const Piece& piece, int64_t s0, int64_t steps) const {
    piece.each(steps * part.rows, [&](int64_t row) {
      const int64_t b = part.b0 + row % part.rows, t = p_.time(s0 + row / part.rows);
      pack_row(p_.x + (t * p_.B + b) * p_.I, p_.I, keep_x_, b, part.x, row);
    });
  }

  // W (m x) for `steps` steps. Gate by gate, so that the rows of one gate stay in cache.
  void input_part(const Part& part, const Piece& piece, int64_t steps) const {
    const Product<E> product;
    piece.each(G * panels(), [&](int64_t item) {
      const int gate = int(item / panels());
      const int64_t panel = item % panels();
      multiply_rows(product, steps * part.rows, width(panel), p_.I, part.x, keep_x_.set_of(gate), 0,
                    panels_ih_.at(gate, panel),
                    {input_of(part, panel, gate, 0), width(panel), false});
    });
  }

  // Panels by all rows. Back and forth, so that a step starts with the panels that the
  // last one left in cache.
  template <class F>
  void for_each_tile(const Part& part, const Piece& piece, int64_t s, const F& f) const {
    const Blocks blocks(part.rows, panels_hh_.tile_rows(), Product<E>::even);
    piece.each(panels(), s % 2, [&](int64_t panel) {
      for (int64_t j = 0; j < blocks.count; ++j) f(panel, blocks.begin(j), blocks.size(j));
    });
  }

  // r and r * masked h for all units, which the gate n multiplies with U.
  void reset_gates(const Part& part, const Piece& piece, int64_t s, int64_t step) const {
    const Product<E> product;
    const Rows<E>& h = part.h[s % 2];
    for_each_tile(part, piece, s, [&](int64_t panel, int64_t row, int count) {
      alignas(64) C q[kTile];
      multiply_rows(product, count, width(panel), p_.H, h, keep_h_.set_of(0), row,
                    panels_hh_.at(0, panel), {q, width(panel), false});
      const C* input = input_of(part, panel, 0, step * part.rows + row);
      for (int v = 0; v < width(panel); v += V::size) {
        const int64_t u = panels_hh_.begin(panel) + v;
        const V b_ih = load(bias_ih_ + u), b_hh = load(bias_hh_ + u);
        for (int i = 0; i < count; ++i) {
          const V a = load(input + i * width(panel) + v) * scale_x_ + b_ih;
          V r;
          if constexpr (Cell::reset_before)
            Cell::forward_reset(a, load(q + i * width(panel) + v) * scale_h_ + b_hh, r);
          store(part.r + (row + i) * pitch_ + u, r);
          const V masked_h = to_sum(load_lanes<E>(h.at(keep_h_.set_of(2), row + i, u), V::size));
          store(part.reset.at(0, row + i, u), to_lanes<E>(first_lanes(lanes(u), r * masked_h)));
        }
      }
    });
  }

  // Where one sequence's results of one step go.
  struct Target {
    int64_t b;
    bool inside, ends;
    S* y;      // [H]
    S* gates;  // [G*H] or nullptr
    S* kept;   // [H] or nullptr

    Target() = default;
    Target(const Forward<S>& p, int64_t s, int64_t b) : b(b) {
      const int64_t t = p.time(s), at = t * p.B + b;
      inside = p.inside(b, t);
      ends = p.ends(b, t);
      y = p.y + at * p.H;
      gates = p.gates ? p.gates + at * G * p.H : nullptr;
      kept = Cell::has_kept && p.kept ? p.kept + at * p.H : nullptr;
    }
  };

  // The recurrent part and the gate algebra of step s.
  void update(const Part& part, const Piece& piece, int64_t s, int64_t step) const {
    const Product<E> product;
    const Rows<E>& h = part.h[s % 2];
    for_each_tile(part, piece, s, [&](int64_t panel, int64_t row, int count) {
      alignas(64) C q[G][kTile];
      for (int gate = Cell::reset_before ? 1 : 0; gate < G; ++gate) {
        const bool by_reset = Cell::reset_before && gate == 2;
        const Rows<E>& from = by_reset ? part.reset : h;
        multiply_rows(product, count, width(panel), p_.H, from, by_reset ? 0 : keep_h_.set_of(gate),
                      row, panels_hh_.at(gate, panel), {q[gate], width(panel), false});
      }
      const C* input[G];
      for (int k = 0; k < G; ++k) input[k] = input_of(part, panel, k, step * part.rows + row);
      Target targets[kRows];
      for (int i = 0; i < count; ++i) targets[i] = Target(p_, s, part.b0 + row + i);
      for (int v = 0; v < width(panel); v += V::size)
        gate_algebra(part, targets, s, row, count, panels_hh_.begin(panel) + v, input, q, v,
                     width(panel));
    });
  }

  // One vector of units from u on, which stands at column v of the sums.
  BRNN_INTERLEAVED void gate_algebra(const Part& part, const Target* targets, int64_t s,
                                     int64_t row, int count, int64_t u, const C* const (&input)[G],
                                     const C (&q)[G][kTile], int v, int width) const {
    const Rows<E>&h = part.h[s % 2], &h_next = part.h[(s + 1) % 2];
    V b_ih[G], b_hh[G];
    for (int k = 0; k < G; ++k) {
      b_ih[k] = load(bias_ih_ + k * pitch_ + u);
      b_hh[k] = load(bias_hh_ + k * pitch_ + u);
    }
    for (int i = 0; i < count; ++i) {
      V a[G], r[G], gate[G], kept, state, out;
      for (int k = 0; k < G; ++k) {
        a[k] = load(input[k] + i * width + v) * scale_x_ + b_ih[k];
        r[k] = load(q[k] + i * width + v) * scale_h_ + b_hh[k];
      }
      C* carried = part.state + (row + i) * pitch_ + u;
      if constexpr (Cell::reset_before) gate[0] = load(part.r + (row + i) * pitch_ + u);
      Cell::forward(a, r, load(carried), gate, kept, state, out);
      if (targets[i].inside) {
        write(targets[i], h_next, row + i, u, gate, kept, state, out);
        store(carried, state);
      } else {
        pass_by(targets[i], h, h_next, row + i, u);
      }
    }
  }

  void write(const Target& to, const Rows<E>& h_next, int64_t row, int64_t u, const V (&gate)[G],
             V kept, V state, V out) const {
    const int n = lanes(u);
    if constexpr (!std::is_same_v<S, E>) out = rounded_to<S>(out);
    const auto result = to_lanes<E>(out);
    store(to.y + u, result, n);
    if (to.gates)
      for (int k = 0; k < G; ++k) store(to.gates + k * p_.H + u, gate[k], n);
    if (to.kept) store(to.kept + u, kept, n);
    E* next = h_next.at(0, row, u);
    const uint16_t* keep = keep_h_.at(to.b, 0, u);
    for (int set = 0; set < keep_h_.sets;
         ++set, next += h_next.set_stride(), keep += keep_h_.vectors)
      store(next, select(*keep, result));
    if (to.ends) {
      store(p_.h_n + to.b * p_.H + u, result, n);
      if (p_.c0) store(p_.c_n + to.b * p_.H + u, state, n);
    }
  }

  // Past its length a sequence keeps its state and writes zeros.
  void pass_by(const Target& to, const Rows<E>& h, const Rows<E>& h_next, int64_t row,
               int64_t u) const {
    const int n = lanes(u);
    const V zero{};
    store(to.y + u, zero, n);
    if (to.gates)
      for (int k = 0; k < G; ++k) store(to.gates + k * p_.H + u, zero, n);
    if (to.kept) store(to.kept + u, zero, n);
    for (int set = 0; set < keep_h_.sets; ++set)
      store(h_next.at(set, row, u), load_lanes<E>(h.at(set, row, u), V::size));
  }

  const Forward<S>& p_;
  const Split split_;
  const int64_t most_rows_, chunk_steps_;
  const int64_t pitch_;  // units of a row of state, rounded up to whole vectors
  const V scale_x_ = broadcast(C(p_.mask_x.scale)), scale_h_ = broadcast(C(p_.mask_h.scale));
  Arena arena_;
  Panels<E> panels_ih_, panels_hh_;
  Keep<C> keep_x_, keep_h_;
  C *bias_ih_, *bias_hh_;  // [G][pitch]
  int64_t* taken_;         // see Piece
  char* part_base_;
  size_t part_bytes_;
};

}  // namespace brnn::BRNN_ISA
