// kernels.cuh has the three products of gate_gemm.h as kernels. A block makes one tile of one
// result. Which one follows from blockIdx.x, the columns of a row tile side by side, so that blocks
// running at the same time read the same rows.
#pragma once

#include "gate_gemm.h"
#include "loaders.cuh"

namespace brnn::cuda::gate_gemm {

template <class Shape, int kMost>
constexpr int kBlocks = kMost * 256 / Shape::kThreads;  // of a multiprocessor; kMost large ones

template <class S>
constexpr int kInputPartStages = kStages<S, 3>;
template <class S>
constexpr int kInputGradientStages = kStages<S, 4>;
template <class S>
constexpr int kWeightGradientsStages = kStages<S, 3>;

BRNN_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// ---- 1. gates = x W^T

template <class S>
struct InputPart {
  Operand<S> x;
  const S* weight;   // [groups * units, I]
  const S* bias_ih;  // [groups * units] or nullptr
  const S* bias_hh;  // [groups * units] or nullptr
  S* gates;          // [rows, groups * units]
  int rows;
  int groups, units;  // a group: columns that see the same x, one gate or all
  int bias_hh_end;    // columns from there on take no bias_hh
  int tiles_n;        // of a group
  int vector;         // of gates
  float scale;
};

template <class S, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, kBlocks<Shape, 2>)
    input_part_kernel(const __grid_constant__ InputPart<S> p) {
  using TileA = AlongK<S, Shape::kM>;
  using TileB = AlongK<S, Shape::kN>;
  const int tiles = p.groups * p.tiles_n, tile = int(blockIdx.x) % tiles;
  const int group = tile / p.tiles_n, n0 = tile % p.tiles_n * Shape::kN;
  const int m0 = int(blockIdx.x) / tiles * Shape::kM, K = p.x.K;

  auto a = masked<S, TileA, Shape::kThreads, true>(
      p.x, group, [&](int step) { return Coord{m0, step * kDepth<S>}; });
  const S* const weight = p.weight + (int64_t{group} * p.units + n0) * K;
  auto b = plain<S, TileB, Shape::kThreads>([&](int step) {
    const int k = step * kDepth<S>;
    return Window<const S>{weight + k, K, p.units - n0, K - k, p.x.vector};
  });

  Sums<Shape> sums = {};
  pipeline<S, kInputPartStages<S>>(
      a, b, 0, (K + kDepth<S> - 1) / kDepth<S>,
      [&](const unsigned char* tile_a, const unsigned char* tile_b, int) {
        multiply<S, Shape, TileA, TileB>(sums, tile_a, tile_b);
      });

  const int column0 = group * p.units + n0;
  const auto bias = [&](int n, int e) {
    const int u = Shape::column() + n * 8 + fragment_column(e), column = column0 + u;
    if (n0 + u >= p.units) return 0.f;
    return (p.bias_ih ? to_float(p.bias_ih[column]) : 0.f) +
           (p.bias_hh && column < p.bias_hh_end ? to_float(p.bias_hh[column]) : 0.f);
  };
  float biases[Shape::kFragmentsN][2];
#pragma unroll
  for (int n = 0; n < Shape::kFragmentsN; ++n) biases[n][0] = bias(n, 0), biases[n][1] = bias(n, 1);
  const int pitch = p.groups * p.units;
  const Window<S> to{p.gates + int64_t{m0} * pitch + column0, pitch, p.rows - m0, p.units - n0,
                     p.vector};
  store_sums<Shape>(
      to, [&](int m, int n, int e) { return sums[m][n][e] * p.scale + biases[n][e % 2]; });
}

// ---- 2. dx = sum over gates of m_k (da_k W_k)

template <class S>
struct InputGradient {
  const S* dz;          // [rows, pitch]
  const S* weight;      // [G*H, I]
  S* dx;                // [rows, I]
  const uint8_t* keep;  // [G, B, I], gate_stride apart, or nullptr
  int64_t gate_stride;
  int pitch;
  int column[kMostGates];  // of dz, where the gradients of a gate begin
  int gates, rows, H, I;
  int tiles_n;
  int vector_dz, vector;  // of dz; of weight, dx and keep
  float scale;
  Divider sequences;  // B
  Divider steps;      // tiles of k in a gate
};

