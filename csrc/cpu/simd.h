// simd.h defines a vector of floats or doubles for the instruction set this file is compiled for,
// and the elements that products of matrices read.
//
// It is included once per instruction set with BRNN_ISA naming the namespace, so that no function
// compiled for one machine can be linked into the code of another. GCC's vector extensions carry
// most of it; intrinsics serve where they say something the language cannot: partial loads, 1/x,
// bf16 rounding.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../cells.h"
#include "../layer.h"

namespace brnn::BRNN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// This is for long chains of operations: GCC orders instructions before it assigns registers, so
// that independent chains lie side by side. (The microkernels do without, since it would make them
// spill.)
#if defined(__GNUC__) && !defined(__clang__)
#define BRNN_INTERLEAVED __attribute__((optimize("schedule-insns", "sched-pressure")))
#else
#define BRNN_INTERLEAVED
#endif

template <class C>
struct Vec {
  static constexpr int size = kVectorBytes / sizeof(C);
  typedef C Native __attribute__((vector_size(kVectorBytes)));
  // In memory it has any address, and is no alias of anything but C (memcpy would be one of
  // everything, and make the compiler reload what it knows after each store).
  typedef C Memory __attribute__((vector_size(kVectorBytes), aligned(alignof(C))));
  Native v;

  BRNN_INLINE friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  BRNN_INLINE friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  BRNN_INLINE friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
};

template <class C>
BRNN_INLINE Vec<C> broadcast(C value) {
  return {value - typename Vec<C>::Native{}};  // value - 0, not 0 + value: keeps -0
}

template <class C>
BRNN_INLINE Vec<C> load(const C* p) {
  return {*reinterpret_cast<const typename Vec<C>::Memory*>(p)};
}

template <class C>
BRNN_INLINE void store(C* p, Vec<C> a) {
  *reinterpret_cast<typename Vec<C>::Memory*>(p) = a.v;
}

// These move the first n lanes from or to memory, with zeros in the others; memory past them is not
// touched.
template <class C>
BRNN_INLINE Vec<C> load(const C* p, int n) {
  if (n >= Vec<C>::size) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) {
    return {(typename Vec<C>::Native)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)};
  }
#endif
  Vec<C> r{};
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}

template <class C>
BRNN_INLINE void store(C* p, Vec<C> a, int n) {
  if (n >= Vec<C>::size) return store(p, a);
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) {
    return _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)a.v);
  }
#endif
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}

// These are for bfloat16 in memory that is float in registers.
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

BRNN_INLINE Vec<float> load(const bfloat16* p, int n) {
  Halves h{};
  if (n >= Vec<float>::size) {
    std::memcpy(&h, p, sizeof h);
  } else {
    for (int i = 0; i < n; ++i) h[i] = p[i].bits;
  }
  return {(Vec<float>::Native)(__builtin_convertvector(h, Words) << 16)};
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
BRNN_INLINE Halves bfloat16_bits(Vec<float> a) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)a.v);
#else
  const Words w = (Words)a.v;
  const Words rounded = (w + 0x7FFF + ((w >> 16) & 1)) >> 16;
  return __builtin_convertvector(a.v == a.v ? rounded : (w >> 16) | 0x40, Halves);
#endif
}

BRNN_INLINE void store(bfloat16* p, Vec<float> a, int n) {
  const Halves h = bfloat16_bits(a);
  if (n >= Vec<float>::size) {
    std::memcpy(p, &h, sizeof h);
  } else {
    for (int i = 0; i < n; ++i) p[i].bits = h[i];
  }
}

// Gives what storing as S and loading again would.
template <class S, class C>
BRNN_INLINE Vec<C> rounded_to(Vec<C> a) {
  if constexpr (std::is_same_v<S, C>) {
    return a;
  } else {
    return {(typename Vec<C>::Native)(__builtin_convertvector(bfloat16_bits(a), Words) << 16)};
  }
}

// Gives the bits of the first n places of keep, at most as many as a vector has lanes: a bit is 1
// where keep is not 0.
template <class C>
BRNN_INLINE uint16_t bits_of(const uint8_t* keep, int n) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_maskz_loadu_epi8(__mmask16((1u << n) - 1), keep);
  return _mm_test_epi8_mask(bytes, bytes);
#else
  unsigned bits = 0;
  for (int i = 0; i < n; ++i) bits |= unsigned(keep[i] != 0) << i;
  return uint16_t(bits);
#endif
}

// Keeps the lanes of a whose bit is 1 and makes the others zero, whatever stands there: NaN and Inf
// too.
template <class C>
BRNN_INLINE Vec<C> select(uint16_t bits, Vec<C> a) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4)
    return {(typename Vec<C>::Native)_mm512_maskz_mov_ps(bits, a.v)};
  else
    return {(typename Vec<C>::Native)_mm512_maskz_mov_pd(__mmask8(bits), a.v)};
#else
  typedef decltype(a.v == a.v) Lanes;
  Lanes each;
  for (int i = 0; i < Vec<C>::size; ++i) each[i] = 1 << i;
  return {(typename Vec<C>::Native)((Lanes)a.v & (((Lanes{} + bits) & each) == each))};
