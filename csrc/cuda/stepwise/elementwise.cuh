// elementwise.cuh has what the kernels with one thread per element share (stepwise.cuh,
// products.cuh): their grid, numbers of every storage type, and accurate gate functions.
#pragma once

#include <cmath>
#include <type_traits>

#include "../device/launch.cuh"
#include "../run_layer.h"

namespace brnn::cuda::elementwise {

// ---- numbers

// This is what an S is computed in.
template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
BRNN_DEVICE Compute<S> wide(S value) {
  if constexpr (std::is_same_v<S, double>)
    return value;
  else
    return to_float(value);
}

template <class S>
BRNN_DEVICE S narrow(Compute<S> value) {
  if constexpr (std::is_same_v<S, double>)
    return value;
  else
    return round_to(S{}, value);
}

// This serves cells.h where DeviceMath is not enough: it is right to the last places.
template <class C>
struct PreciseMath {
  using Value = C;
  BRNN_DEVICE static C value(C x) { return x; }
  BRNN_DEVICE static C sigmoid(C x) {
    if constexpr (std::is_same_v<C, double>)
      return 1 / (1 + ::exp(-x));
    else
      return 1 / (1 + ::expf(-x));
  }
  BRNN_DEVICE static C tanh(C x) {
    if constexpr (std::is_same_v<C, double>)
      return ::tanh(x);
    else
      return ::tanhf(x);
  }
};

template <class S>
using MathOf = std::conditional_t<DtypeOf<S>::coarse, DeviceMath, PreciseMath<Compute<S>>>;

// Calls f with the gate algebra of `cell` (cells.h) for storage type S.
template <class S, class F>
auto with_algebra(brnn::Cell cell, const F& f) {
  return with_cell(cell, [&]<template <class> class CellOf>() { return f(CellOf<MathOf<S>>{}); });
}

// ---- threads

constexpr int kThreads = 128;

struct Element {
  int64_t row, column;
  int64_t index;  // row * columns + column
  bool exists;
};

// This cuts [rows, columns] into blocks of 2^k columns, so that no thread divides by `columns`.
struct Elements {
  int64_t rows, columns;
  int log_width;  // of a block
  int64_t tiles;  // blocks beside each other

  Elements(int64_t rows, int64_t columns) : rows(rows), columns(columns), log_width(0) {
    while ((1 << log_width) < kThreads && (1 << log_width) < columns) ++log_width;
    tiles = (columns + (1 << log_width) - 1) >> log_width;
  }

  int64_t blocks() const {
    const int block_rows = kThreads >> log_width;
    return (rows + block_rows - 1) / block_rows * tiles;
  }

  // Gives this thread's element.
  BRNN_DEVICE Element mine() const {
    const unsigned width = 1u << log_width, tile = blockIdx.x % unsigned(tiles);
    const int64_t above = blockIdx.x / unsigned(tiles);
    const int64_t row = above * (kThreads >> log_width) + (threadIdx.x >> log_width);
    const int64_t column = int64_t{tile} * width + (threadIdx.x & (width - 1));
    return {row, column, row * columns + column, row < rows && column < columns};
  }
};

// Launches one thread for each of p.elements.
template <class Params>
void launch_elements(void (*kernel)(Params), const Host& host, const Params& p) {
  if (const int64_t blocks = p.elements.blocks())
    launch(kernel, Grid{.x = unsigned(blocks), .threads = kThreads}, host.stream, p);
}

// ---- sequences and masks

// A Moment is a sequence at time t, which may lie before or after all steps; layer.h has the
// meaning of each.
struct Moment {
  bool inside, starts, ends;
  bool resets;  // zero enters the step

  template <class S>
  BRNN_DEVICE Moment(const Layer<S>& layer, int64_t b, int64_t t) {
    const int64_t length = length_of(layer.lengths, b, layer.T);
    inside = t >= 0 && t < length;
    starts = starts_at(t, length, layer.reverse);
    ends = ends_at(t, length, layer.reverse);
    resets = inside && resets_at(layer.resets, b, t, layer.B);
  }
};

// Gives element (b, u) of the state before time t: of `first` [B, H], of `after` [T, B, H], or
// zero.
template <class S>
BRNN_DEVICE S state_before(const Layer<S>& layer, const S* first, const S* after, int64_t b,
                           int64_t u, int64_t t) {
  const Moment now(layer, b, t);
  if (now.resets) return S{};
  if (now.starts) return first[b * layer.H + u];
  return after[((layer.reverse ? t + 1 : t - 1) * layer.B + b) * layer.H + u];
}

// Tells whether the mask of `gate` keeps element `index` of [B, K].
BRNN_DEVICE bool kept(const Mask& mask, int gate, int64_t index) {
  return !mask.keep || mask.keep[gate * mask.gate_stride + index];
}

// Tells the same for all gates, gate k in bit k: the loads are under way together.
template <int G>
BRNN_DEVICE unsigned kept_by(const Mask& mask, int64_t index) {
  unsigned bits = 0;
  for (int k = 0; k < G; ++k) bits |= unsigned(kept(mask, k, index)) << k;
  return bits;
}

}  // namespace brnn::cuda::elementwise
