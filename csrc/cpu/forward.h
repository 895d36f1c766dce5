// forward.h - a whole layer forward. The batch is split over threads: sequences never meet, so no
// thread waits for another. A thread goes through time in chunks: the input part of a chunk for its
// sequences at once, then step by step the recurrent part and the gate algebra.
#pragma once

#include "gemm.h"
#include "parallel.h"

namespace brnn::BRNN_ISA {

// Rows of the input part that are made before the recurrence consumes them: enough to use a panel
// of weights many times, few enough to stay in cache.
constexpr int64_t kInputRows = 96;

template <class S, class C, template <class> class CellOf>
class ForwardPass {
  using Cell = CellOf<Math<C>>;
  using V = Vec<C>;
  static constexpr int G = Cell::gates;

 public:
  ForwardPass(const Forward<S>& layer, int threads, void* scratch)
      : p_(layer),
        parts_(min<int64_t>(threads, layer.B)),
        most_rows_(divide_up(layer.B, parts_)),
        chunk_steps_(min(layer.T, divide_up(kInputRows, most_rows_))),
        pitch_(round_up(layer.H, V::size)),
        arena_(scratch) {
    panels_ih_ = {take(Panels<C>::count(G, p_.I, p_.H)), G, p_.I, p_.H};
    panels_hh_ = {take(Panels<C>::count(G, p_.H, p_.H)), G, p_.H, p_.H};
    bias_ih_ = {take(Panels<C>::count(G, 1, p_.H)), G, 1, p_.H};
    bias_hh_ = {take(Panels<C>::count(G, 1, p_.H)), G, 1, p_.H};
    Arena one(nullptr);
    Part(*this, 0, one);
    part_bytes_ = one.used();
    part_base_ = arena_.template take<char>(parts_ * int64_t(part_bytes_));
  }

  size_t scratch_bytes() const { return arena_.used(); }