// Adds to total what the masks of `gate` keep of sums, which start anew.
template <class S, class Shape>
BRNN_DEVICE void add_kept(const InputGradient<S>& p, int gate, int m0, int n0, Sums<Shape>& sums,
                          Sums<Shape>& total) {
#pragma unroll
  for (int m = 0; m < Shape::kFragmentsM; ++m)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = m0 + Shape::row() + m * 16 + fragment_row(e);
      const int column = n0 + Shape::column() + fragment_column(e);
      const uint8_t* const keep =
          p.keep + gate * p.gate_stride + int64_t{p.sequences.modulo(row)} * p.I + column;
#pragma unroll
      for (int n = 0; n < Shape::kFragmentsN; ++n) {
        const bool kept = !p.keep || (column + n * 8 < p.I && row < p.rows && keep[n * 8]);
        total[m][n][e] += kept ? sums[m][n][e] : 0.f;
        sums[m][n][e] = 0.f;
      }
    }
}

template <class S, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, kBlocks<Shape, 1>)
    input_gradient_kernel(const __grid_constant__ InputGradient<S> p) {
  using TileA = AlongK<S, Shape::kM>;
  using TileB = AcrossK<S, Shape::kN>;
  const int n0 = int(blockIdx.x) % p.tiles_n * Shape::kN;
  const int m0 = int(blockIdx.x) / p.tiles_n * Shape::kM;
  const int steps = int(p.steps.divisor);

  const S* const dz = p.dz + int64_t{m0} * p.pitch;
  auto a = plain<S, TileA, Shape::kThreads>([&](int step) {
    const int gate = p.steps.divide(step), k = (step - gate * steps) * kDepth<S>;
    return Window<const S>{dz + p.column[gate] + k, p.pitch, p.rows - m0, p.H - k, p.vector_dz};
  });
  auto b = plain<S, TileB, Shape::kThreads>([&](int step) {
    const int gate = p.steps.divide(step), k = (step - gate * steps) * kDepth<S>;
    const S* const corner = p.weight + (int64_t{gate} * p.H + k) * p.I + n0;
    return Window<const S>{corner, p.I, p.H - k, p.I - n0, p.vector};
  });

  Sums<Shape> sums = {}, total = {};
  int left = p.gate_stride ? steps : p.gates * steps;  // until a mask is due
  pipeline<S, kInputGradientStages<S>>(
      a, b, 0, p.gates * steps,
      [&](const unsigned char* tile_a, const unsigned char* tile_b, int step) {
        multiply<S, Shape, TileA, TileB>(sums, tile_a, tile_b);
        if (--left) return;
        add_kept<S, Shape>(p, p.steps.divide(step), m0, n0, sums, total);
        left = steps;
      });

  const Window<S> to{p.dx + int64_t{m0} * p.I + n0, p.I, p.rows - m0, p.I - n0, p.vector};
  store_sums<Shape>(to, [&](int m, int n, int e) { return total[m][n][e] * p.scale; });
}

// ---- 3. dW = dz^T (m x), dU = dz^T (m h_{t-1}), and the column sums of dz

template <class S>
struct WeightProduct {
  Operand<S> operand;
  S* weight;               // [groups * units, K]
  S* bias;                 // [groups * units] or nullptr
  int groups, units;       // a group: rows that see the same operand, one gate or all
  int column[kMostGates];  // of dz, where a group begins
  int tiles_m, tiles_n;
  int64_t partial_weight, partial_bias;  // where they begin in a set of partial sums
  float scale;
};

template <class S>
struct WeightGradients {
  WeightProduct<S> product[2];
  const S* dz;  // [rows, pitch]
  int rows, pitch, vector_dz;
  int tiles;        // of both products
  int steps;        // tiles of k in all
  int split_steps;  // of a block; the last may have less
  int splits;       // sets of partial sums; 1: there are none
  int partials_vector;
  float* partials;  // [splits, set]
  int64_t set;
};

