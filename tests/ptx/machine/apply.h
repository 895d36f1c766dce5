// apply.h - instructions that are a function of registers, lane by lane.
#pragma once

#include <cstring>
#include <tuple>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "machine.h"

namespace ptx {

template <auto F, class D, class... S, size_t... I>
inline void apply_to(Warp& w, const Operation& o, uint32_t mask, std::index_sequence<I...>) {
  D* const d = w.to<D>(o.at[0]);
  const std::tuple<const S*...> sources{w.from<S>(o.at[I + 1])...};
  each(mask, [&](int i) { d[i] = F(std::get<I>(sources)[i]...); });
}
// d = F(sources...) for every lane of the mask.
template <auto F, class D, class... S>
Step apply(Warp& w, const Operation& o, uint32_t mask) {
  apply_to<F, D, S...>(w, o, mask, std::index_sequence_for<S...>());
  return Step::next;
}

// A bit for each byte that is -1 rather than 0.
inline uint32_t bits_of(const int8_t (&bytes)[kWarp]) {
#if defined(__AVX2__)
  return uint32_t(_mm256_movemask_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(bytes))));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWarp; ++i) bits |= uint32_t(bytes[i] & 1) << i;
  return bits;
#endif
}

inline uint16_t to_bfloat16(float x) {  // to nearest, ties to even; NaN is 0x7FFF
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return x != x ? 0x7FFF : uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float from_bfloat16(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }
inline uint16_t to_float16(float x) {
  return x != x ? 0x7FFF : std::bit_cast<uint16_t>(static_cast<_Float16>(x));
}
inline float from_float16(uint16_t x) { return float(std::bit_cast<_Float16>(x)); }
inline uint32_t to_tf32(float x) {  // to nearest, ties away from zero
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return 0x7FFFFFFF;
  return (bits & 0x7FFFFFFF) == 0x7F800000 ? bits : (bits + 0x1000) & ~0x1FFFu;
}

}  // namespace ptx
