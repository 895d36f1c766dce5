// weight_gradients.h is the third phase of a chunk backward: it multiplies dz, turned so that units
// are rows, by the masked operands x and h_{t-1}, and adds that up over the chunks. Gradients of
// the biases are summed while dz is turned.
//
// The operands are packed first, by all threads, since every unit needs all of them. Then the units
// of each gate are split over threads, and no sum has two writers. Where tensors are stored as sums
// are made, the sums are made in place; else they are converted once, after the last chunk.
#pragma once

#include "shared.h"

namespace brnn::BRNN_ISA {

constexpr int64_t kSomeRows = 16;    // of the operands of weight gradients, packed at once
constexpr int64_t kMostUnits = 240;  // units of a gate whose weight gradients are made at once

// Makes to [own][rows] = from [rows][own] of one set: units become rows. What the rows of each unit
// add up to goes to total [own.begin ..), or is added to it.
template <class E>
void turn(const Rows<E>& from, int64_t set, int64_t rows, const Share& own, const Rows<E>& to,
          typename Element<E>::Sum* total, bool add) {
  using C = typename Element<E>::Sum;
  using V = Vec<C>;
  constexpr int group = Element<E>::group;
  for (int64_t u = own.begin / V::size * V::size; u < own.end; u += V::size) {
    V sum[2] = {};  // of tiles' even and odd words
    for (int64_t k = 0; k < Panels<E>::padded(rows); k += V::size * group) {
      V tile[V::size];
      for (int j = 0; j < V::size; ++j)
        tile[j] = words_of<E>([&](int i) {
          const int64_t d = k + j * group + i;
          const auto lanes =
              d < rows ? load_lanes<E>(from.at(set, d, u), V::size) : typename Element<E>::Lanes{};
          sum[j % 2] = sum[j % 2] + to_sum(lanes);
          return lanes;
        });
      transpose(tile);
      for (int j = 0; j < V::size; ++j)
        if (own.begin <= u + j && u + j < own.end)
          store(reinterpret_cast<C*>(to.at(0, u + j - own.begin, k)), tile[j]);
    }
    const V both = sum[0] + sum[1];
    for (int j = 0; j < V::size; ++j)
      if (own.begin <= u + j && u + j < own.end)
        total[u + j] = (add ? total[u + j] : 0) + both.v[j];
  }
}

template <class S, class E>
class WeightGradients {
  using C = typename Element<E>::Sum;
  using V = Vec<C>;
  using Lanes = typename Element<E>::Lanes;
  static constexpr int kTile = Panels<E>::kTile;
  static constexpr bool kSame = std::is_same_v<S, C>;  // sums are made in place

 public:
  WeightGradients(const BackwardShared<S, E>& shared, int threads, Arena& arena)
      : p_(shared.layer),
        cell_(shared.cell),
        threads_(threads),
        chunk_(shared.chunk),
        dz_(shared.dz),
        x_{shared.keep_x, shared.keep_x.sets, p_.I},
        h_{shared.keep_h, cell_.reset_before ? cell_.gates : shared.keep_h.sets, p_.H} {
    const int64_t xs = x_.count(chunk_ * p_.B), hs = h_.count(chunk_ * p_.B);
    const int64_t weights = shared.count_hh() + shared.count_ih();
    x_.packed =
        chunk_ == p_.T && xs + hs <= weights ? shared.panels_hh.data : arena.take<E>(xs + hs);
    h_.packed = x_.packed ? x_.packed + xs : nullptr;  // while the arena counts
    units_ = arena.take<E>(threads_ * units_count());
    dbias_ = arena.take<C>(cell_.slots * p_.H);
    x_.sum = kSame ? reinterpret_cast<C*>(p_.dweight_ih) : arena.take<C>(columns() * p_.I);
    h_.sum = kSame ? reinterpret_cast<C*>(p_.dweight_hh) : arena.take<C>(columns() * p_.H);
  }

  // Packs m_k x_t and m_k h_{t-1} of one chunk, some rows at a time.
  void pack(const Piece& piece, int64_t begin, int64_t rows) const {
    Laps laps;
    piece.each(divide_up(Panels<E>::padded(rows), kSomeRows), [&](int64_t item) {
      pack_operand<false>(x_, false, begin, rows, item * kSomeRows);
      if (cell_.reset_before)
        pack_operand<true>(h_, true, begin, rows, item * kSomeRows);
      else
        pack_operand<false>(h_, true, begin, rows, item * kSomeRows);
    });
    laps.end(Phase::pack_operands);
  }

  // Adds the products of one chunk, whose operands are packed, and its dz to the sums.
  void sum(const Piece& piece, int64_t rows, bool first_chunk) const {
    const Product<E> product;
    const Rows<E> units(units_ + piece.index * units_count(), unit_step(), rows);
    const Blocks steps(p_.H, unit_step(), Product<E>::even, piece.fair(cell_.gates),
                       Product<E>::rows(1));
    piece.each(cell_.gates * steps.count, [&](int64_t item) {
      const int gate = int(item / steps.count);
      const int64_t first = steps.begin(item % steps.count);
      const Share own = {first, first + steps.size(item % steps.count)};
      const int slot_a = cell_.slot_of_a[gate], slot_q = cell_.slot_of_q[gate];
      Laps laps;
      turn(dz_, slot_a, rows, own, units, dbias_ + slot_a * p_.H, !first_chunk);
      laps.end(Phase::turn);
      add_products(product, gate, own, units, rows, x_, !first_chunk);
      laps.end(Phase::weight_products);
      if (slot_q != slot_a)
        turn(dz_, slot_q, rows, own, units, dbias_ + slot_q * p_.H, !first_chunk);
      laps.end(Phase::turn);
      add_products(product, gate, own, units, rows, h_, !first_chunk);
      laps.end(Phase::weight_products);
    });
  }

