// backward.h - a whole layer backward, in chunks of time from the last to the first. Per chunk:
//   1. recurrence  dz, the gradients of all gates, step by step; the batch split over threads
//   2. dx          from dz, the masks of each gate on its own sum; rows split over threads
//   3. weights     from dz and the masked operands; units of each gate split over threads
// so that dz is still in cache when 2 and 3 read it, and its memory does not grow with T.
#pragma once

#include <cstring>

#include "gemm.h"
#include "parallel.h"

namespace brnn::BRNN_ISA {

constexpr int64_t kChunkRows = 1024;  // rows (step, sequence) of a chunk
constexpr int64_t kDepth = 384;       // rows of the masked operand that are packed at once in 3
constexpr int64_t kInputBlocks = 5;   // blocks of kRows that share one pass over a panel in 2

template <class S, class C, template <class> class CellOf>
class BackwardPass {
  using Cell = CellOf<Math<C>>;
  using V = Vec<C>;
  static constexpr int G = Cell::gates;
  static constexpr int kSlots = Cell::slots;
  static constexpr bool kSame = sizeof(S) == sizeof(C);  // weight gradients are summed in place

 public:
  BackwardPass(const Backward<S>& layer, int threads, void* scratch)
      : p_(layer),
        threads_(threads),
        parts_(min<int64_t>(threads, layer.B)),
        chunk_steps_(min(layer.T, divide_up(kChunkRows, layer.B))),
        pitch_(round_up(layer.H, V::size)),
        arena_(scratch) {
    panels_hh_ = {take(Panels<C>::count(G, p_.H, p_.H)), G, p_.H, p_.H};
    panels_ih_ = {take(p_.dx ? Panels<C>::count(G, p_.H, p_.I) : 0), G, p_.H, p_.I};
    dz_ = rows_of(kSlots, chunk_steps_ * p_.B);
    dz_next_ = rows_of(kSlots, p_.B);
    carry_ = take(p_.B * pitch_);
    dh_masked_ = take(Cell::reset_before ? p_.B * pitch_ : 0);
    dbias_ = take(parts_ * kSlots * pitch_);
    packed_ = take(threads_ * kDepth * round_up(p_.I > p_.H ? p_.I : p_.H, V::size));
    sum_ih_ = kSame ? reinterpret_cast<C*>(p_.dweight_ih) : take(G * p_.H * p_.I);
    sum_hh_ = kSame ? reinterpret_cast<C*>(p_.dweight_hh) : take(G * p_.H * p_.H);
  }

  size_t scratch_bytes() const { return arena_.used(); }

