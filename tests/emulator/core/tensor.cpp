// tensor.cpp - mma and ldmatrix: fragments as in the PTX manual, sums in double, rounded once.
#include <bit>
#include <cmath>
#include <memory>
#include <string>

#include "race.h"
#include "warp.h"

namespace emu {
namespace {

struct Operands {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

const float* half_table() {
  static const std::unique_ptr<float[]> table = [] {
    auto values = std::make_unique<float[]>(1 << 16);
    for (uint32_t bits = 0; bits < 1 << 16; ++bits)
      values[bits] = float(std::bit_cast<_Float16>(uint16_t(bits)));
    return values;
  }();
  return table.get();
}

// Which numbers a word holds: `count` of them, the lower bits first.
template <Number N>
struct Words;
template <>
struct Words<Number::bfloat16> {
  static constexpr int count = 2;
  static float get(uint32_t word, int i) {
    return std::bit_cast<float>(i ? word & 0xFFFF0000u : word << 16);
  }
};
template <>
struct Words<Number::float16> {
  static constexpr int count = 2;
  static float get(uint32_t word, int i) { return half_table()[i ? word >> 16 : word & 0xFFFFu]; }
};
template <>
struct Words<Number::tf32> {
  static constexpr int count = 1;
  static float get(uint32_t word, int) { return std::bit_cast<float>(word & ~0x1FFFu); }
};

// Lane l holds row g = l / 4 and the words q = l % 4 of that row: a[0], a[2] in row g, a[1], a[3]
// in row g + 8; the second pair, as b[1], lies in the upper half of k.
template <Number N>
void multiply(Thread* const* lanes, uint32_t) {
  constexpr int count = Words<N>::count, K = 8 * count, half = K / 2;
  double a[16][K], b[K][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Operands& mine = box_of<Operands>(lanes[lane]);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < count; ++i) {
      const int k = q * count + i;
      for (int word = 0; word < 4; ++word)
        a[g + word % 2 * 8][k + word / 2 * half] = Words<N>::get(mine.a[word], i);
      for (int word = 0; word < 2; ++word) b[k + word * half][g] = Words<N>::get(mine.b[word], i);
    }
    for (int i = 0; i < 4; ++i) c[g + i / 2 * 8][q * 2 + i % 2] = mine.c[i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < K; ++k)
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane) {
    float* mine = box_of<Operands>(lanes[lane]).c;
    for (int i = 0; i < 4; ++i) mine[i] = float(c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
  }
}

struct Rows {
  const char* row;
  uint32_t words[4];
};

uint16_t element(Thread* const* lanes, int matrix, int row, int column) {
  uint16_t bits;
  std::memcpy(&bits, box_of<Rows>(lanes[matrix * 8 + row]).row + 2 * column, sizeof bits);
  return bits;
}

template <bool Transposed>
void distribute(Thread* const* lanes, uint32_t) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int i = lane / 4, j = lane % 4 * 2;
      const uint32_t low = Transposed ? element(lanes, matrix, j, i) : element(lanes, matrix, i, j);
      const uint32_t high =
          Transposed ? element(lanes, matrix, j + 1, i) : element(lanes, matrix, i, j + 1);
      box_of<Rows>(lanes[lane]).words[matrix] = low | high << 16;
    }
}

}  // namespace

void mma(Number number, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         Site site) {
  Operands box{c, a, {b0, b1}};
  const Gathering call{~0u, "mma", site, true};
  switch (number) {
    case Number::bfloat16: return meet(call, &box, multiply<Number::bfloat16>);
    case Number::float16: return meet(call, &box, multiply<Number::float16>);
    case Number::tf32: return meet(call, &box, multiply<Number::tf32>);
  }
}

void load_matrices(uint32_t (&words)[4], const void* row, bool transposed, Site site) {
  const char* const at = static_cast<const char*>(row);
  const Block& block = *current->block;
  if (reinterpret_cast<uintptr_t>(row) % 16)
    machine->fail("misuse: load_matrices of a row that is not 16-byte aligned", site);
  if (at < block.shared || at + 16 > block.shared + machine->shape.shared_bytes)
    machine->fail("misuse: load_matrices from outside the block's shared memory", site);
  race::read(row, 16, site);
  Rows box{at, {}};
  if (transposed) {
    meet({~0u, "load_matrices_transposed", site, true}, &box, distribute<true>);
  } else {
    meet({~0u, "load_matrices", site, true}, &box, distribute<false>);
  }
  std::memcpy(words, box.words, sizeof box.words);
}

float half_to_float(uint16_t bits) { return half_table()[bits]; }

uint16_t float_to_half(float value) { return std::bit_cast<uint16_t>(_Float16(value)); }

}  // namespace emu
