// host.cuh leads from a layer to the kernels of kernels.cuh: it chooses tiles and grids from the
// sizes and fills the parameters.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../device/launch.cuh"
#include "../plan/splits.h"
#include "kernels.cuh"

namespace brnn::cuda::gate_gemm {

// Large tiles need this many blocks to keep a GPU busy.
constexpr int64_t kEnoughBlocks = 256;

inline int64_t tiles_of(int64_t size, int64_t tile) { return size ? (size + tile - 1) / tile : 1; }

// Gives the widest aligned load where rows have `size` numbers: kLanes, kHalf, 2 or 1.
template <class S>
int vector_of(int64_t size) {
  if (size % kLanes<S> == 0) return kLanes<S>;
  if (size % kHalf<S> == 0) return kHalf<S>;
  return size % kPerWord<S> == 0 ? kPerWord<S> : 1;
}

template <class S>
int rows_of(const Layer<S>& layer) {
  return int(layer.T * layer.B);  // checks.h has seen to that
}

template <class S>
Operand<S> input_of(const Layer<S>& layer) {
  return {.values = layer.x,
          .first = nullptr,
          .shift = 0,
          .keep = layer.mask_x.keep,
          .gate_rows = int(layer.mask_x.untied() ? layer.B : 0),
          .lengths = layer.lengths,
          .resets = nullptr,
          .T = int(layer.T),
          .K = int(layer.I),
          .vector = vector_of<S>(layer.I),
          .reverse = false,
          .sequences = Divider(layer.B),
          .r = nullptr,
          .r_pitch = 0,
          .r_gate = -1};
}

template <class S>
Operand<S> state_of(Cell cell, const Backward<S>& layer) {
  Operand<S> h = input_of(layer);
  h.values = layer.y, h.first = layer.h0;
  h.shift = int(layer.reverse ? layer.B : -layer.B);
  h.resets = layer.resets;
  h.keep = layer.mask_h.keep, h.gate_rows = int(layer.mask_h.untied() ? layer.B : 0);
  h.K = int(layer.H), h.vector = vector_of<S>(layer.H);
  h.reverse = layer.reverse;
  const CellTraits is = traits(cell);
  if (is.reset_before)  // U_n sees r * m h
    h.r = layer.gates, h.r_pitch = int(is.gates * layer.H), h.r_gate = is.candidate;
  return h;
}

template <class Params>
void launch_tiles(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes,
                  void* stream, const Params& params) {
  if (blocks > 0x7FFFFFFF)
    throw std::runtime_error("x: expected a layer of at most 2147483647 tiles, got " +
                             std::to_string(blocks));
  if (blocks == 0) return;
  launch(kernel, Grid{.x = unsigned(blocks), .threads = threads, .shared_bytes = shared_bytes},
         stream, params);
}

// ---- 1. input part

template <class S>
InputPart<S> input_part_of(Cell cell, const Forward<S>& layer, S* gates) {
  const CellTraits is = traits(cell);
  const int G = is.gates, groups = layer.mask_x.untied() ? G : 1;
  const int64_t H = layer.H;
  return {.x = input_of(layer),
          .weight = layer.weight_ih,
          .bias_ih = layer.bias_ih,
          .bias_hh = layer.bias_hh,
          .gates = gates,
          .rows = rows_of(layer),
          .groups = groups,
          .units = int(G / groups * H),
          .bias_hh_end = int(is.biases_of_input * H),
          .tiles_n = 0,  // launch_input_part knows the tiles
          .vector = vector_of<S>(G / groups * H),
          .scale = float(layer.mask_x.scale)};
}

template <class S, class Shape>
int64_t input_part_blocks(const InputPart<S>& p) {
  if (p.rows == 0) return 0;
  return tiles_of(p.rows, Shape::kM) * p.groups * tiles_of(p.units, Shape::kN);
}

template <class Shape, class S>
void launch_input_part(InputPart<S> p, void* stream) {
  p.tiles_n = int(tiles_of(p.units, Shape::kN));
  launch_tiles(input_part_kernel<S, Shape>, input_part_blocks<S, Shape>(p), Shape::kThreads,
               kInputPartStages<S> * (AlongK<S, Shape::kM>::kBytes + AlongK<S, Shape::kN>::kBytes),
               stream, p);
}

template <class S>
void input_part(Cell cell, const Forward<S>& layer, S* gates, void* stream) {
  const InputPart<S> p = input_part_of(cell, layer, gates);
  if (input_part_blocks<S, Large>(p) >= kEnoughBlocks)
    launch_input_part<Large>(p, stream);
  else
    launch_input_part<Small>(p, stream);
}

// ---- 2. input gradient

template <class S>
InputGradient<S> input_gradient_of(Cell cell, const Backward<S>& layer, const S* dz) {
  const CellTraits is = traits(cell);
  const Mask& mask = layer.mask_x;
  InputGradient<S> p{.dz = dz,
                     .weight = layer.weight_ih,
                     .dx = layer.dx,
                     .keep = mask.keep,
                     .gate_stride = mask.gate_stride,
                     .pitch = int(is.slots * layer.H),
                     .column = {},
                     .gates = is.gates,
                     .rows = rows_of(layer),
                     .H = int(layer.H),
                     .I = int(layer.I),
                     .tiles_n = 0,  // launch_input_gradient knows the tiles
                     .vector_dz = vector_of<S>(layer.H),
                     .vector = vector_of<S>(layer.I),
                     .scale = float(mask.scale),
                     .sequences = Divider(layer.B),
                     .steps = Divider(tiles_of(layer.H, kDepth<S>))};
  for (int gate = 0; gate < is.gates; ++gate) p.column[gate] = int(is.slot_of_a[gate] * layer.H);
  return p;
}

template <class S, class Shape>
int64_t input_gradient_blocks(const InputGradient<S>& p) {
  return p.rows && p.I ? tiles_of(p.rows, Shape::kM) * tiles_of(p.I, Shape::kN) : 0;
}

template <class Shape, class S>
void launch_input_gradient(InputGradient<S> p, void* stream) {
  p.tiles_n = int(tiles_of(p.I, Shape::kN));
  launch_tiles(
      input_gradient_kernel<S, Shape>, input_gradient_blocks<S, Shape>(p), Shape::kThreads,
      kInputGradientStages<S> * (AlongK<S, Shape::kM>::kBytes + AcrossK<S, Shape::kN>::kBytes),
      stream, p);
}

template <class S>
void input_gradient(Cell cell, const Backward<S>& layer, const S* dz, void* stream) {
  const InputGradient<S> p = input_gradient_of(cell, layer, dz);
  if (input_gradient_blocks<S, Large>(p) >= kEnoughBlocks / 2)  // one to a multiprocessor
    launch_input_gradient<Large>(p, stream);
  else
    launch_input_gradient<Small>(p, stream);
}

// ---- 3. weight gradients

// Describes dW or dU, without its tiles: `of` names the slots that flow into a, or into q.
template <class S>
WeightProduct<S> weight_product_of(const Operand<S>& operand, const Mask& mask, int gates,
                                   const int (&of)[kMostGates], int64_t H, S* weight, S* bias) {
  bool together =
      !mask.untied() && operand.r_gate < 0;  // gates that see one operand, in slots side by side
  for (int gate = 0; gate < gates; ++gate) together &= of[gate] == of[0] + gate;
  const int groups = together ? 1 : gates;
  WeightProduct<S> p{.operand = operand,
                     .weight = weight,
                     .bias = bias,
                     .groups = groups,
                     .units = int(gates / groups * H),
                     .column = {},
                     .tiles_m = 0,  // cut knows the tiles
                     .tiles_n = 0,
                     .partial_weight = 0,
                     .partial_bias = 0,
                     .scale = float(mask.scale)};
  for (int group = 0; group < groups; ++group) p.column[group] = int(of[group] * H);
  return p;
}

template <class S>
WeightGradients<S> weight_gradients_of(Cell cell, const Backward<S>& layer, const S* dz) {
  const CellTraits is = traits(cell);
  const int64_t I = layer.I, H = layer.H, GH = is.gates * H;
  const Operand<S> x = input_of(layer), h = state_of(cell, layer);
  const int rows = rows_of(layer), steps = int((int64_t{rows} + kDepth<S> - 1) / kDepth<S>);
  WeightGradients<S> p{.product = {weight_product_of(x, layer.mask_x, is.gates, is.slot_of_a, H,
                                                     layer.dweight_ih, layer.dbias_ih),
                                   weight_product_of(h, layer.mask_h, is.gates, is.slot_of_q, H,
                                                     layer.dweight_hh, layer.dbias_hh)},
                       .dz = dz,
                       .rows = rows,
                       .pitch = int(is.slots * H),
                       .vector_dz = vector_of<S>(H),
                       .tiles = 0,  // cut knows them
                       .steps = steps,
                       .split_steps = steps,
                       .splits = 1,
                       .partials_vector = I % 2 == 0 && H % 2 == 0 ? 2 : 1,
                       .partials = nullptr,
                       .set = 0};
  p.product[1].partial_weight = GH * I;
  p.product[0].partial_bias = GH * (I + H);
  p.product[1].partial_bias = GH * (I + H + (layer.dbias_ih ? 1 : 0));
  p.set = p.product[1].partial_bias + (layer.dbias_hh ? GH : 0);
  return p;
}

// Cuts the results into tiles.
template <class Shape, class S>
void cut(WeightGradients<S>& p) {
  p.tiles = 0;
  for (WeightProduct<S>& q : p.product) {
    q.tiles_m = int(tiles_of(q.units, Shape::kM));
    q.tiles_n = int(tiles_of(q.operand.K, Shape::kN));
    p.tiles += q.groups * q.tiles_m * q.tiles_n;
  }
}

// Cuts k into at most `wanted` splits, none of them empty.
template <class S>
void split(WeightGradients<S>& p, int64_t wanted) {
  p.splits = 1, p.split_steps = p.steps;
  if (wanted < 2 || p.steps == 0) return;
  p.split_steps = int(tiles_of(p.steps, wanted));
  p.splits = int(tiles_of(p.steps, p.split_steps));
}

// A multiprocessor does 1,024 products of 16-bit numbers a cycle, half as many of tf32, whose steps
// have half the depth.
template <class Shape, class S>
void split_as_worthwhile(WeightGradients<S>& p) {
  split(p, worthwhile_splits({.tiles = p.tiles,
                              .rows = p.rows,
                              .steps = p.steps,
                              .partials = p.set,
                              .step_cycles = Shape::kM * Shape::kN * 32 / 1024.}));
}

// Cuts everything; tells whether the tiles are large ones.
template <class S>
bool cut(WeightGradients<S>& p) {
  cut<Large>(p), split_as_worthwhile<Large>(p);
  if (int64_t{p.tiles} * p.splits >= kEnoughBlocks / 2) return true;
  cut<Small>(p), split_as_worthwhile<Small>(p);
  return false;
}

template <class S>
size_t partial_bytes(const WeightGradients<S>& p) {
  return p.splits > 1 ? size_t(p.splits * p.set) * sizeof(float) : 0;
}

template <class S>
void launch_sum_partials(const WeightGradients<S>& p, void* stream) {
  const WeightProduct<S>&ih = p.product[0], &hh = p.product[1];
  const int64_t GH = int64_t{ih.groups} * ih.units;
  const PartialSums<S> sum{
      .partials = p.partials,
      .part = {ih.weight, hh.weight, ih.bias, hh.bias},
      .size = {GH * ih.operand.K, GH * hh.operand.K, ih.bias ? GH : 0, hh.bias ? GH : 0},
      .set = p.set,
      .splits = p.splits};
  launch_tiles(sum_partials_kernel<S>, tiles_of(p.set, kSumThreads), kSumThreads, 0, stream, sum);
}

template <class Shape, class S>
void launch_weight_gradients(WeightGradients<S> p, void* scratch, void* stream) {
  p.partials = static_cast<float*>(scratch);
  launch_tiles(
      weight_gradients_kernel<S, Shape>, int64_t{p.tiles} * p.splits, Shape::kThreads,
      kWeightGradientsStages<S> * (AcrossK<S, Shape::kM>::kBytes + AcrossK<S, Shape::kN>::kBytes),
      stream, p);
  if (p.splits > 1) launch_sum_partials(p, stream);
}

template <class S>
size_t weight_gradients_scratch_bytes(Cell cell, const Backward<S>& layer) {
  WeightGradients<S> p = weight_gradients_of<S>(cell, layer, nullptr);
  cut(p);
  return partial_bytes(p);
}

template <class S>
void weight_gradients(Cell cell, const Backward<S>& layer, const S* dz, void* scratch,
                      void* stream) {
  WeightGradients<S> p = weight_gradients_of(cell, layer, dz);
  if (cut(p))
    launch_weight_gradients<Large>(p, scratch, stream);
  else
    launch_weight_gradients<Small>(p, scratch, stream);
}

}  // namespace brnn::cuda::gate_gemm
