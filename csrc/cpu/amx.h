// amx.h multiplies bfloat16 on matrix registers (Intel's AMX), by 2 x 2 tiles of 16 x 16 sums.
//
// All tiles have 16 rows whatever the rows of an operand, since setting the shapes anew takes as
// long as half a kernel and a tile of 10 rows takes no less time than one of 16. A kernel therefore
// reads up to 15 rows past the last (Rows leaves room) and keeps their sums to itself.
#pragma once

#include "simd.h"

namespace brnn::BRNN_ISA {

template <>
class Product<bfloat16> {
 public:
  static constexpr int vectors = 2;
  static constexpr int rows(int /*vectors*/) { return 32; }
  static constexpr int depth = 32;     // a row of a tile: 64 bytes
  static constexpr bool even = false;  // 33 rows are 32 and 1: a block of up to 16 takes half

  Product() { _tile_loadconfig(&kShapes); }
  ~Product() { _tile_release(); }  // the system would save 8 KiB at every switch of threads
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  BRNN_INLINE void operator()(int count, int width, int64_t K, const bfloat16* a, const bfloat16* b,
                              Ahead ahead, const Sums<float>& to, bool /*few*/) const {
    const auto kernel = count > 16   ? width > 16 ? multiply<2, 2> : multiply<2, 1>
                        : width > 16 ? multiply<1, 2>
                                     : multiply<1, 1>;
    if (!to.bits && (count == 32 || count == 16))
      return kernel(K, a, b, ahead, to.add, to.c, to.stride);
    alignas(64) float sums[32 * 32];
    const auto each = [&](const auto& f) {
      for (int r = 0; r < count; ++r)
        for (int v = 0; v < width; v += 16) f(r, v, to.c + r * to.stride + v, sums + r * width + v);
    };
    const bool add = to.add && !to.bits;  // to what is there, as whole tiles do
    if (add) each([](int, int, const float* c, float* sum) { store(sum, load(c)); });
    kernel(K, a, b, ahead, add, sums, width);
    each([&](int r, int v, float* c, const float* sum) {
      const Vec<float> made = load(sum);
      store(c, to.bits ? load(c) + select(to.bits[r][to.offset + v / 16], made) : made);
    });
  }

 private:
  // They are not on the stack, because GCC takes the instruction to read 8 bytes and drops stores
  // to the others.
  static constexpr struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } kShapes = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  static constexpr int kPitch = kBlock<bfloat16> * sizeof(bfloat16);
  static constexpr int kAhead = 2 * 1024;  // elements of the panel that are asked for: two steps

  // Tiles 0 to 3 are sums (row tile + 2 * column tile), 4 and 5 rows of a, 6 and 7 columns of b.
  template <int MT, int NT>
  static void multiply(int64_t K, const bfloat16* a, const bfloat16* b, Ahead ahead, bool add,
                       float* c, int64_t c_stride) {
    const int64_t bytes = c_stride * sizeof(float);
    asm volatile("" ::: "memory");  // GCC does not know that a tile load reads memory
    if (add) {
      _tile_loadd(0, c, bytes);
      if (MT == 2) _tile_loadd(1, c + 16 * c_stride, bytes);
      if (NT == 2) _tile_loadd(2, c + 16, bytes);
      if (MT == 2 && NT == 2) _tile_loadd(3, c + 16 * c_stride + 16, bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (const bfloat16* end = a + K; a < end; a += depth, b += NT * 16 * depth) {
      _tile_loadd(4, a, kPitch);
      if (MT == 2) _tile_loadd(5, a + 16 * kBlock<bfloat16>, kPitch);
      _tile_loadd(6, b, NT * 64);
      if (NT == 2) _tile_loadd(7, b + 32, NT * 64);
#pragma GCC unroll 32
      for (int line = 0; line < NT * 16; ++line) __builtin_prefetch(b + kAhead + line * 32);
#pragma GCC unroll 16
      for (int pair = 0; pair < NT * 4; ++pair) ahead.ask();
      _tile_dpbf16ps(0, 4, 6);
      if (MT == 2) _tile_dpbf16ps(1, 5, 6);
      if (NT == 2) _tile_dpbf16ps(2, 4, 7);
      if (MT == 2 && NT == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, bytes);
    if (MT == 2) _tile_stored(1, c + 16 * c_stride, bytes);
    if (NT == 2) _tile_stored(2, c + 16, bytes);
    if (MT == 2 && NT == 2) _tile_stored(3, c + 16 * c_stride + 16, bytes);
  }
};

}  // namespace brnn::BRNN_ISA
