// backward.h - a whole layer backward, in chunks of time from the last to the first. Per chunk:
//   1. recurrence  dz, the gradients of all gates, step by step; divided as forward is
//   2. dx          from dz, the masks of each gate on its own sum; rows split over threads
//   3. weights     from dz and the masked operands; units of each gate split over threads
// so that dz is still in cache when 2 and 3 read it, and its memory does not grow with T.
#pragma once

#include <cstring>

#include "operands.h"
#include "parallel.h"

namespace brnn::BRNN_ISA {

// Steps of a chunk: the weight gradients gain by many rows (step, sequence), memory grows with
// them. All of them if they are no more than the units, since the masked operands then find room
// where the weights were; else a third of a short sequence's, unless those are few.
inline int64_t chunk_steps(int64_t T, int64_t B, int64_t H) {
  constexpr int64_t most = 480, least = 96;
  if (T * B <= H) return T;
  const int64_t steps = min(most / B, divide_up(T, 3)), enough = divide_up(least, B);
  return min(T, steps > enough ? steps : enough);
}
constexpr int64_t kSomeRows = 16;    // of the operands of weight gradients, packed at once
constexpr int64_t kMostUnits = 240;  // units of a gate whose weight gradients are made at once

template <class S, class E, template <class> class CellOf>
class BackwardPass {
  using C = typename Element<E>::Sum;
  using Cell = CellOf<Math<C, S>>;
  using V = Vec<C>;
  using Lanes = typename Element<E>::Lanes;
  static constexpr int G = Cell::gates;
  static constexpr int kSlots = Cell::slots;
  static constexpr int kTile = Panels<E>::kTile;
  static constexpr int kWide = Product<E>::vectors * V::size;
  static constexpr bool kSame = sizeof(S) == sizeof(C);  // weight gradients are summed in place

 public:
  BackwardPass(const Backward<S>& layer, int threads, void* scratch)
      : p_(layer),
        threads_(threads),
        split_(Split::of<E>(threads, layer.B, layer.H, G * layer.H)),
        chunk_steps_(chunk_steps(layer.T, layer.B, layer.H)),
        pitch_(round_up(layer.H, V::size)),
        arena_(scratch) {
    const int64_t hh = Panels<E>::count(G, p_.H, p_.H);
    const int64_t ih = p_.dx ? Panels<E>::count(G, p_.H, p_.I) : 0;
    const int64_t most_rows = divide_up(p_.B, split_.batch);
    const int vectors = split_.units > 1 ? 2 : panel_vectors<E>(hh * int64_t{sizeof(E)}, most_rows);
    panels_hh_ = {take<E>(hh), G, p_.H, p_.H, vectors};
    panels_ih_ = {take<E>(ih), G, p_.H, p_.I,
                  panel_vectors<E>(ih * int64_t{sizeof(E)}, chunk_steps_ * p_.B)};
    keep_x_ = {arena_, p_.mask_x, G, p_.B, p_.I};
    keep_h_ = {arena_, p_.mask_h, G, p_.B, p_.H};
    dz_ = rows_of(kSlots, chunk_steps_ * p_.B, p_.H);
    dz_next_ = rows_of(kSlots, p_.B, p_.H);
    carry_ = take<C>(p_.B * pitch_);
    dh_masked_ = take<C>(Cell::reset_before ? p_.B * pitch_ : 0);
    dbias_ = take<C>(split_.batch * kSlots * pitch_);
    const int64_t rows = chunk_steps_ * p_.B;
    const int64_t xs = Panels<E>::count(sets_x(), rows, p_.I);
    const int64_t hs = Panels<E>::count(sets_h(), rows, p_.H);
    operand_x_ = chunk_steps_ == p_.T && xs + hs <= hh + ih ? panels_hh_.data : take<E>(xs + hs);
    operand_h_ = operand_x_ + xs;
    units_ = take<E>(threads_ * units_count());
    taken_ = take<int64_t>(threads_ * Piece::kApart);
    sum_ih_ = kSame ? reinterpret_cast<C*>(p_.dweight_ih) : take<C>(G * p_.H * p_.I);
    sum_hh_ = kSame ? reinterpret_cast<C*>(p_.dweight_hh) : take<C>(G * p_.H * p_.H);
  }

