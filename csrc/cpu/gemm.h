// gemm.h - the two matrix products of a masked layer, on operands packed for them.
//
// Weights lie in panels of up to 2 vectors of units, so that a microkernel streams one panel and
// broadcasts the rows of the other operand. Masks are applied while that operand is copied; the
// inner loops know nothing of them.
#pragma once

#include <utility>

#include "simd.h"

namespace brnn::BRNN_ISA {

template <class T>
BRNN_INLINE T min(T a, T b) {
  return b < a ? b : a;
}
BRNN_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
BRNN_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Columns of a row operand that lie together. The pitch is known to the compiler, so one register
// addresses all rows of a microkernel; it is a multiple of every vector size and row count here,
// and an odd number of cache lines, so that neighbouring rows do not share a cache set.
constexpr int kBlock = 240;

// Rows of length K, `sets` of them (one per gate or slot): [sets][K / kBlock][rows][kBlock].
template <class C>
struct Rows {
  C* data;
  int64_t rows, blocks;

  Rows() = default;
  Rows(C* data, int64_t rows, int64_t K)
      : data(data), rows(rows), blocks(divide_up(K, int64_t{kBlock})) {}
  static int64_t count(int64_t sets, int64_t rows, int64_t K) {
    return sets * divide_up(K, int64_t{kBlock}) * rows * kBlock;
  }
  int64_t block_stride() const { return rows * kBlock; }
  int64_t set_stride() const { return blocks * rows * kBlock; }
  C* at(int64_t set, int64_t row, int64_t k = 0) const {
    return data + ((set * blocks + k / kBlock) * rows + row) * kBlock + k % kBlock;
  }
};

// A matrix of K x N per gate in panels over N: [panel][gates][K][width], widths of 2 or 1 vectors.
template <class C>
struct Panels {
  static constexpr int kWide = 2 * Vec<C>::size;
  C* data;
  int64_t gates, K, N;