#endif
}

// Keeps the first n lanes and makes the others zero, whatever stands there: NaN and Inf too.
template <class C>
BRNN_INLINE Vec<C> first_lanes(int n, Vec<C> a) {
  if (n >= Vec<C>::size) return a;
  for (int i = 0; i < Vec<C>::size; ++i)
    if (i >= n) a.v[i] = 0;
  return a;
}

// ---- Elements of the operands of products. A word is what a lane of sums takes at once: one float
// or double, or two bfloat16 that follow each other in the sum. Lanes are as many elements as there
// are lanes of sums.
template <class E>
struct Element {
  using Sum = E;
  using Lanes = Vec<E>;
  static constexpr int group = 1;         // elements of a word
  static constexpr double flops = 150e9;  // of products on a core, to rank splits (parallel.h)
};

#if defined(__AVX512BF16__)
struct HalfLanes {
  __m256i v{};
};
template <>
struct Element<bfloat16> {
  using Sum = float;
  using Lanes = HalfLanes;
  static constexpr int group = 2;
  static constexpr double flops = 500e9;
};

BRNN_INLINE __mmask16 lanes_below(int n) { return __mmask16(n >= 16 ? 0xFFFF : (1 << n) - 1); }

BRNN_INLINE HalfLanes half_lanes(Vec<float> a) { return {(__m256i)bfloat16_bits(a)}; }
BRNN_INLINE HalfLanes load_half_lanes(const bfloat16* p, int n) {
  return {_mm256_maskz_loadu_epi16(lanes_below(n), p)};
}
BRNN_INLINE Vec<float> load_half_words(const bfloat16* p, int n) {
  const auto inside = __mmask32(n >= 32 ? ~0u : (1u << n) - 1);
  return {(Vec<float>::Native)_mm512_maskz_loadu_epi16(inside, p)};
}
BRNN_INLINE void store(bfloat16* p, HalfLanes a) { _mm256_storeu_epi16(p, a.v); }
BRNN_INLINE void store(bfloat16* p, HalfLanes a, int n) {
  _mm256_mask_storeu_epi16(p, lanes_below(n), a.v);
}
BRNN_INLINE HalfLanes first_lanes(int n, HalfLanes a) {
  return {_mm256_maskz_mov_epi16(lanes_below(n), a.v)};
}
BRNN_INLINE HalfLanes select(uint16_t bits, HalfLanes a) {
  return {_mm256_maskz_mov_epi16(bits, a.v)};
}
BRNN_INLINE Vec<float> to_sum(HalfLanes a) {
  return {(Vec<float>::Native)_mm512_slli_epi32(_mm512_cvtepu16_epi32(a.v), 16)};
}
// Makes words of two rows, with an element of each.
BRNN_INLINE Vec<float> zip(HalfLanes first, HalfLanes second) {
  const __m512i low = _mm512_cvtepu16_epi32(first.v), high = _mm512_cvtepu16_epi32(second.v);
  return {(Vec<float>::Native)_mm512_or_si512(low, _mm512_slli_epi32(high, 16))};
}
#endif

template <class C>
BRNN_INLINE Vec<C> to_sum(Vec<C> a) {
  return a;
}

template <class E, class C>
BRNN_INLINE typename Element<E>::Lanes to_lanes(Vec<C> a) {
  if constexpr (Element<E>::group == 1) {
    return a;
  } else {
    return half_lanes(a);
  }
}

template <class E, class S>
BRNN_INLINE typename Element<E>::Lanes load_lanes(const S* p, int n) {
  if constexpr (Element<E>::group == 1) {
    return load(p, n);
  } else {
    return load_half_lanes(p, n);
  }
}

// Loads the words of n elements (at most as many as fill a vector), with zeros after them.
template <class E, class S>
BRNN_INLINE Vec<typename Element<E>::Sum> load_words(const S* p, int n) {
  if constexpr (Element<E>::group == 1) {
    return load(p, n);
  } else {
    return load_half_words(p, n);
  }
}

// Makes words of the rows row(0) .. row(group - 1), which follow each other in the sum.
template <class E, class Row>
BRNN_INLINE Vec<typename Element<E>::Sum> words_of(const Row& row) {
  if constexpr (Element<E>::group == 1) {
    return row(0);
  } else {
    const auto first = row(0);
    return zip(first, row(1));
  }
}

// Swaps the off-diagonal D x D blocks of the rows a and b, which lie D apart.
template <int D, class C, int... Lane>
BRNN_INLINE void swap_blocks(Vec<C>& a, Vec<C>& b, std::integer_sequence<int, Lane...>) {
  constexpr int N = sizeof...(Lane);
  const auto first = __builtin_shufflevector(a.v, b.v, (Lane & D ? N + Lane - D : Lane)...);
  b.v = __builtin_shufflevector(a.v, b.v, (Lane & D ? N + Lane : Lane + D)...);
  a.v = first;
}