  // Writes the sums in the storage type.
  void write(const Host& host) const {
    for (int gate = 0; gate < cell_.gates; ++gate) {
      const auto write_bias = [&](int slot, S* to) {
        if (to) convert(dbias_ + slot * p_.H, 1, to + gate * p_.H, 0, p_.H);
      };
      write_bias(cell_.slot_of_a[gate], p_.dbias_ih);
      write_bias(cell_.slot_of_q[gate], p_.dbias_hh);
    }
    if (kSame) return;
    parallel_ranges(host, columns(), [&](int64_t begin, int64_t end) {
      Laps laps;
      convert(x_.sum, p_.mask_x.scale, p_.dweight_ih, begin * p_.I, end * p_.I);
      convert(h_.sum, p_.mask_h.scale, p_.dweight_hh, begin * p_.H, end * p_.H);
      laps.end(Phase::convert);
    });
  }

 private:
  // This is what dz is multiplied with, and where the sums go.
  struct Operand {
    MaskBits<C> keep;
    int sets;  // a packed operand per gate, or one for all
    int64_t N;
    E* packed = nullptr;  // of a chunk
    C* sum = nullptr;     // [G*H, N] weight gradients in C

    int64_t count(int64_t rows) const { return Panels<E>::count(sets, rows, N); }
    Panels<E> panels(int64_t rows) const {
      return {packed, sets, rows, N, Product<E>::vectors, {kWideBlock<E>, false}, true};
    }
  };

  // Rows from `first` on of what each gate sees; scaled where the sums are made in place. Rows past
  // a sequence's length are zero, whatever stands there: dz is zero too, but 0 * NaN is not. So is
  // h_{t-1} where there is a reset. ByReset: the candidate sees r * m h_{t-1}.
  template <bool ByReset>
  void pack_operand(const Operand& operand, bool recurrent, int64_t begin, int64_t rows,
                    int64_t first) const {
    constexpr int group = Element<E>::group;
    const int candidate = cell_.candidate;
    const Panels<E> to = operand.panels(rows);
    const MaskBits<C>& keep = operand.keep;
    const V scale = broadcast(C(kSame ? keep.mask.scale : 1));
    const int64_t last = min(first + kSomeRows, Panels<E>::padded(to.K));
    struct Source {
      const S *from, *r;
      const uint16_t* keep;
    } sources[kSomeRows];
    for (int64_t d = first; d < last; ++d) {
      const int64_t s = begin + d / p_.B, b = d % p_.B, t = p_.time(s);
      const bool inside = d < to.K && p_.inside(b, t);
      const bool zero = !inside || (recurrent && p_.resets_at(b, t));
      sources[d - first] = {zero        ? nullptr
                            : recurrent ? row_before(p_, p_.h0, p_.y, s, b)
                                        : row_at(p_, p_.x, t, b, p_.I),
                            inside ? row_at(p_, p_.gates, t, b, columns()) : nullptr,
                            keep.at(b, 0, 0)};
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
              if (ByReset && set == candidate && source[i].from)
                return to_lanes<E>(to_sum(kept) * scale * load(source[i].r + u, n));
              if constexpr (kSame) return to_lanes<E>(to_sum(kept) * scale);
              return kept;
            });
            store(reinterpret_cast<C*>(to.at(set, panel) + d * to.width(panel) + v * group), words);
          }
        }
  }

  int64_t columns() const { return cell_.gates * p_.H; }
  // Says how many units of a gate a thread takes at once: each thread gets some such pieces, if the
  // gate has as many.
  int64_t unit_step() const {
    const int64_t fair = divide_up(columns(), 4 * int64_t{threads_});
    return min(kMostUnits,
               round_up(fair < kTileRows<E> ? kTileRows<E> : fair, Product<E>::rows(1)));
  }
  int64_t units_count() const { return Rows<E>::count(1, unit_step(), chunk_ * p_.B); }

  // Makes some units of one gate of sum [G*H, N]. A panel of the operand stays in cache while the
  // units pass by.
  void add_products(const Product<E>& product, int gate, const Share& own, const Rows<E>& units,
                    int64_t rows, const Operand& of, bool add) const {
    const Panels<E> operand = of.panels(rows);
    const int64_t N = operand.N;
    const int set = of.sets > 1 ? gate : 0;
    const Blocks tiles(own.size(), operand.tile_rows(), Product<E>::even);
    alignas(64) C edge[kTile];
    for (int64_t panel = 0; panel < operand.panels(); ++panel) {
      const int64_t u = operand.begin(panel);
      const int width = operand.width(panel);
      C* const to = of.sum + (gate * p_.H + own.begin) * N + u;
      if (u + width <= N) {
        multiply_rows(product, own.size(), units, 0, 0, operand, set, panel, {to, N, add});
        continue;
      }
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        const int64_t j = tiles.begin(tile);
        multiply_rows(product, tiles.size(tile), units, 0, j, operand, set, panel,
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

  static void convert(const C* from, double scale, S* to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += V::size) {
      const int n = int(min<int64_t>(V::size, end - i));
      store(to + i, load(from + i, n) * broadcast(C(scale)), n);
    }
  }

  const Backward<S>& p_;
  const CellTraits& cell_;
  const int threads_;
  const int64_t chunk_;  // steps
  Rows<E> dz_;
  Operand x_, h_;
  E* units_;  // [threads] dz of a chunk for some units, which are rows here
  C* dbias_;  // [slots][H]
};

}  // namespace brnn::BRNN_ISA
