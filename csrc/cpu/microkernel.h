// microkernel.h multiplies a few rows of one operand by one panel of the other. This is where the
// time goes.
//
// Product<E> multiplies elements E (operands.h says how they lie). One kernel serves every vector
// instruction set: it holds `rows` x 2 vectors of sums in registers, or fewer rows of wider ones,
// streams the panel and broadcasts the rows. amx.h has the one for matrix registers.
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

// So many elements of a row lie together. The pitch is known to the compiler, so one register
// addresses all rows of a microkernel; it is a multiple of every vector's size, and an odd number
// of cache lines, so that neighbouring rows do not share a cache set.
template <class E>
constexpr int kBlock = 960 / sizeof(E);

// Adds a b to sum, for lanes of words; a is broadcast, to a register or within the instruction.
enum class Broadcast { to_register, within };
template <Broadcast how, class C>
BRNN_INLINE void add_product(Vec<C>& sum, const C* a, Vec<C> b) {
#if defined(__AVX512F__) && !defined(__clang__)
  // This is written out so that a sum stays in its register: GCC's choice of it cost a move in
  // four.
  if constexpr (how == Broadcast::to_register) {
    const Vec<C> each = broadcast(*a);
    if constexpr (sizeof(C) == 4)
      asm("vfmadd231ps %2, %1, %0" : "+v"(sum.v) : "v"(b.v), "v"(each.v));
    else
      asm("vfmadd231pd %2, %1, %0" : "+v"(sum.v) : "v"(b.v), "v"(each.v));
  } else {
    if constexpr (sizeof(C) == 4)
      asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(b.v), "m"(*a));
    else
      asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(sum.v) : "v"(b.v), "m"(*a));
  }
#elif defined(BRNN_NEON)
  // So here; a is loaded as one number, which all products of its row take by element.
  if constexpr (sizeof(C) == 4)
    asm("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(sum.v) : "w"(b.v), "w"(*a));
  else
    asm("fmla %0.2d, %1.2d, %2.d[0]" : "+w"(sum.v) : "w"(b.v), "w"(*a));
#else
  sum = sum + broadcast(*a) * b;
#endif
}
#if defined(__AVX512BF16__)
template <Broadcast>
BRNN_INLINE void add_product(Vec<float>& sum, const bfloat16* a, Vec<float> b) {
  typedef int32_t Word __attribute__((may_alias, aligned(2)));
  const __m512i word = _mm512_set1_epi32(*reinterpret_cast<const Word*>(a));
  sum.v = (Vec<float>::Native)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)word, (__m512bh)b.v);
}
#endif

// Adds stride to row out of the compiler's sight, which would compute all rows' addresses
// beforehand, more of them than there are registers.
template <class C>
BRNN_INLINE C* next_row(C* row, int64_t stride) {
  row += stride;
  asm("" : "+r"(row));
  return row;
}

// A product asks for this while it computes, a pair of cache lines at one or two steps: it is its
// share of the panel's next block. (Who asks for one line of a pair gets the other.)
struct Ahead {
  const char* pair;
  int64_t stride;  // bytes; 0: nothing more is wanted

  BRNN_INLINE void ask() {
    __builtin_prefetch(pair, 0, 2);
    pair += stride;
  }
};

// Says where the sums of some rows go: c [rows][width] = (add ? c : 0) + sums. With masks, c += m
// sums; row r's are at bits[r] + offset, a word of bits for each vector.
template <class C>
struct Sums {
  C* c;
  int64_t stride;
  bool add;
  const uint16_t* const* bits = nullptr;
  int64_t offset = 0;

  BRNN_INLINE Sums from_row(int64_t row) const {
    return {c + row * stride, stride, add, bits ? bits + row : nullptr, offset};
  }
};

template <class C, int MR, int NV>
BRNN_INLINE void load_sums(Vec<C> (&sum)[MR][NV], const Sums<C>& from) {
  C* row = from.c;
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r, row = next_row(row, from.stride))
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = load(row + v * Vec<C>::size);
}

template <class C, int MR, int NV>
BRNN_INLINE void store_sums(const Vec<C> (&sum)[MR][NV], const Sums<C>& to) {
  constexpr int size = Vec<C>::size;
  C* row = to.c;
  if (to.bits) {
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r, row = next_row(row, to.stride)) {
      const uint16_t* const bits = to.bits[r] + to.offset;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        store(row + v * size, load(row + v * size) + select(bits[v], sum[r][v]));
    }
  } else {
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r, row = next_row(row, to.stride))
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(row + v * size, sum[r][v]);
  }
}