// Transposes a square of vectors in registers, by log2(size) rounds of block swaps.
template <int D = 1, class C, int N>
BRNN_INLINE void transpose(Vec<C> (&rows)[N]) {
  static_assert(N == Vec<C>::size);
  if constexpr (D < N) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
      if (!(i & D)) swap_blocks<D>(rows[i], rows[i + D], std::make_integer_sequence<int, N>{});
    transpose<2 * D>(rows);
  }
}

// Clamps a to its bounds; NaN stays NaN.
template <class C>
BRNN_INLINE Vec<C> clamp(C low, C high, Vec<C> a) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) {
    const __m512 lesser = _mm512_min_ps(_mm512_set1_ps(high), (__m512)a.v);  // of NaN the second
    return {(typename Vec<C>::Native)_mm512_max_ps(_mm512_set1_ps(low), lesser)};
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(C) == 4) {
    const __m256 lesser = _mm256_min_ps(_mm256_set1_ps(high), (__m256)a.v);
    return {(typename Vec<C>::Native)_mm256_max_ps(_mm256_set1_ps(low), lesser)};
  }
#endif
  const auto lesser = a.v > high ? broadcast(high).v : a.v;
  return {lesser < low ? broadcast(low).v : lesser};
}

// sigmoid and tanh of floats to 3 ulp (sigmoid below -87, where it is under 2^-125, stays at
// that); for results that are stored as bfloat16 to 2^-12. double by the C library, lane by lane.
template <class C, class Stored = C>
struct Math {
  using Value = Vec<C>;
  using Native = typename Value::Native;
  static constexpr bool kCoarse = DtypeOf<Stored>::coarse;

  BRNN_INLINE static Value value(C c) { return broadcast(c); }

  BRNN_INLINE static Value sigmoid(Value x) {
    if constexpr (sizeof(C) == 8) {
      Value r;
      for (int i = 0; i < Value::size; ++i) r.v[i] = 1 / (1 + std::exp(-x.v[i]));
      return r;
    } else {
      Native n;
      const Native r = reduced(-clamp(-87.0f, 87.0f, x).v, n);
      const Native e = (series(r) * r + 1.0f) * r + 1.0f;
      return {reciprocal(times_power(e, n) + 1.0f)};
    }
  }

  BRNN_INLINE static Value tanh(Value x) {
    if constexpr (sizeof(C) == 8) {
      Value r;
      for (int i = 0; i < Value::size; ++i) r.v[i] = std::tanh(x.v[i]);
      return r;
    } else {
      // tanh x is m / (2 + m) with m = e^(2 x) - 1. This is exact near 0, but for the sign of 0.
      typedef decltype(x.v == x.v) Lanes;
      Native n;
      const Native r = reduced(clamp(-40.0f, 40.0f, x + x).v, n);
      const Native e = (r * r) * series(r) + r, two_n = times_power(broadcast(1.0f).v, n);
      const Native m = e * two_n + (two_n - 1.0f), den = m + 2.0f, y = reciprocal(den);
      Native h = m * y;
      if constexpr (!kCoarse) h = h + (m - den * h) * y;
      return {(Native)((Lanes)h | ((Lanes)x.v & (Lanes)broadcast(-0.0f).v))};
    }
  }

 private:
  // e^t = 2^n e^r with |r| <= ln 2 / 2: returns r and n. Cody and Waite's two-part ln 2.
  BRNN_INLINE static Native reduced(Native t, Native& n) {
    const Native shifter = broadcast(12582912.0f).v;  // 1.5 * 2^23: adding it rounds to an integer
    n = (t * 1.44269504089f + shifter) - shifter;
    if constexpr (kCoarse) return t - n * 0.69314718056f;
    return (t - n * 0.693359375f) - n * -2.12194440e-4f;
  }

  // Gives (e^r - 1 - r) / r^2. The largest error of e^r - 1, relative to it, is 2^-25.8, if coarse
  // 2^-15.6.
  BRNN_INLINE static Native series(Native r) {
    if constexpr (kCoarse) return (r * 0.0416100025f + 0.167496443f) * r + 0.500016510f;
    Native q = r * 0.00138825213f + 0.00836652052f;
    q = q * r + 0.0416672006f;
    q = q * r + 0.166665435f;
    return q * r + 0.499999970f;
  }

  // Gives a 2^n for whole n.
  BRNN_INLINE static Native times_power(Native a, Native n) {
#if defined(__AVX512F__)
    return (Native)_mm512_scalef_ps((__m512)a, (__m512)n);
#else
    typedef decltype(n == n) Lanes;
    return a * (Native)((__builtin_convertvector(n, Lanes) + 127) << 23);
#endif
  }

  BRNN_INLINE static Native reciprocal(Native d) {
#if defined(__AVX512F__)
    const Native y = (Native)_mm512_rcp14_ps((__m512)d);
    return kCoarse ? y : y + y * (1.0f - d * y);
#else
    return 1.0f / d;
#endif
  }
};

}  // namespace brnn::BRNN_ISA