  static int64_t count(int64_t gates, int64_t K, int64_t N) {
    return gates * K * round_up(N, Vec<C>::size);
  }
  static int64_t panels(int64_t N) { return divide_up(N, int64_t{kWide}); }
  static int width(int64_t N, int64_t panel) {
    return N - panel * kWide > Vec<C>::size ? kWide : Vec<C>::size;
  }
  C* at(int64_t gate, int64_t panel) const {
    return data + gates * K * panel * kWide + gate * K * width(N, panel);
  }
};

// sums[r][0 .. NV vectors) = first[r][..] + sum over k of a[r][k] * b[k][..]. `first` may be
// nullptr (zero) or have a stride of 0 (one row for all: a bias).
template <class C, int MR, int NV>
void rows_by_panel(int64_t K, const C* a, int64_t block_stride, const C* b, const C* first,
                   int64_t first_stride, C* sums) {
  using V = Vec<C>;
  V sum[MR][NV];
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v)
      sum[r][v] = first ? load(first + r * first_stride + v * V::size) : V{};
  for (int64_t k0 = 0; k0 < K; k0 += kBlock, a += block_stride) {
    const C* row = a;
    for (const C* end = a + min<int64_t>(kBlock, K - k0); row != end; ++row, b += NV * V::size) {
      V w[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        w[v] = load(b + v * V::size);
        __builtin_prefetch(b + v * V::size + 512 / sizeof(C));
      }
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[r][v] = sum[r][v] + broadcast(row[r * kBlock]) * w[v];
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(sums + (r * NV + v) * V::size, sum[r][v]);
}

// c[r][..] (+)= sum over k of a[k][r] * b[k][..]: the weight gradients. a has the pitch of Rows.
template <class C, int MR, int NV>
void columns_by_panel(int64_t K, const C* a, const C* b, C* c, int64_t c_stride, bool add) {
  using V = Vec<C>;
  V sum[MR][NV];
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) sum[r][v] = add ? load(c + r * c_stride + v * V::size) : V{};
  for (int64_t k = 0; k < K; ++k, a += kBlock, b += NV * V::size) {
    V w[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) w[v] = load(b + v * V::size);
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sum[r][v] = sum[r][v] + broadcast(a[r]) * w[v];
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(c + r * c_stride + v * V::size, sum[r][v]);
}

template <class C>
using RowsByPanel = void (*)(int64_t, const C*, int64_t, const C*, const C*, int64_t, C*);
template <class C>
using ColumnsByPanel = void (*)(int64_t, const C*, const C*, C*, int64_t, bool);

template <class C>
struct Microkernels {
  RowsByPanel<C> rows[kRows][2];
  ColumnsByPanel<C> columns[kRows][2];
};

template <class C, int... R>
constexpr Microkernels<C> make_microkernels(std::integer_sequence<int, R...>) {
  return {{{rows_by_panel<C, R + 1, 1>, rows_by_panel<C, R + 1, 2>}...},
          {{columns_by_panel<C, R + 1, 1>, columns_by_panel<C, R + 1, 2>}...}};
}
template <class C>
constexpr Microkernels<C> kMicrokernels =
    make_microkernels<C>(std::make_integer_sequence<int, kRows>{});

// sums [rows][width] = first + a b, for up to kRows rows.
template <class C>
BRNN_INLINE void multiply_rows(int rows, int width, int64_t K, const C* a, int64_t block_stride,
                               const C* b, const C* first, int64_t first_stride, C* sums) {
  kMicrokernels<C>.rows[rows - 1][width / Vec<C>::size - 1](K, a, block_stride, b, first,
                                                            first_stride, sums);
}

// c [rows][width] (+)= a^T b, for up to kRows columns of a.
template <class C>
BRNN_INLINE void multiply_columns(int rows, int width, int64_t K, const C* a, const C* b, C* c,
                                  int64_t c_stride, bool add) {
  kMicrokernels<C>.columns[rows - 1][width / Vec<C>::size - 1](K, a, b, c, c_stride, add);
}

// Cuts n rows into blocks of at most kRows that differ by at most one.
struct RowBlocks {
  int64_t blocks, base, longer;

  explicit RowBlocks(int64_t n, int64_t most = kRows)
      : blocks(divide_up(n, most)), base(blocks ? n / blocks : 0), longer(n - base * blocks) {}
  int64_t begin(int64_t i) const { return i * base + min(i, longer); }
  int size(int64_t i) const { return int(base + (i < longer)); }
};

// One panel of weight [G*N, K] transposed for x -> W x: [gates][K][width], zeros past N.
template <class S, class C>
void pack_transposed(const S* weight, const Panels<C>& to, int64_t panel) {
  constexpr int size = Vec<C>::size;
  const int width = Panels<C>::width(to.N, panel);
  for (int64_t gate = 0; gate < to.gates; ++gate)
    for (int v = 0; v < width; v += size) {
      const int64_t n0 = panel * Panels<C>::kWide + v;
      C* d = to.at(gate, panel) + v;
      for (int64_t k0 = 0; k0 < to.K; k0 += size) {
        const int columns = int(min<int64_t>(size, to.K - k0));
        Vec<C> tile[size];
        for (int j = 0; j < size; ++j) {
          const S* row = weight + (gate * to.N + n0 + j) * to.K + k0;
          tile[j] = n0 + j < to.N ? load(row, columns) : Vec<C>{};
        }
        transpose(tile);
        for (int k = 0; k < columns; ++k) store(d + (k0 + k) * width, tile[k]);
      }
    }
}

// One panel of weight [G*K, N] as it lies, for dz -> W^T dz: [gates][K][width], zeros past N.
template <class S, class C>
void pack_plain(const S* weight, const Panels<C>& to, int64_t panel) {
  const int64_t n0 = panel * Panels<C>::kWide;
  const int width = Panels<C>::width(to.N, panel), size = Vec<C>::size;
  for (int64_t gate = 0; gate < to.gates; ++gate)
    for (int64_t k = 0; k < to.K; ++k)
      for (int v = 0; v < width; v += size) {
        const int n = int(min<int64_t>(size, to.N - n0 - v));
        const S* from = weight + (gate * to.K + k) * to.N + n0 + v;
        store(to.at(gate, panel) + k * width + v, n > 0 ? load(from, n) : Vec<C>{});
      }
}

// The n lanes of m_k s v at column k of sequence b; keeps everything where there is no mask.
template <class C>
BRNN_INLINE Vec<C> masked(const Mask& mask, int64_t K, int64_t gate, int64_t b, int64_t k, int n,
                          Vec<C> v) {
  v = v * broadcast(C(mask.scale));
  if (!mask.keep) return v;
  return select(mask.keep + gate * mask.gate_stride + b * K + k, n, v);
}

// Copies one row of K columns into Rows, masked for each set (gate, or one set for all).
template <class S, class C>
void pack_row(const S* from, int64_t K, const Mask& mask, int64_t b, const Rows<C>& to, int sets,
              int64_t row) {
  for (int64_t k = 0; k < K; k += Vec<C>::size) {
    const int n = int(min<int64_t>(Vec<C>::size, K - k));
    const Vec<C> v = load(from + k, n);
    C* d = to.at(0, row, k);
    for (int set = 0; set < sets; ++set, d += to.set_stride())
      store(d, masked(mask, K, set, b, k, n, v));
  }
}

}  // namespace brnn::BRNN_ISA
