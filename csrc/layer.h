// layer.h describes one recurrent layer in one direction as plain sizes and pointers. It names
// neither torch nor CUDA, so every engine takes it.
//
// Letters: T time steps, B sequences, I input size, H hidden size, G gates (LSTM i f g o, GRU r z
// n, RNN h). All tensors are dense and row-major; none alias. S is the storage type of every
// tensor.
#pragma once

#include <cstdint>

#include "cells.h"
#include "dtypes.h"

namespace brnn {

// A Mask says what is kept of an operand with K columns. keep == nullptr: everything.
struct Mask {
  const uint8_t* keep = nullptr;  // [G, B, K] untied or [B, K] tied; 1 = kept
  int64_t gate_stride = 0;        // B * K untied, 0 tied
  double scale = 1.0;             // 1 / (1 - p)

  BRNN_INLINE bool untied() const { return gate_stride != 0; }
};

// Counts the steps of sequence b, in 0..T whatever stands in `lengths`: on a GPU nobody can check
// them without waiting for it, and a kernel must not read past the end.
BRNN_INLINE int64_t length_of(const int64_t* lengths, int64_t b, int64_t T) {
  if (!lengths) return T;
  const int64_t length = lengths[b];
  return length < 0 ? 0 : length < T ? length : T;
}

// Tells whether zero enters step t of sequence b instead of the state that left the step before it
// in the direction of the run (h0 and c0 too); no gradient goes back there. It is the one flag that
// an engine reads of a step: who calls the op has moved the beginnings of segments to where a
// reversed run enters them. Past a sequence's length it says nothing.
BRNN_INLINE bool resets_at(const uint8_t* resets, int64_t b, int64_t t, int64_t B) {
  return resets && resets[t * B + b];
}

// These tell whether a sequence of `length` steps meets its h0 at step t, and whether it leaves its
// h_n there.
template <class Time>
BRNN_INLINE bool starts_at(Time t, Time length, bool reverse) {
  return t == (reverse ? length - 1 : 0);
}
template <class Time>
BRNN_INLINE bool ends_at(Time t, Time length, bool reverse) {
  return t == (reverse ? 0 : length - 1);
}

// A Layer is what forward and backward share.
template <class S>
struct Layer {
  int64_t T, B, I, H;
  bool reverse;            // from each sequence's last step to its first
  const int64_t* lengths;  // [B], or nullptr: all T; see length_of
  const uint8_t* resets;   // [T, B] 1 = reset, or nullptr: nowhere; see resets_at
  Mask mask_x;             // K = I
  Mask mask_h;             // K = H

  const S* x;          // [T, B, I]
  const S* h0;         // [B, H]
  const S* c0;         // [B, H]; where the cell has a c
  const S* weight_ih;  // [G*H, I]
  const S* weight_hh;  // [G*H, H]

  BRNN_INLINE int64_t length(int64_t b) const { return length_of(lengths, b, T); }
  // Gives the time step that is processed s-th.
  BRNN_INLINE int64_t time(int64_t s) const { return reverse ? T - 1 - s : s; }
  BRNN_INLINE bool inside(int64_t b, int64_t t) const { return t < length(b); }
  BRNN_INLINE bool resets_at(int64_t b, int64_t t) const {
    return brnn::resets_at(resets, b, t, B);
  }
  BRNN_INLINE bool starts(int64_t b, int64_t t) const { return starts_at(t, length(b), reverse); }
  BRNN_INLINE bool ends(int64_t b, int64_t t) const { return ends_at(t, length(b), reverse); }
};

template <class S>
struct Forward : Layer<S> {
  const S* bias_ih;  // [G*H] or nullptr
  const S* bias_hh;  // [G*H] or nullptr

  S* y;      // [T, B, H]
  S* h_n;    // [B, H]
  S* c_n;    // [B, H]; where the cell has a c
  S* gates;  // [T, B, G*H] activated gates, or nullptr: not saved
  S* saved;  // [T, B, H] LSTM: c_t; GRU (reset after): U_n (m h) + b_n; nullptr: not saved
};

template <class S>
struct Backward : Layer<S> {
  const S* y;      // [T, B, H]
  const S* gates;  // [T, B, G*H]
  const S* saved;  // [T, B, H], as Forward
  const S* dy;     // [T, B, H] or nullptr: zero
  const S* dh_n;   // [B, H] or nullptr
  const S* dc_n;   // [B, H] or nullptr

  S* dx;          // [T, B, I] or nullptr: not wanted
  S* dh0;         // [B, H]
  S* dc0;         // [B, H]; where the cell has a c
  S* dweight_ih;  // [G*H, I]
  S* dweight_hh;  // [G*H, H]
  S* dbias_ih;    // [G*H] or nullptr
  S* dbias_hh;    // [G*H] or nullptr
};

}  // namespace brnn