  void run(const Host& host) {
    pack_weights(host);
    std::memset(dbias_, 0, size_t(parts_ * kSlots * pitch_) * sizeof(C));
    for (int64_t end = p_.T; end > 0;) {
      const int64_t begin = end > chunk_steps_ ? end - chunk_steps_ : 0;
      parallel_ranges(host, parts_, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) recurrence(i, begin, end);
      });
      const int64_t rows = (end - begin) * p_.B;
      if (p_.dx) {
        const RowBlocks blocks(rows);
        parallel_ranges(host, threads_, [&](int64_t first, int64_t last) {
          const int64_t i = blocks.blocks * first / threads_, j = blocks.blocks * last / threads_;
          for (int64_t k = i; k < j; k += kInputBlocks)
            input_gradient(begin, blocks, k, min(k + kInputBlocks, j));
        });
      }
      parallel_ranges(host, threads_, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) weight_gradients(i, begin, rows, end == p_.T);
      });
      end = begin;
    }
    write_weights(host);
  }

 private:
  C* take(int64_t count) { return arena_.template take<C>(count); }
  Rows<C> rows_of(int64_t sets, int64_t rows) {
    return Rows<C>(take(Rows<C>::count(sets, rows, p_.H)), rows, p_.H);
  }
  int lanes(int64_t u) const { return int(min<int64_t>(V::size, p_.H - u)); }
  const S* row(const S* tensor, int64_t t, int64_t b, int64_t columns) const {
    return tensor + (t * p_.B + b) * columns;
  }
  // What step s of sequence b started from; `first` is h0 or c0, `after` holds the steps' results.
  const S* before(const S* first, const S* after, int64_t s, int64_t b) const {
    const bool starts = s == 0 || p_.starts(b, p_.time(s));
    return starts ? first + b * p_.H : row(after, p_.time(s - 1), b, p_.H);
  }
  // The state that is carried and never masked: c_{t-1} of the LSTM, h_{t-1} of the GRU.
  const S* state_before(int64_t s, int64_t b) const {
    return p_.c0 ? before(p_.c0, p_.kept, s, b) : before(p_.h0, p_.y, s, b);
  }

  void pack_weights(const Host& host) {
    const int64_t hh = Panels<C>::panels(p_.H), ih = p_.dx ? Panels<C>::panels(p_.I) : 0;
    parallel_ranges(host, hh + ih, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (i < hh)
          pack_plain(p_.weight_hh, panels_hh_, i);
        else
          pack_plain(p_.weight_ih, panels_ih_, i - hh);
      }
    });
  }

  // ---- 1. recurrence

  // Steps end-1 .. begin for the sequences of one part.
  void recurrence(int64_t part, int64_t begin, int64_t end) {
    const Share share(p_.B, part, parts_);
    if (end == p_.T) start(share);
    for (int64_t s = end - 1; s >= begin; --s) step(part, share, s, begin, end);
    keep_for_next_chunk(share);
    if (begin == 0) initial_state(share);
  }

  void start(const Share& share) {
    for (int64_t b = share.begin; b < share.end; ++b)
      for (int64_t u = 0; u < p_.H; u += V::size)
        store(carry_ + b * pitch_ + u, p_.dc_n ? load(p_.dc_n + b * p_.H + u, lanes(u)) : V{});
  }

  // dz of the first step of this chunk is what the chunk before it starts from.
  void keep_for_next_chunk(const Share& share) {
    for (int slot = 0; slot < kSlots; ++slot)
      for (int64_t b = share.begin; b < share.end; ++b)
        for (int64_t k = 0; k < p_.H; k += kBlock)
          std::memcpy(dz_next_.at(slot, b, k), dz_.at(slot, b, k), kBlock * sizeof(C));
  }

  template <class F>
  void for_each_tile(const Share& share, int64_t s, const F& f) const {
    const RowBlocks blocks(share.end - share.begin);
    const int64_t panels = Panels<C>::panels(p_.H);
    for (int64_t i = 0; i < panels; ++i)
      for (int64_t j = 0; j < blocks.blocks; ++j)
        f(s % 2 ? panels - 1 - i : i, share.begin + blocks.begin(j), blocks.size(j));
  }

  void step(int64_t part, const Share& share, int64_t s, int64_t begin, int64_t end) {
    const bool last = s + 1 == p_.T, at_edge = s + 1 == end;
    const Rows<C>& next = at_edge ? dz_next_ : dz_;
    const int64_t next_row = at_edge ? 0 : (s + 1 - begin) * p_.B;
    for_each_tile(share, s, [&](int64_t panel, int64_t b, int count) {
      alignas(64) C dh[kRows * Panels<C>::kWide] = {};
      if (!last) through_recurrence(next, next_row + b, panel, b, count, dh);
      gate_gradients(part, s, (s - begin) * p_.B + b, panel, b, count, dh);
    });
    if constexpr (Cell::reset_before) {
      for_each_tile(share, s, [&](int64_t panel, int64_t b, int count) {
        reset_gradients(part, s, (s - begin) * p_.B + b, panel, b, count);
      });
    }
  }

  // dh [count][width] += sum over gates of m_k s (U_k^T dz_k), dz from `row` on.
  void through_recurrence(const Rows<C>& dz, int64_t row, int64_t panel, int64_t b, int count,
                          C* dh) const {
    constexpr int gates = Cell::reset_before ? 2 : G;  // n went through reset_gradients
    masked_sum<gates>(
        dz, row, panels_hh_, panel, p_.mask_h, p_.H, count,
        [&](int gate) { return Cell::slot_of_q(gate); }, [&](int i) { return b + i; }, dh);
    if constexpr (Cell::reset_before) {
      const int width = Panels<C>::width(p_.H, panel);
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size) {
          const int64_t u = panel * Panels<C>::kWide + v;
          C* to = dh + i * width + v;
          store(to, load(to) + load(dh_masked_ + (b + i) * pitch_ + u));
        }
    }
  }

  // sums [count][width] += sum over gates of m_k s (M_k^T dz_k): one product for all gates where
  // the mask is theirs in common, else one per gate with its mask on the result.
  template <int Gates, class Slot, class Sequence>
  void masked_sum(const Rows<C>& dz, int64_t row, const Panels<C>& panels, int64_t panel,
                  const Mask& mask, int64_t N, int count, const Slot& slot,
                  const Sequence& sequence, C* sums) const {
    alignas(64) C z[kRows * Panels<C>::kWide];
    const int width = Panels<C>::width(N, panel);
    const int products = mask.untied() ? Gates : 1;
    for (int k = 0; k < products; ++k) {
      for (int gate = k; gate < (mask.untied() ? k + 1 : Gates); ++gate)
        multiply_rows(count, width, p_.H, dz.at(slot(gate), row), dz.block_stride(),
                      panels.at(gate, panel), gate > k ? z : nullptr, width, z);
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size) {
          const int64_t u = panel * Panels<C>::kWide + v;
          const int n = int(min<int64_t>(V::size, N - u));
          C* to = sums + i * width + v;
          if (n > 0)
            store(to, load(to) + masked(mask, N, k, sequence(i), u, n, load(z + i * width + v)));
        }
    }
  }

  // Where one sequence's values of one step stand.
  struct Source {
    bool inside, ends;
    const S* dy;            // [H] or nullptr
    const S* gates;         // [G*H]
    const S* kept;          // [H]
    const S* state_before;  // [H]

    Source(const BackwardPass& pass, int64_t s, int64_t b) {
      const Backward<S>& p = pass.p_;
      const int64_t t = p.time(s);
      inside = p.inside(b, t);
      ends = p.dh_n && p.ends(b, t);
      dy = p.dy ? pass.row(p.dy, t, b, p.H) : nullptr;
      gates = pass.row(p.gates, t, b, G * p.H);
      kept = Cell::has_kept ? pass.row(p.kept, t, b, p.H) : nullptr;
      state_before = inside ? pass.state_before(s, b) : nullptr;
    }
  };

  // dz of step s from dh, for some sequences and the units of one panel.
  void gate_gradients(int64_t part, int64_t s, int64_t dz_row, int64_t panel, int64_t b0, int count,
                      const C* dh) {
    alignas(64) C total[kSlots][Panels<C>::kWide] = {};
    const int width = Panels<C>::width(p_.H, panel);
    const int64_t u0 = panel * Panels<C>::kWide;
    for (int i = 0; i < count; ++i) {
      const int64_t b = b0 + i;
      const Source from(*this, s, b);
      for (int v = 0; v < width; v += V::size) {
        const int64_t u = u0 + v;
        const int n = lanes(u);
        if (n <= 0) break;
        const V dh_b = load(dh + i * width + v);
        V dslot[kSlots] = {};
        if (from.inside)
          unit_gradients(from, b, u, n, dh_b, dslot);
        else if (began_later(b) && p_.time(s) == p_.length(b))
          write_dh0(b, u, n, dh_b);
        C* to = dz_.at(0, dz_row + i, u);
        for (int k = 0; k < kSlots; ++k, to += dz_.set_stride()) {
          store(to, dslot[k]);
          add_to(total[k] + v, dslot[k]);
        }
      }
    }
    for (int k = 0; k < kSlots; ++k)
      for (int v = 0; v < width && u0 + v < p_.H; v += V::size)
        add_to(dbias(part, k) + u0 + v, load(total[k] + v));
  }

  void unit_gradients(const Source& from, int64_t b, int64_t u, int n, V dh, V (&dslot)[kSlots]) {
    if (from.dy) dh = dh + load(from.dy + u, n);
    if (from.ends) dh = dh + load(p_.dh_n + b * p_.H + u, n);
    V gate[G];
    for (int k = 0; k < G; ++k) gate[k] = load(from.gates + k * p_.H + u, n);
    const V kept = Cell::has_kept ? load(from.kept + u, n) : V{};
    V carry = load(carry_ + b * pitch_ + u);
    Cell::backward(gate, kept, load(from.state_before + u, n), dh, carry, dslot);
    store(carry_ + b * pitch_ + u, carry);
  }

  // The way through r of a GRU that resets before U: needs dz_n of all units, so a pass of its own.
  void reset_gradients(int64_t part, int64_t s, int64_t dz_row, int64_t panel, int64_t b0,
                       int count) {
    alignas(64) C dq[kRows * Panels<C>::kWide];
    const int width = Panels<C>::width(p_.H, panel);
    const int64_t t = p_.time(s);
    multiply_rows(count, width, p_.H, dz_.at(2, dz_row), dz_.block_stride(),
                  panels_hh_.at(2, panel), static_cast<const C*>(nullptr), 0, dq);
    for (int i = 0; i < count; ++i)
      for (int v = 0; v < width; v += V::size) {
        const int64_t b = b0 + i, u = panel * Panels<C>::kWide + v;
        const int n = lanes(u);
        if (n <= 0) break;
        V dmasked{}, dr{};
        if (p_.inside(b, t)) {
          const V r = load(row(p_.gates, t, b, G * p_.H) + u, n);
          const V h = load(before(p_.h0, p_.y, s, b) + u, n);
          const int gate_n = p_.mask_h.untied() ? 2 : 0;
          if constexpr (Cell::reset_before)
            dmasked = Cell::backward_reset(r, masked(p_.mask_h, p_.H, gate_n, b, u, n, h),
                                           load(dq + i * width + v), dr);
          dmasked = masked(p_.mask_h, p_.H, gate_n, b, u, n, dmasked);
        }
        store(dz_.at(0, dz_row + i, u), dr);
        store(dh_masked_ + b * pitch_ + u, dmasked);
        add_to(dbias(part, 0) + u, dr);
      }
  }

  // dh0 and dc0, from dz of the first step.
  void initial_state(const Share& share) {
    for_each_tile(share, 0, [&](int64_t panel, int64_t b0, int count) {
      alignas(64) C dh[kRows * Panels<C>::kWide] = {};
      through_recurrence(dz_, b0, panel, b0, count, dh);
      const int width = Panels<C>::width(p_.H, panel);
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size) {
          const int64_t b = b0 + i, u = panel * Panels<C>::kWide + v;
          const int n = lanes(u);
          if (n <= 0) break;
          if (p_.c0) store(p_.dc0 + b * p_.H + u, load(carry_ + b * pitch_ + u), n);
          V d = load(dh + i * width + v);
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
    const V carry = p_.c0 ? V{} : load(carry_ + b * pitch_ + u);  // of the GRU it is part of dh
    store(p_.dh0 + b * p_.H + u, dh + carry, n);
  }

  C* dbias(int64_t part, int slot) const { return dbias_ + (part * kSlots + slot) * pitch_; }
  static void add_to(C* p, V a) { store(p, load(p) + a); }

  // ---- 2. dx

  void input_gradient(int64_t begin, const RowBlocks& blocks, int64_t first, int64_t last) {
    alignas(64) C sums[kRows * Panels<C>::kWide];
    for (int64_t panel = 0; panel < Panels<C>::panels(p_.I); ++panel)
      for (int64_t i = first; i < last; ++i) {
        const int64_t row0 = blocks.begin(i);
        const int count = blocks.size(i), width = Panels<C>::width(p_.I, panel);
        std::memset(sums, 0, sizeof sums);
        masked_sum<G>(
            dz_, row0, panels_ih_, panel, p_.mask_x, p_.I, count,
            [&](int gate) { return Cell::slot_of_a(gate); },
            [&](int j) { return (row0 + j) % p_.B; }, sums);
        for (int j = 0; j < count; ++j)
          for (int v = 0; v < width; v += V::size) {
            const int64_t u = panel * Panels<C>::kWide + v;
            const int n = int(min<int64_t>(V::size, p_.I - u));
            if (n <= 0) break;
            const int64_t t = p_.time(begin + (row0 + j) / p_.B), b = (row0 + j) % p_.B;
            store(p_.dx + (t * p_.B + b) * p_.I + u, load(sums + j * width + v), n);
          }
      }
  }

  // ---- 3. weights

  // This thread's units of every gate, over the rows of one chunk.
  void weight_gradients(int64_t thread, int64_t begin, int64_t rows, bool first_chunk) {
    const int64_t blocks = divide_up(p_.H, int64_t{kRows});
    const Share share(G * blocks, thread, threads_);
    C* packed = packed_ + thread * kDepth * round_up(p_.I > p_.H ? p_.I : p_.H, V::size);
    for (int gate = 0; gate < G; ++gate) {
      const int64_t first = share.begin > gate * blocks ? share.begin - gate * blocks : 0;
      const int64_t last = min(share.end - gate * blocks, blocks);
      if (first >= last) continue;
      for (int64_t row0 = 0; row0 < rows; row0 += kDepth) {
        const int64_t depth = min(kDepth, rows - row0);
        const bool add = !first_chunk || row0 > 0;
        pack_operand(gate, begin, row0, depth, p_.I, false, packed);
        add_products(Cell::slot_of_a(gate), gate, row0, depth, first, last, p_.I, packed, sum_ih_,
                     add);
        pack_operand(gate, begin, row0, depth, p_.H, true, packed);
        add_products(Cell::slot_of_q(gate), gate, row0, depth, first, last, p_.H, packed, sum_hh_,
                     add);
      }
    }
  }

  // m_k s x_t, or m_k s h_{t-1}, of `depth` rows in panels [panel][depth][width]. Rows past a
  // sequence's length are zero, whatever stands there: dz is zero too, but 0 * NaN is not.
  void pack_operand(int gate, int64_t begin, int64_t row0, int64_t depth, int64_t K, bool recurrent,
                    C* packed) const {
    const Panels<C> panels{packed, 1, depth, K};
    const Mask& mask = recurrent ? p_.mask_h : p_.mask_x;
    for (int64_t d = 0; d < depth; ++d) {
      const int64_t s = begin + (row0 + d) / p_.B, b = (row0 + d) % p_.B, t = p_.time(s);
      const bool inside = p_.inside(b, t);
      const S* from = recurrent ? before(p_.h0, p_.y, s, b) : row(p_.x, t, b, K);
      const bool by_reset = Cell::reset_before && recurrent && gate == 2;
      for (int64_t u = 0; u < round_up(K, V::size); u += V::size) {
        const int64_t panel = u / Panels<C>::kWide;
        const int n = int(min<int64_t>(V::size, K - u));
        V v{};
        if (inside) {
          v = masked(mask, K, mask.untied() ? gate : 0, b, u, n, load(from + u, n));
          if (by_reset) v = v * load(row(p_.gates, t, b, G * p_.H) + u, n);
        }
        store(panels.at(0, panel) + d * Panels<C>::width(K, panel) + u % Panels<C>::kWide, v);
      }
    }
  }

  // Rows first .. last (in blocks of kRows units) of one gate of sum [G*H, N].
  void add_products(int slot, int gate, int64_t row0, int64_t depth, int64_t first, int64_t last,
                    int64_t N, C* packed, C* sum, bool add) const {
    const Panels<C> panels{packed, 1, depth, N};
    alignas(64) C edge[kRows * Panels<C>::kWide];
    for (int64_t block = first; block < last; ++block) {
      const int64_t j = block * kRows;
      const int count = int(min<int64_t>(kRows, p_.H - j));
      const C* dz = dz_.at(slot, row0, j);
      for (int64_t panel = 0; panel < Panels<C>::panels(N); ++panel) {
        const int64_t u = panel * Panels<C>::kWide;
        const int width = Panels<C>::width(N, panel);
        C* to = sum + (gate * p_.H + j) * N + u;
        if (u + width <= N) {
          multiply_columns(count, width, depth, dz, panels.at(0, panel), to, N, add);
          continue;
        }
        multiply_columns(count, width, depth, dz, panels.at(0, panel), edge, int64_t{width}, false);
        for (int i = 0; i < count; ++i)
          for (int v = 0; v < width; v += V::size) {
            const int n = int(min<int64_t>(V::size, N - u - v));
            const V was = add ? load(to + i * N + v, n) : V{};
            store(to + i * N + v, was + load(edge + i * width + v), n);
          }
      }
    }
  }

  // Sums of the parts' bias gradients, and conversion to the storage type.
  void write_weights(const Host& host) {
    for (int gate = 0; gate < G; ++gate) {
      write_bias(Cell::slot_of_a(gate), p_.dbias_ih ? p_.dbias_ih + gate * p_.H : nullptr);
      write_bias(Cell::slot_of_q(gate), p_.dbias_hh ? p_.dbias_hh + gate * p_.H : nullptr);
    }
    if (kSame) return;
    parallel_ranges(host, G * p_.H, [&](int64_t begin, int64_t end) {
      convert(sum_ih_, p_.dweight_ih, begin * p_.I, end * p_.I);
      convert(sum_hh_, p_.dweight_hh, begin * p_.H, end * p_.H);
    });
  }

  void write_bias(int slot, S* to) const {
    for (int64_t u = 0; to && u < p_.H; u += V::size) {
      V total{};
      for (int64_t part = 0; part < parts_; ++part) total = total + load(dbias(part, slot) + u);
      store(to + u, total, lanes(u));
    }
  }

  static void convert(const C* from, S* to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += V::size) {
      const int n = int(min<int64_t>(V::size, end - i));
      store(to + i, load(from + i, n), n);
    }
  }

  const Backward<S>& p_;
  const int64_t threads_, parts_, chunk_steps_;
  const int64_t pitch_;  // units of a row of carry, rounded up to whole vectors
  Arena arena_;
  Panels<C> panels_hh_, panels_ih_;
  Rows<C> dz_;       // [slots][..][chunk rows][..] gradients of the gates, row = step * B + b
  Rows<C> dz_next_;  // [slots][..][B][..] the same of the step after this chunk
  C* carry_;         // [B][pitch] dc of the LSTM, the part of dh that skips the gates of the GRU
  C* dh_masked_;     // [B][pitch] what reaches m h_{t-1} through r; reset_before only
  C* dbias_;         // [parts][slots][pitch]
  C* packed_;        // [threads][kDepth * columns]
  C* sum_ih_;        // [G*H, I] weight gradients in C
  C* sum_hh_;        // [G*H, H]
};

}  // namespace brnn::BRNN_ISA