template <class S, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, kBlocks<Shape, 2>)
    weight_gradients_kernel(const __grid_constant__ WeightGradients<S> p) {
  using TileA = AcrossK<S, Shape::kM>;
  using TileB = AcrossK<S, Shape::kN>;
  const int split = int(blockIdx.x) / p.tiles, tile = int(blockIdx.x) % p.tiles;
  const WeightProduct<S>& first = p.product[0];
  const int tiles_ih = first.groups * first.tiles_m * first.tiles_n;
  const WeightProduct<S>& q = p.product[tile >= tiles_ih];
  const int mine = tile >= tiles_ih ? tile - tiles_ih : tile;
  const int n0 = mine % q.tiles_n * Shape::kN, m0 = mine / q.tiles_n % q.tiles_m * Shape::kM;
  const int group = mine / q.tiles_n / q.tiles_m;
  const int first_step = split * p.split_steps;

  const S* const dz = p.dz + q.column[group] + m0;
  auto a = plain<S, TileA, Shape::kThreads>([&](int step) {
    const int row = step * kDepth<S>;
    return Window<const S>{dz + int64_t{row} * p.pitch, p.pitch, p.rows - row, q.units - m0,
                           p.vector_dz};
  });
  auto b = masked<S, TileB, Shape::kThreads, false>(
      q.operand, group, [&](int step) { return Coord{step * kDepth<S>, n0}; });

  const bool with_bias = q.bias && n0 == 0;
  Sums<Shape> sums = {};
  float ones[4] = {};
  pipeline<S, kWeightGradientsStages<S>>(
      a, b, first_step, smaller(first_step + p.split_steps, p.steps),
      [&](const unsigned char* tile_a, const unsigned char* tile_b, int) {
        multiply<S, Shape, TileA, TileB>(sums, tile_a, tile_b);
        if (with_bias) sum_over_k<S, Shape, TileA>(ones, tile_a);
      });

  const int row = group * q.units + m0, K = q.operand.K;  // of the results
  const int64_t corner = int64_t{row} * K + n0;
  const auto value = [&](int m, int n, int e) { return sums[m][n][e] * q.scale; };
  float* const partials = p.partials + split * p.set;
  if (p.splits > 1)
    store_sums<Shape>(Window<float>{partials + q.partial_weight + corner, K, q.units - m0, K - n0,
                                    p.partials_vector},
                      value);
  else
    store_sums<Shape>(Window<S>{q.weight + corner, K, q.units - m0, K - n0, q.operand.vector},
                      value);
  if (!with_bias || fragment_column(0) > 0) return;
#pragma unroll
  for (int e = 0; e < 4; e += 2) {
    const int u = Shape::summed_row() + fragment_row(e);
    if (m0 + u >= q.units) continue;
    if (p.splits > 1)
      partials[q.partial_bias + row + u] = ones[e];
    else
      q.bias[row + u] = round_to(S{}, ones[e]);
  }
}

template <class S>
struct PartialSums {
  const float* partials;  // [splits, set]
  S* part[4];             // of a set, one behind the other; nullptr: not wanted
  int64_t size[4];
  int64_t set;
  int splits;
};

constexpr int kSumThreads = 256;

template <class S>
__global__ void __launch_bounds__(kSumThreads)
    sum_partials_kernel(const __grid_constant__ PartialSums<S> p) {
  const int64_t i = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (i >= p.set) return;
  float sum = 0;
  for (int split = 0; split < p.splits; ++split) sum += p.partials[split * p.set + i];
  int64_t begin = 0;
#pragma unroll
  for (int part = 0; part < 4; begin += p.size[part++])
    if (p.part[part] && i >= begin && i < begin + p.size[part])
      p.part[part][i - begin] = round_to(S{}, sum);
}

}  // namespace brnn::cuda::gate_gemm
