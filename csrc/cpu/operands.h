// operands.h says how the two operands of a product lie, and copies them into that form.
//
// Weights lie in panels of a few vectors of units, so that a microkernel streams one panel and
// broadcasts the rows of the other operand. Masks are applied while that operand is copied, their
// scale to the sums: the inner loops know nothing of either.
#pragma once

#include "../arena.h"
#include "microkernel.h"

namespace brnn::BRNN_ISA {

using Arena = brnn::Arena<64>;  // a cache line, the widest vector

// Rows have length K and lie in sets (one per gate or slot): [sets][K / kBlock][rows][kBlock].
template <class E>
struct Rows {
  E* data;
  int64_t rows, blocks;

  Rows() = default;
  Rows(E* data, int64_t rows, int64_t K)
      : data(data), rows(rows), blocks(divide_up(K, int64_t{kBlock<E>})) {}
  static int64_t count(int64_t sets, int64_t rows, int64_t K) {
    const int64_t room = Product<E>::even ? 0 : Product<E>::rows(1);  // see amx.h
    return (sets * divide_up(K, int64_t{kBlock<E>}) * rows + room) * kBlock<E>;
  }
  int64_t set_stride() const { return blocks * rows * kBlock<E>; }
  E* at(int64_t set, int64_t row, int64_t k = 0) const {
    return data + ((set * blocks + k / kBlock<E>)*rows + row) * kBlock<E> + k % kBlock<E>;
  }
  Rows from_set(int64_t first) const {
    Rows rest = *this;
    rest.data = at(first, 0);
    return rest;
  }
  // Writes zeros from the last vector of K columns to what a product reads of them.
  void clear_tail(int sets, int64_t row, int64_t K) const {
    constexpr int size = Vec<typename Element<E>::Sum>::size;
    for (int64_t k = round_up(K, size); k < round_up(K, Product<E>::depth); k += size)
      for (int set = 0; set < sets; ++set) store(at(set, row, k), typename Element<E>::Lanes{});
  }
};

// So many rows are multiplied with one panel of 2 vectors before the next: enough to use it several
// times, few enough for their sums to stay in the first-level cache.
template <class E>
constexpr int kTileRows = Product<E>::even ? 48 : 64;

// In what order a sum has its products. The sizes of a layer decide it, never how threads share
// the layer: results do not depend on how many there are.
struct Order {
  int64_t most;  // of K at once, see piece_of
  bool few;      // two chains, see kFewRows
};

// So many bytes of weights stay in a core's own cache: half of it.
constexpr int64_t kNear = 1 << 20;

// Blocks of K of a wide panel: 144 floats of four vectors are three quarters of a first-level
// cache.
template <class E>
constexpr int64_t kWideBlock = Product<E>::vectors > 2 ? kBlock<E> * 3 / 5 : kBlock<E>;

// The order for weights of which `bytes` are streamed for some rows, whose sums may be masked piece
// by piece of K. It goes by the bytes alone: what streams from beyond the core's own cache has
// narrow panels, or few rows, which read a panel once.
template <class E>
Order order_of(int64_t bytes, int64_t rows) {
  return {bytes <= kNear ? kWideBlock<E> : kBlock<E>, rows <= kFewRows};
}

// Panels hold a matrix of K x N per gate, cut over N: [panel][gates][K][width], with widths of 1 to
// `vectors` vectors and words of K together.
template <class E>
struct Panels {
  static constexpr int kVector = Vec<typename Element<E>::Sum>::size;
  static constexpr int kTile = kTileRows<E> * 2 * kVector;  // sums of a tile
  E* data;
  int64_t gates, K, N;
  int vectors;
  Order order;
  bool by_gate = false;  // [gates][panel][K][width] instead

