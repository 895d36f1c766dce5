// arithmetic.cpp - instructions that compute in registers. PTX ISA 9.0, chapters 9.7.1 (integer),
// 9.7.3 (floating point), 9.7.6 (comparison and selection), 9.7.8 (logic and shift).
#include <cfenv>
#include <cmath>

#include "apply.h"

namespace ptx {
namespace {

using std::bit_cast;

template <class T>
T shl(T a, uint32_t n) {  // 9.7.8.7: counts beyond the width are clamped to it
  return n >= sizeof(T) * 8 ? T(0) : T(a << n);
}
template <class T>
T shr(T a, uint32_t n) {
  if (n >= sizeof(T) * 8) return std::is_signed_v<T> && a < 0 ? T(-1) : T(0);
  return T(a >> n);
}

uint32_t shf_left(uint32_t a, uint32_t b, uint32_t n) {  // 9.7.8.8: of b:a the upper half
  return uint32_t((uint64_t(b) << 32 | a) << (n & 31) >> 32);
}

uint32_t prmt(uint32_t a, uint32_t b, uint32_t selectors) {  // 9.7.9.7, default mode
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t select = selectors >> 4 * i & 0xF;
    uint32_t byte = uint32_t(bytes >> 8 * (select & 7)) & 0xFF;
    if (select & 8) byte = byte & 0x80 ? 0xFF : 0;
    d |= byte << 8 * i;
  }
  return d;
}

uint32_t bfi(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {  // 9.7.1.20
  const uint32_t position = c & 0xFF, length = d & 0xFF;
  for (uint32_t i = 0; i < length && position + i < 32; ++i)
    b = (b & ~(1u << (position + i))) | (a >> i & 1u) << (position + i);
  return b;
}

uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {  // 9.7.8.6
  uint32_t d = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return d;
}

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

// 9.7.3.14: the upper 20 bits of the mantissa are right.
double rcp_approx_ftz(double x) {
  constexpr uint64_t kUpper = 0xFFFFFFFF00000000u;
  const double upper = bit_cast<double>(bit_cast<uint64_t>(x) & kUpper);
  return bit_cast<double>(bit_cast<uint64_t>(1.0 / upper) & kUpper);
}

float __attribute__((noinline)) fma_down(float a, float b, float c) {
  const int mode = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile float x = a, y = b, z = c;
  volatile float result = std::fma(x, y, z);
  std::fesetround(mode);
  return result;
}

template <bool Remainder, class T>
Step divide(Warp& w, const Operation& o, uint32_t mask) {
  T* const d = w.to<T>(o.at[0]);
  const T *const a = w.from<T>(o.at[1]), *const b = w.from<T>(o.at[2]);
  each(mask, [&](int i) {
    if (b[i] == 0) fail(w, i, o, "integer division by zero");
    d[i] = Remainder ? a[i] % b[i] : a[i] / b[i];
  });
  return Step::next;
}

// ---- predicates, a bit for each lane

template <class F>
Step predicate(Warp& w, const Operation& o, uint32_t mask, const F& f) {
  uint32_t& d = *w.to<uint32_t>(o.at[0]);
  d = (d & ~mask) | (f() & mask);
  return Step::next;
}
template <auto F>
Step logic(Warp& w, const Operation& o, uint32_t mask) {
  const uint32_t a = *w.from<uint32_t>(o.at[1]), b = *w.from<uint32_t>(o.at[2]);
  return predicate(w, o, mask, [&] { return F(a, b); });
}
Step move_predicate(Warp& w, const Operation& o, uint32_t mask) {
  return predicate(w, o, mask, [&] { return *w.from<uint32_t>(o.at[1]); });
}
Step not_predicate(Warp& w, const Operation& o, uint32_t mask) {
  return predicate(w, o, mask, [&] { return ~*w.from<uint32_t>(o.at[1]); });
}

template <auto F, class T>
Step compare(Warp& w, const Operation& o, uint32_t mask) {
  const T *const a = w.from<T>(o.at[1]), *const b = w.from<T>(o.at[2]);
  alignas(32) int8_t holds[kWarp];
#pragma GCC ivdep
  for (int i = 0; i < kWarp; ++i) holds[i] = F(a[i], b[i]) ? -1 : 0;
  return predicate(w, o, mask, [&] { return bits_of(holds); });
}

template <class T>
Step select(Warp& w, const Operation& o, uint32_t mask) {
  T* const d = w.to<T>(o.at[0]);
  const T *const a = w.from<T>(o.at[1]), *const b = w.from<T>(o.at[2]);
  const uint32_t chosen = *w.from<uint32_t>(o.at[3]);
  each(mask, [&](int i) { d[i] = chosen >> i & 1 ? a[i] : b[i]; });
  return Step::next;
}

#define BINARY(name, T, expression) {name, apply<[](T a, T b) { return T(expression); }, T, T, T>}
#define UNARY(name, T, expression) {name, apply<[](T a) { return T(expression); }, T, T>}
#define TERNARY(name, T, expression) \
  {name, apply<[](T a, T b, T c) { return T(expression); }, T, T, T, T>}
#define SHIFT(name, function, T) \
  {name, apply<[](T a, uint32_t n) { return function(a, n); }, T, T, uint32_t>}
#define WIDE(name, D, T) {name, apply<[](T a, T b) { return D(D(a) * D(b)); }, D, T, T>}
#define COMPARE(name, T, expression) {name, compare<[](T a, T b) { return (expression); }, T>}
#define ORDERED(type, T)                                                       \
  COMPARE("setp.lt." type, T, a < b), COMPARE("setp.le." type, T, a <= b),     \
      COMPARE("setp.gt." type, T, a > b), COMPARE("setp.ge." type, T, a >= b), \
      COMPARE("setp.eq." type, T, a == b)
#define INTEGERS(type, T, U)                                                                  \
  BINARY("add." type, U, a + b), BINARY("sub." type, U, a - b), UNARY("neg." type, U, 0 - a), \
      BINARY("mul.lo." type, U, a* b), TERNARY("mad.lo." type, U, a* b + c),                  \
      BINARY("min." type, T, a < b ? a : b), BINARY("max." type, T, a > b ? a : b),           \
      {"div." type, divide<false, T>}, {"rem." type, divide<true, T>}, ORDERED(type, T),      \
      COMPARE("setp.ne." type, T, a != b), SHIFT("shr." type, shr, T)
#define BITS(type, U)                                                                        \
  BINARY("and." type, U, a& b), BINARY("or." type, U, a | b), BINARY("xor." type, U, a ^ b), \
      UNARY("not." type, U, ~a), SHIFT("shl." type, shl, U), SHIFT("shr." type, shr, U),     \
      COMPARE("setp.eq." type, U, a == b), COMPARE("setp.ne." type, U, a != b)
#define FLOATS(type, T)                                                                           \
  BINARY("add." type, T, a + b), BINARY("add.rn." type, T, a + b), BINARY("sub." type, T, a - b), \
      BINARY("sub.rn." type, T, a - b), BINARY("mul." type, T, a* b),                             \
      BINARY("mul.rn." type, T, a* b), TERNARY("fma.rn." type, T, std::fma(a, b, c)),             \
      UNARY("neg." type, T, -a), UNARY("abs." type, T, std::fabs(a)),                             \
      UNARY("rcp.rn." type, T, T(1) / a), BINARY("copysign." type, T, std::copysign(b, a)),       \
      ORDERED(type, T), COMPARE("setp.ne." type, T, a<b || a> b),                                 \
      COMPARE("setp.neu." type, T, !(a == b)), COMPARE("setp.equ." type, T, !(a < b || a > b)),   \
      COMPARE("setp.ltu." type, T, !(a >= b)), COMPARE("setp.leu." type, T, !(a > b)),            \
      COMPARE("setp.gtu." type, T, !(a <= b)), COMPARE("setp.geu." type, T, !(a < b)),            \
      COMPARE("setp.nan." type, T, a != a || b != b),                                             \
      COMPARE("setp.num." type, T, !(a != a || b != b))

}  // namespace

std::vector<Entry> arithmetic_operations() {
  return {
      INTEGERS("s16", int16_t, uint16_t),
      INTEGERS("u16", uint16_t, uint16_t),
      INTEGERS("s32", int32_t, uint32_t),
      INTEGERS("u32", uint32_t, uint32_t),
      INTEGERS("s64", int64_t, uint64_t),
      INTEGERS("u64", uint64_t, uint64_t),
      BITS("b16", uint16_t),
      BITS("b32", uint32_t),
      BITS("b64", uint64_t),
      FLOATS("f32", float),
      FLOATS("f64", double),
      WIDE("mul.wide.s16", int32_t, int16_t),
      WIDE("mul.wide.u16", uint32_t, uint16_t),
      WIDE("mul.wide.s32", int64_t, int32_t),
      WIDE("mul.wide.u32", uint64_t, uint32_t),
      {"mad.wide.s32",
       apply<[](int32_t a, int32_t b, uint64_t c) { return uint64_t(int64_t(a) * int64_t(b)) + c; },
             uint64_t, int32_t, int32_t, uint64_t>},
      {"mad.wide.u32", apply<[](uint32_t a, uint32_t b, uint64_t c) { return uint64_t(a) * b + c; },
                             uint64_t, uint32_t, uint32_t, uint64_t>},
      BINARY("mul.hi.s32", int32_t, int64_t(a) * b >> 32),
      BINARY("mul.hi.u32", uint32_t, uint64_t(a) * b >> 32),
      TERNARY("prmt.b32", uint32_t, prmt(a, b, c)),
      TERNARY("shf.l.wrap.b32", uint32_t, shf_left(a, b, c)),
      {"bfi.b32",
       apply<[](uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return bfi(a, b, c, d); },
             uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>},
      {"lop3.b32", apply<[](uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
         return lop3(a, b, c, table);
       },
                         uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>},
      UNARY("ex2.approx.ftz.f32", float, flushed(std::exp2(flushed(a)))),
      UNARY("rcp.approx.ftz.f32", float, flushed(1.f / flushed(a))),
      UNARY("rcp.approx.ftz.f64", double, rcp_approx_ftz(a)),
      TERNARY("fma.rm.f32", float, fma_down(a, b, c)),
      {"and.pred", logic<[](uint32_t a, uint32_t b) { return a & b; }>},
      {"or.pred", logic<[](uint32_t a, uint32_t b) { return a | b; }>},
      {"xor.pred", logic<[](uint32_t a, uint32_t b) { return a ^ b; }>},
      {"not.pred", not_predicate},
      {"mov.pred", move_predicate},
      {"selp.16", select<uint16_t>},
      {"selp.32", select<uint32_t>},
      {"selp.64", select<uint64_t>},
  };
}

}  // namespace ptx