// Sums a[r][k] b[k][0 .. NV vectors) over k for each r, in registers. K lies within one block of a,
// or MR is 1.
// With `chains` 1 a sum has its products one after the other, whatever MR and NV are.
template <class E, int MR, int NV, int chains>
void microkernel(int64_t K, const E* a, const E* b, Ahead ahead,
                 const Sums<typename Element<E>::Sum>& to) {
  using V = Vec<typename Element<E>::Sum>;
  constexpr int group = Element<E>::group;
  const V nothing = broadcast(typename Element<E>::Sum(-0.0));  // -0 + -0 is -0, 0 + -0 is not
  V sum[chains][MR][NV];
#pragma GCC unroll 48
  for (int i = 0; i < chains * MR * NV; ++i) sum[i / (MR * NV)][i / NV % MR][i % NV] = nothing;
  if (to.add && !to.bits) load_sums(sum[0], to);
  // Where sums are two vectors wide, five rows in eight are broadcast within the products. That
  // saves an instruction and costs a load, since each product loads the number again: 12 rows are
  // then 21 loads and 24 products, about the two and two that a cycle can do.
  constexpr int embedded = NV == 2 && MR > 2 ? MR * 5 / 8 : 0;
  const auto step = [&](V(&sum)[MR][NV]) __attribute__((always_inline)) {
    V panel[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      panel[v] = load(reinterpret_cast<const typename Element<E>::Sum*>(b + v * V::size * group));
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
      const E* const row = a + r * kBlock<E>;
      const bool within = (r + 1) * embedded / MR > r * embedded / MR;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        if (within)
          add_product<Broadcast::within>(sum[r][v], row, panel[v]);
        else
          add_product<Broadcast::to_register>(sum[r][v], row, panel[v]);
    }
    a += group, b += NV * V::size * group;
  };
  const E* const end = a + K;
  while (a + 3 * group < end) {
    ahead.ask();
    step(sum[0]);
    if (NV > 2) ahead.ask();
    step(sum[1 % chains]);
    ahead.ask();
    step(sum[2 % chains]);
    if (NV > 2) ahead.ask();
    step(sum[3 % chains]);
  }
  while (a < end) step(sum[0]);
#pragma GCC unroll 24
  for (int i = 0; i < MR * NV; ++i)
#pragma GCC unroll 4
    for (int k = 1; k < chains; ++k)
      sum[0][i / NV][i % NV] = sum[0][i / NV][i % NV] + sum[k][i / NV][i % NV];
  store_sums(sum[0], to);
}

// Where a layer has so few rows for a product, each sum is made in two chains, or every
// multiplication would wait for the last. (It is the layer that decides, not the rows of a thread:
// then a result does not depend on how many threads there are.)
constexpr int64_t kFewRows = 3;

// A Product multiplies elements E. A thread has an object of it while it does so.
template <class E>
class Product {
  using C = typename Element<E>::Sum;

 public:
#if defined(__AVX512F__) || defined(__aarch64__)
  // 32 registers hold 12 x 2 sums, 8 x 3 or 6 x 4. The wider, the fewer loads for as many sums; the
  // higher, the fewer reads of the panel.
  static constexpr int vectors = 4, sums = 24;
#else
  static constexpr int vectors = 2, sums = 12;  // 6 x 2 sums + 2 operands + 1 broadcast of 16
#endif
  static constexpr int depth = Element<E>::group;  // K is padded with zeros to a multiple of it
  static constexpr bool even = true;               // blocks of rows need not be whole
  static constexpr int rows(int vectors) { return sums / (vectors < 2 ? 2 : vectors); }

  // Makes the sums of a b, [count][width]; width is of 1 to `vectors` vectors, count at most their
  // rows(), K at most kBlock unless count is 1. `few`: count is at most kFewRows, and each sum has
  // two chains.
  BRNN_INLINE void operator()(int count, int width, int64_t K, const E* a, const E* b, Ahead ahead,
                              const Sums<C>& to, bool few) const {
    const Table& table = few ? kFew : kTable;
    table[width / Vec<C>::size - 1][count - 1](K, a, b, ahead, to);
  }

 private:
  using Kernel = void (*)(int64_t, const E*, const E*, Ahead, const Sums<C>&);
  struct Table {
    Kernel of[vectors][rows(1)];
    constexpr const Kernel* operator[](int i) const { return of[i]; }
  };
  template <int chains, int NV, int... R>
  static constexpr void fill(Table& table, std::integer_sequence<int, R...>) {
    ((table.of[NV - 1][R] = microkernel<E, R + 1, NV, chains>), ...);
  }
  template <int chains, int... V>
  static constexpr Table table(std::integer_sequence<int, V...>) {
    Table table{};
    (fill<chains, V + 1>(
         table, std::make_integer_sequence<int, chains == 1 ? rows(V + 1) : int{kFewRows}>{}),
     ...);
    return table;
  }
  static constexpr Table kTable = table<1>(std::make_integer_sequence<int, vectors>{});
  static constexpr Table kFew = table<2>(std::make_integer_sequence<int, vectors>{});
};

// A Share is a contiguous range; share_of gives one of `parts` of n.
struct Share {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
inline Share share_of(int64_t n, int64_t part, int64_t parts) {
  return {n * part / parts, n * (part + 1) / parts};
}

// Cuts n rows into blocks of at most `most`: as equal as can be, or whole ones and a rest. The
// number of equal ones is a multiple of `times`, so that threads that share them are done together,
// unless they would have fewer than `least` rows.
struct Blocks {
  int64_t count, base, longer, n;

  Blocks(int64_t n, int64_t most, bool even, int64_t times = 1, int64_t least = 1)
      : count(divide_up(n, most)), base(most), longer(0), n(n) {
    if (!even || count == 0) return;
    const int64_t fair = round_up(count, times);
    if (fair * least <= n) count = fair;
    base = n / count;
    longer = n - base * count;
  }
  int64_t begin(int64_t i) const { return i * base + min(i, longer); }
  int size(int64_t i) const { return int(min(base + (i < longer), n - begin(i))); }
};

}  // namespace brnn::BRNN_ISA

#if defined(__AMX_BF16__)
#include "amx.h"
#endif
