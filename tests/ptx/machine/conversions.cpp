// conversions.cpp - mov and cvt. PTX ISA 9.0, sections 9.7.9.1 (mov), 9.7.9.22 (cvt).
#include <cmath>

#include "apply.h"

namespace ptx {
namespace {

// Integers: the type of the instruction may be narrower than its register, into which a result is
// extended by its sign.
template <class D, class S, class Target = D, class Source = S>
Step convert(Warp& w, const Operation& o, uint32_t mask) {
  return apply<[](Source a) { return Target(D(S(a))); }, Target, Source>(w, o, mask);
}

template <class Word, class Half>
Step pack(Warp& w, const Operation& o, uint32_t mask) {
  return apply<[](Half low, Half high) { return Word(Word(high) << 8 * sizeof(Half) | low); }, Word,
               Half, Half>(w, o, mask);
}
template <class Word, class Half>
Step unpack(Warp& w, const Operation& o, uint32_t mask) {
  const Word* const a = w.from<Word>(o.at[2]);
  for (int part = 0; part < 2; ++part)
    if (o.at[part] != kNone)
      each(mask, [&, d = w.to<Half>(o.at[part])](int i) {
        d[i] = Half(a[i] >> part * 8 * sizeof(Half));
      });
  return Step::next;
}

#define CONVERT(d, D, s, S) {"cvt." d "." s, convert<D, S>}
#define MOVE(bits, T) {"mov." bits, apply<[](T a) { return a; }, T, T>}
#define FLOAT(name, D, S, expression) {name, apply<[](S a) { return D(expression); }, D, S>}

}  // namespace

std::vector<Entry> conversion_operations() {
  return {
      MOVE("16", uint16_t),
      MOVE("32", uint32_t),
      MOVE("64", uint64_t),
      {"pack.32", pack<uint32_t, uint16_t>},
      {"pack.64", pack<uint64_t, uint32_t>},
      {"unpack.32", unpack<uint32_t, uint16_t>},
      {"unpack.64", unpack<uint64_t, uint32_t>},
      CONVERT("s64", int64_t, "s32", int32_t),
      CONVERT("u64", uint64_t, "u32", uint32_t),
      CONVERT("s64", int64_t, "s16", int16_t),
      CONVERT("u64", uint64_t, "u16", uint16_t),
      CONVERT("s32", int32_t, "s16", int16_t),
      CONVERT("u32", uint32_t, "u16", uint16_t),
      CONVERT("s32", int32_t, "s64", int64_t),
      CONVERT("u32", uint32_t, "u64", uint64_t),
      CONVERT("u16", uint16_t, "u32", uint32_t),
      CONVERT("u16", uint16_t, "u64", uint64_t),
      CONVERT("s16", int16_t, "s32", int32_t),
      CONVERT("s16", int16_t, "u32", uint32_t),
      // Types that are narrower than their registers, whose widths follow.
      {"cvt.s64.s32/64/64", convert<int64_t, int32_t, int64_t, uint64_t>},
      {"cvt.u64.u32/64/64", convert<uint64_t, uint32_t, uint64_t, uint64_t>},
      {"cvt.s8.s32/16/32", convert<int8_t, int32_t, int16_t, uint32_t>},
      {"cvt.u8.u32/16/32", convert<uint8_t, uint32_t, uint16_t, uint32_t>},
      {"cvt.u32.u8/32/16", convert<uint32_t, uint8_t, uint32_t, uint16_t>},
      {"cvt.u16.u8/16/16", convert<uint16_t, uint8_t, uint16_t, uint16_t>},
      {"cvt.u32.u8/32/32", convert<uint32_t, uint8_t, uint32_t, uint32_t>},
      {"cvt.s16.s8/16/16", convert<int16_t, int8_t, int16_t, uint16_t>},
      {"cvt.s16.s8/16/32", convert<int16_t, int8_t, int16_t, uint32_t>},
      {"cvt.s32.s8/32/32", convert<int32_t, int8_t, int32_t, uint32_t>},
      {"cvt.u16.u8/16/32", convert<uint16_t, uint8_t, uint16_t, uint32_t>},
      {"cvt.u32.u16/32/32", convert<uint32_t, uint16_t, uint32_t, uint32_t>},
      {"cvt.s32.s16/32/32", convert<int32_t, int16_t, int32_t, uint32_t>},
      FLOAT("cvt.rn.f32.f64", float, double, a),
      FLOAT("cvt.f64.f32", double, float, a),
      FLOAT("cvt.f32.f16", float, uint16_t, from_float16(a)),
      FLOAT("cvt.rna.tf32.f32", uint32_t, float, to_tf32(a)),
      FLOAT("cvt.rni.f32.f32", float, float, std::nearbyint(a)),
      FLOAT("cvt.sat.f32.f32", float, float, a > 0.f ? a < 1.f ? a : 1.f : 0.f),  // NaN: 0
      FLOAT("cvt.rn.f32.s32", float, int32_t, a),
      FLOAT("cvt.rn.f32.u32", float, uint32_t, a),
      FLOAT("cvt.rn.f64.s32", double, int32_t, a),
      // The first operand becomes the upper half.
      {"cvt.rn.bf16x2.f32", apply<[](float high, float low) {
         return uint32_t(to_bfloat16(high)) << 16 | to_bfloat16(low);
       },
                                  uint32_t, float, float>},
      {"cvt.rn.f16x2.f32", apply<[](float high, float low) {
         return uint32_t(to_float16(high)) << 16 | to_float16(low);
       },
                                 uint32_t, float, float>},
  };
}

}  // namespace ptx