  size_t scratch_bytes() const { return arena_.used(); }

  void run(Host host) {
    host.flush_subnormals = true;  // gradients vanish over time: up to 30 times slower otherwise
    pack_weights(host);
    std::memset(dbias_, 0, size_t(split_.batch * kSlots * pitch_) * sizeof(C));
    for (int64_t end = p_.T; end > 0;) {
      const int64_t begin = end > chunk_steps_ ? end - chunk_steps_ : 0;
      run_phases(host, split_, taken_, [&](const auto& run) { recurrence(run, begin, end); });
      const auto together = [&](const auto& phase) {
        parallel_pieces(host, threads_, taken_, phase);
      };
      const int64_t rows = (end - begin) * p_.B;
      if (p_.dx) together([&](const Piece& piece) { input_gradient(piece, begin, rows); });
      together([&](const Piece& piece) { pack_operands(piece, begin, rows); });
      together([&](const Piece& piece) { weight_gradients(piece, rows, end == p_.T); });
      end = begin;
    }
    write_weights(host);
  }

 private:
  template <class T>
  T* take(int64_t count) {
    return arena_.template take<T>(count);
  }
  Rows<E> rows_of(int64_t sets, int64_t rows, int64_t K) {
    return Rows<E>(take<E>(Rows<E>::count(sets, rows, K)), rows, K);
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
    return Cell::has_c ? before(p_.c0, p_.saved, s, b) : before(p_.h0, p_.y, s, b);
  }