  static int64_t padded(int64_t K) { return round_up(K, Product<E>::depth); }
  static int64_t count(int64_t gates, int64_t K, int64_t N) {
    return gates * padded(K) * round_up(N, kVector);
  }
  int64_t panels() const { return divide_up(N, int64_t{vectors * kVector}); }
  int64_t begin(int64_t panel) const { return panel * vectors * kVector; }
  int width(int64_t panel) const {
    return int(min<int64_t>(vectors * kVector, round_up(N - begin(panel), kVector)));
  }
  // Gives the rows of a tile that is one panel wide.
  int tile_rows() const { return kTile / (vectors * kVector); }
  E* at(int64_t gate, int64_t panel) const {
    const int64_t columns = by_gate ? gate * round_up(N, kVector) + begin(panel)
                                    : gates * begin(panel) + gate * width(panel);
    return data + padded(K) * columns;
  }
};

// Chooses the vectors of a panel of weights of which `bytes` are streamed for some rows: wide
// panels take fewer instructions, narrow ones are read less often, if the rows are more than a
// microkernel's.
template <class E>
int panel_vectors(int64_t bytes, int64_t rows) {
  constexpr int wide = Product<E>::vectors;
  return bytes <= kNear || rows <= Product<E>::rows(wide) ? wide : 2;
}

// Says how many columns of Rows, of K, to multiply at once from k on: a whole block of them, or the
// equal parts of it that are at most `most`. (A piece of 8 would cost as much as one of 24.)
template <class E>
BRNN_INLINE int64_t piece_of(int64_t K, int64_t k, int64_t most) {
  const int64_t block = k / kBlock<E> * kBlock<E>, length = min<int64_t>(kBlock<E>, K - block);
  const int64_t equal = divide_up(length, divide_up(length, most));
  return min(round_up(equal, 4 * Element<E>::group), block + length - k);
}

// Makes the sums of a b, [count][width], for `count` rows of one set of a from `row` on. K goes in
// blocks, so that the block of the panel stays in the first-level cache while the rows pass by. Its
// next block comes meanwhile, half of it with each of the first two blocks of rows: what streams
// from beyond the core's own cache must be asked for long before, and evenly. (If rows are few the
// processor sees a stream itself.)
template <class E>
BRNN_INLINE void multiply_rows(const Product<E>& product, int64_t count, const Rows<E>& a,
                               int64_t set, int64_t row, const Panels<E>& b, int64_t gate,
                               int64_t panel, Sums<typename Element<E>::Sum> to) {
  constexpr int vector = Vec<typename Element<E>::Sum>::size;
  const int width = b.width(panel);
  const Blocks blocks(count, Product<E>::rows(width / vector), Product<E>::even);
  for (int64_t k = 0; k < b.K; to.add = true) {
    // The blocks of a single row follow each other, so that it can be one piece.
    const bool whole = a.rows == 1 && b.order.most >= b.K;
    const int64_t depth = whole ? b.K : piece_of<E>(b.K, k, b.order.most);
    const E* const piece = b.at(gate, panel) + k * width;
    const char* const next = reinterpret_cast<const char*>(piece + depth * width);
    const int64_t half = depth * width * sizeof(E) / 2;
    for (int64_t i = 0; i < blocks.count; ++i)
      product(blocks.size(i), width, depth, a.at(set, row + blocks.begin(i), k), piece,
              Ahead{next + i % 2 * half, i < 2 && blocks.count > 1 ? 128 : 0},
              to.from_row(blocks.begin(i)), b.order.few);
    k += depth;
  }
}

// Packs one panel of weight [G*N, K], transposed for x -> W x: [gates][K][width], with zeros past N
// and K.
template <class S, class E>
void pack_transposed(const S* weight, const Panels<E>& to, int64_t panel) {
  using V = Vec<typename Element<E>::Sum>;
  constexpr int group = Element<E>::group, columns = V::size * group;
  const int width = to.width(panel);
  const int64_t K = Panels<E>::padded(to.K);
  for (int64_t gate = 0; gate < to.gates; ++gate)
    for (int v = 0; v < width; v += V::size) {
      const int64_t n0 = to.begin(panel) + v;
      E* d = to.at(gate, panel) + v * group;
      for (int64_t k0 = 0; k0 < K; k0 += columns) {
        V tile[V::size];
        for (int j = 0; j < V::size; ++j) {
          const S* row = weight + (gate * to.N + n0 + j) * to.K + k0;
          __builtin_prefetch(row + 4 * columns);
          tile[j] = n0 + j < to.N ? load_words<E>(row, int(min<int64_t>(columns, to.K - k0))) : V{};
        }
        transpose(tile);
        const int words = int(min<int64_t>(columns, K - k0)) / group;
        for (int k = 0; k < words; ++k)
          store(reinterpret_cast<typename Element<E>::Sum*>(d + (k0 + k * group) * width), tile[k]);
      }
    }
}

// Stores words of `width` lanes at `panel` from rows k .. of a matrix: lanes(k, v) gives those of
// row k.
template <class E, class LanesOf>
BRNN_INLINE void store_words(E* panel, int64_t k, int width, const LanesOf& lanes) {
  constexpr int group = Element<E>::group, size = Panels<E>::kVector;
  for (int v = 0; v < width; v += size)
    store(reinterpret_cast<typename Element<E>::Sum*>(panel + k * width + v * group),
          words_of<E>([&](int i) { return lanes(k + i, v); }));
}

// Packs one panel of weight [G*K, N] as it lies, for dz -> W^T dz: [gates][K][width], with zeros
// past N and K.
template <class S, class E>
void pack_plain(const S* weight, const Panels<E>& to, int64_t panel) {
  using Lanes = typename Element<E>::Lanes;
  const int64_t n0 = to.begin(panel);
  const int width = to.width(panel);
  for (int64_t gate = 0; gate < to.gates; ++gate)
    for (int64_t k = 0; k < Panels<E>::padded(to.K); k += Element<E>::group)
      store_words(to.at(gate, panel), k, width, [&](int64_t row, int v) {
        const int n = int(min<int64_t>(Panels<E>::kVector, to.N - n0 - v));
        const S* from = weight + (gate * to.K + row) * to.N + n0 + v;
        __builtin_prefetch(from + 16 * to.N);
        return row < to.K ? load_lanes<E>(from, n) : Lanes{};
      });
}

// MaskBits is a mask as the loops over time read it: a bit a place, ones where nothing is dropped,
// zeros past K, a word for each vector. It has one set of them per gate, or one for all gates.
template <class C>
struct MaskBits {
  static constexpr int kSize = Vec<C>::size;
  Mask mask;
  int64_t K, vectors;
  int sets;
  uint16_t* bits;  // [B][sets][vectors]