  void run(const Host& host) {
    parallel_ranges(host, Panels<C>::panels(p_.H), [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) pack_weights(panel);
    });
    parallel_ranges(host, parts_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Arena arena(part_base_ + i * part_bytes_);
        run_part(Part(*this, i, arena));
      }
    });
  }

 private:
  // The sequences of one thread and its scratch.
  struct Part {
    int64_t b0, rows;
    Rows<C> x;      // masked input of a chunk, row = step * rows + sequence
    C* input;       // input part of a chunk with b_ih: [panel][G][chunk rows][width]
    Rows<C> h[2];   // masked h_{t-1} and h_t, in turn
    Rows<C> reset;  // r * masked h_{t-1}; reset_before only
    C* r;           // [rows][pitch]; reset_before only
    C* state;       // [rows][pitch] what the cell carries

    Part(const ForwardPass& f, int64_t index, Arena& arena) {
      const Share share(f.p_.B, index, f.parts_);
      b0 = share.begin;
      rows = share.end - share.begin;
      const int64_t most = f.most_rows_, chunk = f.chunk_steps_ * most, H = f.p_.H;
      const auto rows_of = [&](int64_t sets, int64_t count, int64_t K) {
        return Rows<C>(arena.take<C>(Rows<C>::count(sets, count, K)), count, K);
      };
      x = rows_of(f.sets(f.p_.mask_x), chunk, f.p_.I);
      input = arena.take<C>(Panels<C>::count(G, chunk, H));
      for (auto& side : h) side = rows_of(f.sets(f.p_.mask_h), most, H);
      if (Cell::reset_before) reset = rows_of(1, most, H);
      r = arena.take<C>(Cell::reset_before ? most * f.pitch_ : 0);
      state = arena.take<C>(most * f.pitch_);
    }
  };

  C* take(int64_t count) { return arena_.template take<C>(count); }
  static int sets(const Mask& mask) { return mask.untied() ? G : 1; }
  static int set_of(const Mask& mask, int gate) { return mask.untied() ? gate : 0; }
  // Values of one gate and one panel of Part::input, row by row.
  C* input_of(const Part& part, int64_t panel, int gate, int64_t row) const {
    const Panels<C> layout{part.input, G, chunk_steps_ * most_rows_, p_.H};
    return layout.at(gate, panel) + row * Panels<C>::width(p_.H, panel);
  }

  void pack_weights(int64_t panel) {
    pack_transposed(p_.weight_ih, panels_ih_, panel);
    pack_transposed(p_.weight_hh, panels_hh_, panel);
    if (p_.bias_ih) pack_transposed(p_.bias_ih, bias_ih_, panel);
    if (p_.bias_hh) pack_transposed(p_.bias_hh, bias_hh_, panel);
  }

  void run_part(const Part& part) {
    start(part);
    for (int64_t s0 = 0; s0 < p_.T; s0 += chunk_steps_) {
      const int64_t steps = min(chunk_steps_, p_.T - s0);
      input_part(part, s0, steps);
      for (int64_t s = s0; s < s0 + steps; ++s) step(part, s, (s - s0) * part.rows);
    }
  }

  void start(const Part& part) {
    for (int64_t row = 0; row < part.rows; ++row) {
      const int64_t b = part.b0 + row;
      const S* h0 = p_.h0 + b * p_.H;
      const S* state0 = p_.c0 ? p_.c0 + b * p_.H : h0;
      pack_row(h0, p_.H, p_.mask_h, b, part.h[0], sets(p_.mask_h), row);
      for (int64_t u = 0; u < p_.H; u += V::size) {
        const int n = lanes(u);
        store(part.state + row * pitch_ + u, load(state0 + u, n));
        store(p_.h_n + b * p_.H + u, load(h0 + u, n), n);  // stays where the length is 0
        if (p_.c0) store(p_.c_n + b * p_.H + u, load(state0 + u, n), n);
      }
    }
  }

  // part.input = W (m x) + b_ih for `steps` steps from s0.
  void input_part(const Part& part, int64_t s0, int64_t steps) {
    const int64_t count = steps * part.rows;
    for (int64_t row = 0; row < count; ++row) {
      const int64_t b = part.b0 + row % part.rows, t = p_.time(s0 + row / part.rows);
      pack_row(p_.x + (t * p_.B + b) * p_.I, p_.I, p_.mask_x, b, part.x, sets(p_.mask_x), row);
    }
    const RowBlocks blocks(count);
    for (int64_t panel = 0; panel < Panels<C>::panels(p_.H); ++panel)
      for (int gate = 0; gate < G; ++gate)
        for (int64_t i = 0; i < blocks.blocks; ++i) {
          const int64_t row = blocks.begin(i);
          multiply_rows(blocks.size(i), Panels<C>::width(p_.H, panel), p_.I,
                        part.x.at(set_of(p_.mask_x, gate), row), part.x.block_stride(),
                        panels_ih_.at(gate, panel), p_.bias_ih ? bias_ih_.at(gate, panel) : nullptr,
                        0, input_of(part, panel, gate, row));
        }
  }

  // One time step; its input part starts at row `row0` of the chunk.
  void step(const Part& part, int64_t s, int64_t row0) {
    const Rows<C>& h = part.h[s % 2];
    const RowBlocks blocks(part.rows);
    if constexpr (Cell::reset_before) {
      for_each_panel(s, [&](int64_t panel) {
        for (int64_t i = 0; i < blocks.blocks; ++i)
          reset_gate(part, h, panel, blocks.begin(i), blocks.size(i), row0);
      });
    }
    for_each_panel(s, [&](int64_t panel) {
      for (int64_t i = 0; i < blocks.blocks; ++i)
        update(part, h, part.h[(s + 1) % 2], s, panel, blocks.begin(i), blocks.size(i), row0);
    });
  }

  // Back and forth, so that a step starts with the panels the last one left in cache.
  template <class F>
  void for_each_panel(int64_t s, const F& f) const {
    const int64_t panels = Panels<C>::panels(p_.H);
    for (int64_t i = 0; i < panels; ++i) f(s % 2 ? panels - 1 - i : i);
  }

  // q [count][width] = U_gate (rows of h) + b_hh.
  void recurrent_part(int gate, const Rows<C>& h, int set, int64_t panel, int64_t row, int count,
                      C* q) const {
    multiply_rows(count, Panels<C>::width(p_.H, panel), p_.H, h.at(set, row), h.block_stride(),
                  panels_hh_.at(gate, panel), p_.bias_hh ? bias_hh_.at(gate, panel) : nullptr, 0,
                  q);
  }

  int lanes(int64_t u) const { return int(min<int64_t>(V::size, p_.H - u)); }

  // r and r * masked h for some rows and units, which the gate n multiplies with U.
  void reset_gate(const Part& part, const Rows<C>& h, int64_t panel, int64_t row, int count,
                  int64_t row0) const {
    alignas(64) C q[kRows * Panels<C>::kWide];
    recurrent_part(0, h, set_of(p_.mask_h, 0), panel, row, count, q);
    const int width = Panels<C>::width(p_.H, panel);
    const int set_n = set_of(p_.mask_h, 2);
    for (int i = 0; i < count; ++i)
      for (int v = 0; v < width; v += V::size) {
        const int64_t u = panel * Panels<C>::kWide + v;
        const V a = load(input_of(part, panel, 0, row0 + row + i) + v);
        V r;
        if constexpr (Cell::reset_before) Cell::forward_reset(a, load(q + i * width + v), r);
        store(part.r + (row + i) * pitch_ + u, r);
        store(part.reset.at(0, row + i, u), r * load(h.at(set_n, row + i, u)));
      }
  }

  // Where one sequence's results of one step go.
  struct Target {
    int64_t b;
    bool inside, ends;
    S* y;      // [H]
    S* gates;  // [G*H] or nullptr
    S* kept;   // [H] or nullptr

    Target(const Forward<S>& p, int64_t s, int64_t b) : b(b) {
      const int64_t t = p.time(s), at = t * p.B + b;
      inside = p.inside(b, t);
      ends = p.ends(b, t);
      y = p.y + at * p.H;
      gates = p.gates ? p.gates + at * G * p.H : nullptr;
      kept = Cell::has_kept && p.kept ? p.kept + at * p.H : nullptr;
    }
  };

  // The gate algebra of step s for some rows and the units of one panel.
  void update(const Part& part, const Rows<C>& h, const Rows<C>& h_next, int64_t s, int64_t panel,
              int64_t row, int count, int64_t row0) const {
    alignas(64) C q[G][kRows * Panels<C>::kWide];
    for (int gate = Cell::reset_before ? 1 : 0; gate < G; ++gate) {
      const bool by_reset = Cell::reset_before && gate == 2;
      recurrent_part(gate, by_reset ? part.reset : h, by_reset ? 0 : set_of(p_.mask_h, gate), panel,
                     row, count, q[gate]);
    }
    const int width = Panels<C>::width(p_.H, panel);
    const C* input[G];
    for (int k = 0; k < G; ++k) input[k] = input_of(part, panel, k, row0 + row);
    for (int i = 0; i < count; ++i) {
      const Target target(p_, s, part.b0 + row + i);
      for (int v = 0; v < width; v += V::size) {
        const int64_t u = panel * Panels<C>::kWide + v;
        V a[G], r[G], gate[G], kept, state, out;
        for (int k = 0; k < G; ++k) {
          a[k] = load(input[k] + i * width + v);
          r[k] = load(q[k] + i * width + v);
        }
        C* carried = part.state + (row + i) * pitch_ + u;
        if constexpr (Cell::reset_before) gate[0] = load(part.r + (row + i) * pitch_ + u);
        Cell::forward(a, r, load(carried), gate, kept, state, out);
        out = rounded_to<S>(out);
        if (target.inside) {
          write(target, h_next, row + i, u, gate, kept, state, out);
          store(carried, state);
        } else {
          pass_by(target, h, h_next, row + i, u);
        }
      }
    }
  }

  void write(const Target& to, const Rows<C>& h_next, int64_t row, int64_t u, const V (&gate)[G],
             V kept, V state, V out) const {
    const int n = lanes(u);
    store(to.y + u, out, n);
    if (to.gates)
      for (int k = 0; k < G; ++k) store(to.gates + k * p_.H + u, gate[k], n);
    if (to.kept) store(to.kept + u, kept, n);
    C* next = h_next.at(0, row, u);
    for (int set = 0; set < sets(p_.mask_h); ++set, next += h_next.set_stride())
      store(next, masked(p_.mask_h, p_.H, set, to.b, u, n, out));
    if (to.ends) {
      store(p_.h_n + to.b * p_.H + u, out, n);
      if (p_.c0) store(p_.c_n + to.b * p_.H + u, state, n);
    }
  }

  // Past its length a sequence keeps its state and writes zeros.
  void pass_by(const Target& to, const Rows<C>& h, const Rows<C>& h_next, int64_t row,
               int64_t u) const {
    const int n = lanes(u);
    const V zero{};
    store(to.y + u, zero, n);
    if (to.gates)
      for (int k = 0; k < G; ++k) store(to.gates + k * p_.H + u, zero, n);
    if (to.kept) store(to.kept + u, zero, n);
    for (int set = 0; set < sets(p_.mask_h); ++set)
      store(h_next.at(set, row, u), load(h.at(set, row, u)));
  }

  const Forward<S>& p_;
  const int64_t parts_, most_rows_, chunk_steps_;
  const int64_t pitch_;  // units of a row of state, rounded up to whole vectors
  Arena arena_;
  Panels<C> panels_ih_, panels_hh_, bias_ih_, bias_hh_;
  char* part_base_;
  size_t part_bytes_;
};

}  // namespace brnn::BRNN_ISA