  void pack_weights(const Host& host) {
    const int64_t hh = panels_hh_.panels(), ih = p_.dx ? panels_ih_.panels() : 0;
    parallel_ranges(host, hh + ih, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (i < hh)
          pack_plain(p_.weight_hh, panels_hh_, i);
        else
          pack_plain(p_.weight_ih, panels_ih_, i - hh);
        keep_x_.pack(share_of(p_.B, i, hh + ih));
        keep_h_.pack(share_of(p_.B, i, hh + ih));
      }
    });
  }

  // ---- 1. recurrence

  // Steps end-1 .. begin.
  template <class Run>
  void recurrence(const Run& run, int64_t begin, int64_t end) {
    const auto sequences = [this](int64_t part) { return share_of(p_.B, part, split_.batch); };
    run([&](int64_t part, const Piece& piece) { start_chunk(sequences(part), piece, begin, end); });
    for (int64_t s = end - 1; s >= begin; --s) {
      run([&](int64_t part, const Piece& piece) {
        step(part, sequences(part), piece, s, begin, end);
      });
      if constexpr (Cell::reset_before)
        run([&](int64_t part, const Piece& piece) {
          reset_gradients(part, sequences(part), piece, s, begin);
        });
    }
    if (begin == 0)
      run([&](int64_t part, const Piece& piece) { initial_state(sequences(part), piece); });
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
    const Blocks blocks(sequences.size(), panels_hh_.tile_rows(), Product<E>::even);
    piece.each(panels_hh_.panels(), s % 2, [&](int64_t panel) {
      for (int64_t j = 0; j < blocks.count; ++j)
        f(panel, sequences.begin + blocks.begin(j), blocks.size(j));
    });
  }

  void step(int64_t part, const Share& sequences, const Piece& piece, int64_t s, int64_t begin,
            int64_t end) {
    const Product<E> product;
    const bool last = s + 1 == p_.T, at_edge = s + 1 == end;
    const Rows<E>& next = at_edge ? dz_next_ : dz_;
    const int64_t next_row = at_edge ? 0 : (s + 1 - begin) * p_.B;
    for_each_tile(sequences, piece, s, [&](int64_t panel, int64_t b, int count) {
      alignas(64) C dh[kTile];
      if (last)
        std::memset(dh, 0, sizeof dh);
      else
        through_recurrence(product, next, next_row + b, panel, b, count, dh);
      for (int v = 0; v < panels_hh_.width(panel); v += V::size)
        gate_gradients(part, s, (s - begin) * p_.B + b, b, count, panels_hh_.begin(panel) + v,
                       dh + v, panels_hh_.width(panel));
    });
  }

  // dh [count][width] = sum over gates of m_k (U_k^T dz_k), dz from `row` on. Without the mask's
  // scale.
  void through_recurrence(const Product<E>& product, const Rows<E>& dz, int64_t row, int64_t panel,
                          int64_t b, int count, C* dh) const {
    constexpr int gates = Cell::reset_before ? 2 : G;  // n went through reset_gradients
    masked_sum<gates>(
        product, dz, row, panels_hh_, panel, keep_h_, b, count,
        [](int gate) { return Cell::slot_of_q(gate); }, dh);
    if constexpr (Cell::reset_before) {
      const int width = panels_hh_.width(panel);
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size)
          add_to(dh + i * width + v,
                 load(dh_masked_ + (b + i) * pitch_ + panels_hh_.begin(panel) + v));
    }
  }

  // sums [count][width] = sum over gates of m_k (M_k^T dz_k), rows being sequences from b on, and
  // from 0 again after the last.
  template <int Gates, class Slot>
  void masked_sum(const Product<E>& product, const Rows<E>& dz, int64_t row,
                  const Panels<E>& panels, int64_t panel, const Keep<C>& keep, int64_t b, int count,
                  const Slot& slot, C* sums) const {
    const int width = panels.width(panel);
    const uint16_t* bits[kTileRows<E>];
    for (int i = 0; i < count; ++i, b = b + 1 < p_.B ? b + 1 : 0)
      bits[i] = keep.at(b, 0, panels.begin(panel));
    std::memset(sums, 0, size_t(count * width) * sizeof(C));
    for (int gate = 0; gate < Gates; ++gate)
      multiply_rows(product, count, width, p_.H, dz, slot(gate), row, panels.at(gate, panel),
                    {sums, width, true, bits, keep.set_of(gate) * keep.vectors});
  }

  // dz of step s from dh, whose rows lie `width` apart, for some sequences and a vector of units.
  BRNN_INTERLEAVED void gate_gradients(int64_t part, int64_t s, int64_t dz_row, int64_t b0,
                                       int count, int64_t u, const C* dh, int width) {
    const int64_t t = p_.time(s), H = p_.H, at = (t * p_.B + b0) * H, pitch = pitch_;
    const int n = lanes(u);
    const S* const dy = p_.dy ? p_.dy + at + u : nullptr;
    const S* const gates = p_.gates + at * G + u;
    const S* const all_saved = Cell::has_saved ? p_.saved + at + u : nullptr;
    C* const carried = carry_ + b0 * pitch + u;
    E* to = dz_.at(0, dz_row, u);
    const int64_t slot_stride = dz_.set_stride();
    V total[kSlots] = {};
    for (int i = 0; i < count; ++i, to += kBlock<E>) {
      const int64_t b = b0 + i;
      V dh_b = load(dh + i * width) * scale_h_;
      V dslot[kSlots] = {};
      if (p_.inside(b, t)) {
        if (dy) dh_b = dh_b + load(dy + i * H, n);
        if (p_.dh_n && p_.ends(b, t)) dh_b = dh_b + load(p_.dh_n + b * H + u, n);
        V gate[G];
        for (int k = 0; k < G; ++k) gate[k] = load(gates + (i * G + k) * H, n);
        const V saved = Cell::has_saved ? load(all_saved + i * H, n) : V{};
        V carry = load(carried + i * pitch);
        Cell::backward(gate, saved, load(state_before(s, b) + u, n), dh_b, carry, dslot);
        store(carried + i * pitch, carry);
      } else if (began_later(b) && t == p_.length(b)) {
        write_dh0(b, u, n, dh_b);
      }
      for (int k = 0; k < kSlots; ++k) {
        store(to + k * slot_stride, to_lanes<E>(dslot[k]));
        total[k] = total[k] + dslot[k];
      }
    }
    for (int k = 0; k < kSlots; ++k) add_to(dbias(part, k) + u, total[k]);
  }

  // The way through r of a GRU that resets before U: needs dz_n of all units, so a phase of its
  // own.
  void reset_gradients(int64_t part, const Share& sequences, const Piece& piece, int64_t s,
                       int64_t begin) {
    const Product<E> product;
    const int64_t t = p_.time(s);
    for_each_tile(sequences, piece, s, [&](int64_t panel, int64_t b0, int count) {
      alignas(64) C dq[kTile];
      const int64_t dz_row = (s - begin) * p_.B + b0;
      const int width = panels_hh_.width(panel);
      multiply_rows(product, count, width, p_.H, dz_, 2, dz_row, panels_hh_.at(2, panel),
                    {dq, width, false});
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size) {
          const int64_t b = b0 + i, u = panels_hh_.begin(panel) + v;
          const int n = lanes(u);
          V dmasked{}, dr{};
          if (p_.inside(b, t)) {
            const V r = load(row(p_.gates, t, b, G * p_.H) + u, n);
            const V h = load(before(p_.h0, p_.y, s, b) + u, n);
            if constexpr (Cell::reset_before)
              dmasked = Cell::backward_reset(r, keep_h_(2, b, u, h) * scale_h_,
                                             first_lanes(n, load(dq + i * width + v)), dr);
            dmasked = keep_h_(2, b, u, dmasked);
          }
          store(dz_.at(0, dz_row + i, u), to_lanes<E>(dr));
          store(dh_masked_ + b * pitch_ + u, dmasked);
          add_to(dbias(part, 0) + u, dr);
        }
    });
  }

  // dh0 and dc0, from dz of the first step.
  void initial_state(const Share& sequences, const Piece& piece) const {
    const Product<E> product;
    for_each_tile(sequences, piece, 0, [&](int64_t panel, int64_t b0, int count) {
      alignas(64) C dh[kTile];
      through_recurrence(product, dz_, b0, panel, b0, count, dh);
      const int width = panels_hh_.width(panel);
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < width; v += V::size) {
          const int64_t b = b0 + i, u = panels_hh_.begin(panel) + v;
          const int n = lanes(u);
          if (n <= 0) break;
          if (Cell::has_c) store(p_.dc0 + b * p_.H + u, load(carry_ + b * pitch_ + u), n);
          V d = load(dh + i * width + v) * scale_h_;
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
        Cell::has_c ? V{} : load(carry_ + b * pitch_ + u);  // of the GRU it is part of dh
    store(p_.dh0 + b * p_.H + u, dh + carry, n);
  }

  C* dbias(int64_t part, int slot) const { return dbias_ + (part * kSlots + slot) * pitch_; }
  static void add_to(C* p, V a) { store(p, load(p) + a); }

  // ---- 2. dx

  void input_gradient(const Piece& piece, int64_t begin, int64_t rows) const {
    const Product<E> product;
    const Blocks blocks(rows, panels_ih_.tile_rows(), Product<E>::even);
    piece.each(blocks.count, [&](int64_t i) {
      for (int64_t panel = 0; panel < panels_ih_.panels(); ++panel)
        input_gradient_tile(product, begin, blocks.begin(i), blocks.size(i), panel);
    });
  }

  void input_gradient_tile(const Product<E>& product, int64_t begin, int64_t row0, int count,
                           int64_t panel) const {
    alignas(64) C sums[kTile];
    const int width = panels_ih_.width(panel);
    masked_sum<G>(
        product, dz_, row0, panels_ih_, panel, keep_x_, row0 % p_.B, count,
        [](int gate) { return Cell::slot_of_a(gate); }, sums);
    for (int j = 0; j < count; ++j) {
      const int64_t t = p_.time(begin + (row0 + j) / p_.B), b = (row0 + j) % p_.B;
      for (int v = 0; v < width; v += V::size) {
        const int64_t u = panels_ih_.begin(panel) + v;
        store(p_.dx + (t * p_.B + b) * p_.I + u, load(sums + j * width + v) * scale_x_,
              int(min<int64_t>(V::size, p_.I - u)));
      }
    }
  }

  // ---- 3. weights: products of dz, turned so that units are rows, and the masked operands

  // A packed operand per gate, or one for all.
  int sets_x() const { return keep_x_.sets; }
  int sets_h() const { return Cell::reset_before ? G : keep_h_.sets; }
  Panels<E> operand_x(int64_t rows) const {
    return {operand_x_, sets_x(), rows, p_.I, Product<E>::vectors, true};
  }
  Panels<E> operand_h(int64_t rows) const {
    return {operand_h_, sets_h(), rows, p_.H, Product<E>::vectors, true};
  }

  // m_k x_t and m_k h_{t-1} of one chunk, some rows at a time.
  void pack_operands(const Piece& piece, int64_t begin, int64_t rows) const {
    piece.each(divide_up(Panels<E>::padded(rows), kSomeRows), [&](int64_t item) {
      pack_operand<false>(operand_x(rows), begin, item * kSomeRows);
      pack_operand<true>(operand_h(rows), begin, item * kSomeRows);
    });
  }

  // Rows from `first` on of what each gate sees; scaled where the sums are made in place. Rows past
  // a sequence's length are zero, whatever stands there: dz is zero too, but 0 * NaN is not.
  template <bool Recurrent>
  void pack_operand(const Panels<E>& to, int64_t begin, int64_t first) const {
    constexpr int group = Element<E>::group;
    const Keep<C>& keep = Recurrent ? keep_h_ : keep_x_;
    const V scale = broadcast(C(kSame ? keep.mask.scale : 1));
    const int64_t last = min(first + kSomeRows, Panels<E>::padded(to.K));
    struct Source {
      const S *from, *r;
      const uint16_t* keep;
    } sources[kSomeRows];
    for (int64_t d = first; d < last; ++d) {
      const int64_t s = begin + d / p_.B, b = d % p_.B, t = p_.time(s);
      const bool inside = d < to.K && p_.inside(b, t);
      sources[d - first] = {!inside     ? nullptr
                            : Recurrent ? before(p_.h0, p_.y, s, b)
                                        : row(p_.x, t, b, p_.I),
                            inside ? row(p_.gates, t, b, G * p_.H) : nullptr, keep.at(b, 0, 0)};
    }
    for (int64_t panel = 0; panel < to.panels(); ++panel)
      for (int64_t d = first; d < last; d += group)
        for (int v = 0; v < to.width(panel); v += V::size) {
          const int64_t u = to.begin(panel) + v;
          const int n = int(min<int64_t>(V::size, to.N - u));
          const Source* const source = sources + (d - first);
          Lanes lanes[group];
          for (int i = 0; i < group; ++i)
            lanes[i] = source[i].from ? load_lanes<E>(source[i].from + u, n) : Lanes{};
          for (int set = 0; set < to.gates; ++set) {
            const int64_t at = keep.set_of(set) * keep.vectors + u / V::size;
            const auto words = words_of<E>([&](int i) {
              const Lanes kept = select(source[i].keep[at], lanes[i]);
              if (Cell::reset_before && Recurrent && set == 2 && source[i].from)
                return to_lanes<E>(to_sum(kept) * scale * load(source[i].r + u, n));
              if constexpr (kSame) return to_lanes<E>(to_sum(kept) * scale);
              return kept;
            });
            store(reinterpret_cast<C*>(to.at(set, panel) + d * to.width(panel) + v * group), words);
          }
        }
  }

  // Units of a gate that a thread takes at once: some of its own size for each thread, if the gate
  // has as many.
  int64_t unit_step() const {
    const int64_t fair = divide_up(G * p_.H, 4 * int64_t{threads_});
    return min(kMostUnits,
               round_up(fair < kTileRows<E> ? kTileRows<E> : fair, Product<E>::rows(1)));
  }
  int64_t units_count() const { return Rows<E>::count(1, unit_step(), chunk_steps_ * p_.B); }

  void weight_gradients(const Piece& piece, int64_t rows, bool first_chunk) const {
    const Product<E> product;
    const Rows<E> units(units_ + piece.index * units_count(), unit_step(), rows);
    const Blocks steps(p_.H, unit_step(), Product<E>::even);
    piece.each(G * steps.count, [&](int64_t item) {
      const int gate = int(item / steps.count);
      const int64_t first = steps.begin(item % steps.count);
      const Share own = {first, first + steps.size(item % steps.count)};
      const int slot_a = Cell::slot_of_a(gate), slot_q = Cell::slot_of_q(gate);
      turn(slot_a, rows, own, units);
      add_products(product, gate, own, units, operand_x(rows), sets_x(), sum_ih_, !first_chunk);
      if (slot_q != slot_a) turn(slot_q, rows, own, units);
      add_products(product, gate, own, units, operand_h(rows), sets_h(), sum_hh_, !first_chunk);
    });
  }

  // units [own][rows] = dz [rows][own] of one slot.
  void turn(int slot, int64_t rows, const Share& own, const Rows<E>& units) const {
    constexpr int group = Element<E>::group;
    for (int64_t u = own.begin / V::size * V::size; u < own.end; u += V::size)
      for (int64_t k = 0; k < Panels<E>::padded(rows); k += V::size * group) {
        V tile[V::size];
        for (int j = 0; j < V::size; ++j)
          tile[j] = words_of<E>([&](int i) {
            const int64_t d = k + j * group + i;
            return d < rows ? load_lanes<E>(dz_.at(slot, d, u), V::size) : Lanes{};
          });
        transpose(tile);
        for (int j = 0; j < V::size; ++j)
          if (own.begin <= u + j && u + j < own.end)
            store(reinterpret_cast<C*>(units.at(0, u + j - own.begin, k)), tile[j]);
      }
  }

  // Some units of one gate of sum [G*H, N]. A panel of the operand stays in cache while the units
  // pass by.
  void add_products(const Product<E>& product, int gate, const Share& own, const Rows<E>& units,
                    const Panels<E>& operand, int sets, C* sum, bool add) const {
    const int64_t N = operand.N, rows = operand.K;
    const int set = sets > 1 ? gate : 0;
    const Blocks tiles(own.size(), operand.tile_rows(), Product<E>::even);
    alignas(64) C edge[kTile];
    for (int64_t panel = 0; panel < operand.panels(); ++panel) {
      const int64_t u = operand.begin(panel);
      const int width = operand.width(panel);
      C* const to = sum + (gate * p_.H + own.begin) * N + u;
      if (u + width <= N) {
        multiply_rows(product, own.size(), width, rows, units, 0, 0, operand.at(set, panel),
                      {to, N, add});
        continue;
      }
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        const int64_t j = tiles.begin(tile);
        multiply_rows(product, tiles.size(tile), width, rows, units, 0, j, operand.at(set, panel),
                      {edge, width, false});
        for (int i = 0; i < tiles.size(tile); ++i)
          for (int v = 0; v < width; v += V::size) {
            C* const at = to + (j + i) * N + v;
            const int n = int(min<int64_t>(V::size, N - u - v));
            store(at, (add ? load(at, n) : V{}) + load(edge + i * width + v), n);
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
      convert(sum_ih_, p_.mask_x.scale, p_.dweight_ih, begin * p_.I, end * p_.I);
      convert(sum_hh_, p_.mask_h.scale, p_.dweight_hh, begin * p_.H, end * p_.H);
    });
  }

  void write_bias(int slot, S* to) const {
    for (int64_t u = 0; to && u < p_.H; u += V::size) {
      V total{};
      for (int64_t part = 0; part < split_.batch; ++part)
        total = total + load(dbias(part, slot) + u);
      store(to + u, total, lanes(u));
    }
  }

  static void convert(const C* from, double scale, S* to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += V::size) {
      const int n = int(min<int64_t>(V::size, end - i));
      store(to + i, load(from + i, n) * broadcast(C(scale)), n);
    }
  }

  const Backward<S>& p_;
  const int threads_;
  const Split split_;
  const int64_t chunk_steps_;
  const int64_t pitch_;  // units of a row of carry, rounded up to whole vectors
  const V scale_x_ = broadcast(C(p_.mask_x.scale)), scale_h_ = broadcast(C(p_.mask_h.scale));
  Arena arena_;
  Panels<E> panels_hh_, panels_ih_;
  Keep<C> keep_x_, keep_h_;
  Rows<E> dz_;       // [slots][..][chunk rows][..] gradients of the gates, row = step * B + b
  Rows<E> dz_next_;  // [slots][..][B][..] the same of the step after this chunk
  C* carry_;         // [B][pitch] dc of the LSTM, the part of dh that skips the gates of the GRU
  C* dh_masked_;     // [B][pitch] what reaches m h_{t-1} through r, not scaled; reset_before only
  C* dbias_;         // [batch parts][slots][pitch]
  E *operand_x_, *operand_h_;  // masked operands of a chunk
  E* units_;                   // [threads] dz of a chunk for some units, which are rows here
  int64_t* taken_;             // see Piece
  C* sum_ih_;                  // [G*H, I] weight gradients in C
  C* sum_hh_;                  // [G*H, H]
};

}  // namespace brnn::BRNN_ISA
