// cost.h is the plan's model of time, in microseconds. It has to rank engines, not to predict: the
// constants come from the instructions of compiled kernels at 1.75 GHz and from stated rates of an
// H100, not from measurements. Other GPUs are taken as an H100 with another number of
// multiprocessors.
#pragma once

#include <algorithm>

#include "plan.h"

namespace brnn::cuda::cost {

// ---- a persistent kernel

// The latency of an engine (kEngines) is paid at every step. In L2: a store one way, a load both
// ways, and what a poll loses; flags pay the way twice and a fence; a cluster 0.30, and a fence of
// the whole GPU, 200 to 600 cycles. The start is the launch, and U into registers; of a grid a
// cooperative launch, and the slots that are filled.

// A unit tile of a batch tile sends 128 cells through MUFU, 10 results each (LSTM), 16 a cycle.
inline constexpr double kCells = 0.046;
// The sum over warps costs stores, a barrier and loads.
inline constexpr double kSums = 0.055;
// Each gate, warp and chunk of k takes two mma, with their load and AND of h.
inline constexpr double kProduct = 0.0026;
// Beside it, as often, masks are unpacked, and dz of every gate comes from L2 or from shared
// memory.
inline constexpr double kUnpackMasks = 0.0028;
inline constexpr double kLoadGradients = 0.0045;
inline constexpr double kLoadGradientsShared = 0.0023;
// Clusters lie within a GPC, some multiprocessors of which are left over.
inline constexpr double kClusterShare = 0.9;

// Gives how long one batch tile keeps a multiprocessor busy in each step.
constexpr double work(Engine engine, Pass pass, const Tiling& t, int gates, bool untied) {
  const int products = t.unit_tiles * t.k_warps * t.chunks * gates;
  double time = kCells * t.unit_tiles * gates / 4 + kProduct * products;
  if (t.k_warps > 1) time += kSums;
  if (pass == Pass::backward)
    time += products * (traits(engine).exchanges_shared ? kLoadGradientsShared : kLoadGradients);
  else if (t.looped && untied)
    time += products * kUnpackMasks;
  return time;
}

// ---- stepwise: a product by the library and a pointwise kernel, each step

inline constexpr double kLaunch = 2.5;      // one kernel after another on a stream
inline constexpr double kBandwidth = 20e3;  // bytes a microsecond and multiprocessor, from L2

// The library's products reach so many FLOP a microsecond and multiprocessor.
constexpr double flop_rate(Precision precision) {
  switch (precision) {
    case Precision::bfloat16:
    case Precision::float16: return 2.5e6;
    case Precision::tf32: return 1.25e6;
    case Precision::float32: return 0.25e6;
    case Precision::float64: return 0.12e6;
  }
  return 0;
}

inline double stepwise_step(const Problem& p, int gates, const Device& device) {
  const double B = double(p.B), H = double(p.H), multiprocessors = device.multiprocessors;
  const double bandwidth = kBandwidth * multiprocessors, bytes = bytes_of(p.precision);
  const double product =
      std::max(2 * B * gates * H * H / (flop_rate(p.precision) * multiprocessors),
               gates * H * H * bytes / bandwidth);
  const double pointwise = B * H * (4 * gates + 3) * bytes / bandwidth;  // gates: 4 reads or writes
  const int launches = traits(p.cell).reset_before ? 4 : 2;
  return launches * kLaunch + product + pointwise;
}

}  // namespace brnn::cuda::cost
