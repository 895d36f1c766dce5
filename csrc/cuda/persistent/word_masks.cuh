// word_masks.cuh holds the mask of h_{t-1} or x_t, one per gate, in the order in which a lane
// holds h. Chunks of another warp (Place::own0) count as dropped: their weights are zero here, but
// 0 * inf is not.
//
// A lane holds h as words of two units (16 bit) or one (tf32). A mask of a word is another word, of
// all ones where a unit is kept: applying it is one AND, and a dropped NaN is gone.
#pragma once

#include "../device/intrinsics.cuh"
#include "tile.cuh"

namespace brnn::cuda {

enum class MaskForm {
  none,    // no masks here: none at all, or tied and applied before h is published
  ready,   // words to AND in registers for the whole sequence: G * 4 * chunks of them
  packed,  // 16 words in a register: an instruction and a half more for each AND
};

constexpr MaskForm untied_form(const Tiling& t, bool fused_input) {
  return packs_masks(t, fused_input) ? MaskForm::packed : MaskForm::ready;
}

// MaskView tells which units of h a gate keeps.
struct MaskView {
  const uint8_t* keep;  // [G, B, K] or nullptr: all
  int64_t gate_stride;
  int B, K;

  BRNN_DEVICE uint32_t operator()(int gate, int b, int k) const {
    return b < B && k < K && (!keep || keep[gate * gate_stride + int64_t(b) * K + k]);
  }
};

template <MaskForm Form, class S, int G, int Chunks>
class WordMasks;

template <class S, int G, int Chunks>
class WordMasks<MaskForm::none, S, G, Chunks> {
 public:
  static constexpr int words = 0;
  BRNN_DEVICE void load(const MaskView&, int, int chunk0, int own0, int) {
    foreign_ = own0 - chunk0;
  }
  BRNN_DEVICE void stay_packed() {}
  BRNN_DEVICE void save(uint32_t*, int) const {}
  BRNN_DEVICE void restore(const uint32_t*, int) {}
  BRNN_DEVICE uint32_t apply(uint32_t word, int, int i) const {
    return i / 4 < foreign_ ? 0 : word;
  }

 private:
  int foreign_ = 0;  // chunks
};

template <class S, int G, int Chunks>
class WordMasks<MaskForm::ready, S, G, Chunks> {
 public:
  static constexpr int words = G * 4 * Chunks;

  // Loads those of sequence b, for the chunks from `chunk0` on; q is lane % 4.
  BRNN_DEVICE void load(const MaskView& keep, int b, int chunk0, int own0, int q) {
#pragma unroll
    for (int gate = 0; gate < G; ++gate)
#pragma unroll
      for (int i = 0; i < 4 * Chunks; ++i) {
        words_[gate][i] = 0;
        if (chunk0 + i / 4 < own0) continue;
        const int k = Number<S>::unit_of_word(chunk0, i, q);
        uint32_t mask = keep(gate, b, k) * Number<S>::kFirst;
        if (Number<S>::per_word == 2) mask |= keep(gate, b, k + 1) * ~Number<S>::kFirst;
        words_[gate][i] = mask;
      }
  }
  BRNN_DEVICE void stay_packed() {}
  BRNN_DEVICE void save(uint32_t*, int) const {}
  BRNN_DEVICE void restore(const uint32_t*, int) {}
  BRNN_DEVICE uint32_t apply(uint32_t word, int gate, int i) const {
    return word & words_[gate][i];
  }

 private:
  uint32_t words_[G][4 * Chunks];
};

// A word's units are the highest bits of bytes once the register is shifted to the left: words 2 s
// and 2 s + 1 by s, the one from its first bytes, the other from those behind.
template <class S, int G, int Chunks>
class WordMasks<MaskForm::packed, S, G, Chunks> {
  static constexpr int kRegisters = packed_words(Chunks);

 public:
  static constexpr int words = G * kRegisters;

  BRNN_DEVICE void load(const MaskView& keep, int b, int chunk0, int own0, int q) {
#pragma unroll
    for (int gate = 0; gate < G; ++gate)
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) {
        uint32_t bits = 0;
#pragma unroll 1
        for (int j = 0; j < 16 && r * 16 + j < 4 * Chunks; ++j) {
          if (chunk0 + (r * 16 + j) / 4 < own0) continue;
          const int k = Number<S>::unit_of_word(chunk0, r * 16 + j, q);
          const int at = j % 2 * 8 * Number<S>::per_word + 7 - j / 2;
          bits |= keep(gate, b, k) << at;
          if (Number<S>::per_word == 2) bits |= keep(gate, b, k + 1) << (at + 8);
        }
        bits_[gate][r] = bits;
      }
  }
  // Where a block has several batch tiles, the masks of those that are not at work wait in memory
  // [words, stride].
  BRNN_DEVICE void save(uint32_t* to, int stride) const {
#pragma unroll
    for (int i = 0; i < words; ++i) to[i * stride] = bits_[i / kRegisters][i % kRegisters];
  }
  BRNN_DEVICE void restore(const uint32_t* from, int stride) {
#pragma unroll
    for (int i = 0; i < words; ++i) bits_[i / kRegisters][i % kRegisters] = from[i * stride];
  }
  // What is expanded from the registers stays in the time loop.
  BRNN_DEVICE void stay_packed() {
#pragma unroll
    for (int i = 0; i < words; ++i) opaque(bits_[i / kRegisters][i % kRegisters]);
  }
  BRNN_DEVICE uint32_t apply(uint32_t word, int gate, int i) const {
    const uint32_t bits = bits_[gate][i / 16] << (i % 16 / 2);
    if (Number<S>::per_word == 1)
      return word & (i % 2 ? spread_signs<0x1111>(bits) : spread_signs<0x0000>(bits));
    return word & (i % 2 ? spread_signs<0x3322>(bits) : spread_signs<0x1100>(bits));
  }

 private:
  uint32_t bits_[G][kRegisters];
};

}  // namespace brnn::cuda
