// microkernel.h - a few rows of one operand times one panel of the other: where the time goes.
//
// Product<E> multiplies elements E (operands.h says how they lie). One kernel serves every vector
// instruction set: it holds `rows` x 2 vectors of sums in registers, streams the panel and
// broadcasts the rows. amx.h has the one for matrix registers.
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

// Elements of a row that lie together. The pitch is known to the compiler, so one register
// addresses all rows of a microkernel; it is a multiple of every vector's size, and an odd number
// of cache lines, so that neighbouring rows do not share a cache set.
template <class E>
constexpr int kBlock = 960 / sizeof(E);

// sum + a b, for lanes of words.
template <class C>
BRNN_INLINE Vec<C> add_product(Vec<C> sum, const C* a, const C* b) {
  return sum + broadcast(*a) * load(b);
}
#if defined(__AVX512BF16__)
BRNN_INLINE Vec<float> add_product(Vec<float> sum, const bfloat16* a, const bfloat16* b) {
  typedef int32_t Word __attribute__((may_alias, aligned(2)));
  const __m512i word = _mm512_set1_epi32(*reinterpret_cast<const Word*>(a));
  return {(Vec<float>::Native)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)word,
                                               (__m512bh)_mm512_loadu_si512(b))};
}
#endif

// row + stride, out of the compiler's sight: it would compute all rows' addresses beforehand, more
// of them than there are registers.
template <class C>
BRNN_INLINE C* next_row(C* row, int64_t stride) {
  row += stride;
  asm("" : "+r"(row));
  return row;
}

// What a product asks for while it computes, a pair of cache lines at one or two steps: its share
// of the panel's next block. (Who asks for one line of a pair gets the other.)
struct Ahead {
  const char* pair;
  int64_t stride;  // bytes; 0: nothing more is wanted

  BRNN_INLINE void ask() {
    __builtin_prefetch(pair, 0, 2);
    pair += stride;
  }
};

// c[r][0 .. NV vectors) = (add ? c : 0) + sum over k of a[r][k] b[k][..], in registers; K within
// one block of a.
template <class E, int MR, int NV>
void microkernel(int64_t K, const E* a, const E* b, Ahead ahead, bool add,
                 typename Element<E>::Sum* c, int64_t c_stride) {
  using V = Vec<typename Element<E>::Sum>;
  constexpr int group = Element<E>::group;
  // Few rows are summed in several registers each, or every addition would wait for the last.
  constexpr int sums = MR * NV >= 8 ? 1 : MR * NV > 2 ? 2 : 4;
  const V nothing = broadcast(typename Element<E>::Sum(-0.0));  // -0 + -0 is -0, 0 + -0 is not
  V sum[sums][MR][NV];
#pragma GCC unroll 48
  for (int i = 0; i < sums * MR * NV; ++i) sum[i / (MR * NV)][i / NV % MR][i % NV] = nothing;
  if (add) {
    auto row = c;
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r, row = next_row(row, c_stride))
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[0][r][v] = load(row + v * V::size);
  }
  const auto step = [&](V(&sum)[MR][NV]) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        sum[r][v] = add_product(sum[r][v], a + r * kBlock<E>, b + v * V::size * group);
    a += group, b += NV * V::size * group;
  };
  const E* const end = a + K;
  while (a + 3 * group < end) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (NV > 2 || i % 2 == 0) ahead.ask();
      step(sum[i % sums]);
    }
  }
  while (a < end) step(sum[0]);
  auto row = c;
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r, row = next_row(row, c_stride))
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
#pragma GCC unroll 4
      for (int i = 1; i < sums; ++i) sum[0][r][v] = sum[0][r][v] + sum[i][r][v];
      store(row + v * V::size, sum[0][r][v]);
    }
}

// How elements E are multiplied. An object of it is what a thread needs while it does so.
template <class E>
class Product {
  using C = typename Element<E>::Sum;

 public:
#if defined(__AVX512F__) || defined(__aarch64__)
  // 32 registers: 12 x 2 sums, 8 x 3 or 6 x 4. The wider, the fewer loads for as many sums; the
  // higher, the fewer reads of the panel.
  static constexpr int vectors = 4, sums = 24;
#else
  static constexpr int vectors = 2, sums = 12;  // 6 x 2 sums + 2 operands + 1 broadcast of 16
#endif
  static constexpr int depth = Element<E>::group;  // K is padded with zeros to a multiple of it
  static constexpr bool even = true;               // blocks of rows need not be whole
  static constexpr int rows(int vectors) { return sums / (vectors < 2 ? 2 : vectors); }

  // c [count][width] = (add ? c : 0) + a b; width is of 1 to `vectors` vectors, count at most their
  // rows(), K at most kBlock.
  BRNN_INLINE void operator()(int count, int width, int64_t K, const E* a, const E* b, Ahead ahead,
                              bool add, C* c, int64_t c_stride) const {
    kTable[width / Vec<C>::size - 1][count - 1](K, a, b, ahead, add, c, c_stride);
  }

 private:
  using Kernel = void (*)(int64_t, const E*, const E*, Ahead, bool, C*, int64_t);
  struct Table {
    Kernel of[vectors][rows(1)];
    constexpr const Kernel* operator[](int i) const { return of[i]; }
  };
  template <int NV, int... R>
  static constexpr void fill(Table& table, std::integer_sequence<int, R...>) {
    ((table.of[NV - 1][R] = microkernel<E, R + 1, NV>), ...);
  }
  template <int... V>
  static constexpr Table table(std::integer_sequence<int, V...>) {
    Table table{};
    (fill<V + 1>(table, std::make_integer_sequence<int, rows(V + 1)>{}), ...);
    return table;
  }
  static constexpr Table kTable = table(std::make_integer_sequence<int, vectors>{});
};

// A contiguous range; share_of gives one of `parts` of n.
struct Share {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
inline Share share_of(int64_t n, int64_t part, int64_t parts) {
  return {n * part / parts, n * (part + 1) / parts};
}

// Cuts n rows into blocks of at most `most`: as equal as can be, or whole ones and a rest.
struct Blocks {
  int64_t count, base, longer, n;

  Blocks(int64_t n, int64_t most, bool even)
      : count(divide_up(n, most)),
        base(count && even ? n / count : most),
        longer(even ? n - base * count : 0),
        n(n) {}
  int64_t begin(int64_t i) const { return i * base + min(i, longer); }
  int size(int64_t i) const { return int(min(base + (i < longer), n - begin(i))); }
};

}  // namespace brnn::BRNN_ISA

#if defined(__AMX_BF16__)
#include "amx.h"
#endif