  MaskBits() = default;
  MaskBits(Arena& arena, const Mask& mask, int gates, int64_t B, int64_t K)
      : mask(mask),
        K(K),
        vectors(divide_up(K, int64_t{kSize})),
        sets(mask.untied() ? gates : 1),
        bits(arena.take<uint16_t>(B * vectors * sets)) {}
  const uint16_t* at(int64_t b, int set, int64_t k) const {
    return bits + (b * sets + set) * vectors + k / kSize;
  }
  int set_of(int gate) const { return sets > 1 ? gate : 0; }

  // Gives m_gate v for the columns from k on of sequence b, without the mask's scale.
  template <class Lanes>
  BRNN_INLINE Lanes operator()(int gate, int64_t b, int64_t k, Lanes v) const {
    return select(*at(b, set_of(gate), k), v);
  }

  void pack(const Share& sequences) const {
    uint16_t* to = bits + sequences.begin * sets * vectors;
    for (int64_t b = sequences.begin; b < sequences.end; ++b)
      for (int set = 0; set < sets; ++set)
        for (int64_t k = 0; k < K; k += kSize) {
          const int n = int(min<int64_t>(kSize, K - k));
          *to++ = mask.keep ? bits_of<C>(mask.keep + set * mask.gate_stride + b * K + k, n)
                            : uint16_t((1u << n) - 1);
        }
  }
};

// Copies one row of K columns of sequence b into Rows, masked for each set.
template <class S, class E>
void pack_row(const S* from, int64_t K, const MaskBits<typename Element<E>::Sum>& keep, int64_t b,
              const Rows<E>& to, int64_t row) {
  constexpr int size = Vec<typename Element<E>::Sum>::size;
  const uint16_t* bits = keep.at(b, 0, 0);
  for (int64_t k = 0; k < K; k += size, ++bits) {
    const auto lanes = load_lanes<E>(from + k, int(min<int64_t>(size, K - k)));
    E* d = to.at(0, row, k);
    for (int set = 0; set < keep.sets; ++set, d += to.set_stride())
      store(d, select(bits[set * keep.vectors], lanes));
  }
  to.clear_tail(keep.sets, row, K);
}

}  // namespace brnn::BRNN_ISA
