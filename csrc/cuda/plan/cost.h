// cost.h is the plan's model of time, in microseconds. It has to rank engines, not to predict. What
// a multiprocessor does in a step is counted in cycles, from the instructions of compiled kernels;
// how long a cycle takes, and what a cycle brings, is a row of kRates. Nothing here is measured:
// docs/gpu.md says which probe tells which constant.
#pragma once

#include <algorithm>

#include "plan.h"
#include "shared_layout.h"

namespace brnn::cuda::cost {

// ---- devices

// Rates say what a cycle is and brings, by NVIDIA's architecture papers, boost clocks of parts as
// sold; L2 as others measured it. A multiprocessor's mma.sync on Hopper and Blackwell is taken as
// Ampere's: only wgmma and tcgen05, which the library's products use, are faster there.
struct Rates {
  double gigahertz;
  double mma_cycles;  // of a multiprocessor, for one mma.sync m16n8k16 in 16 bit or m16n8k8 in tf32
  double l2_bytes;    // a cycle, of the whole chip
  double matrix_flop;  // a cycle and multiprocessor, of the library's products in 16 bit
  double float_flop;   // the same in float32 without TF32
};
struct CapabilityRates {
  int major, minor;  // from here on
  Rates rates;
};
inline constexpr CapabilityRates kRates[] = {
    {8, 0, {1.41, 2, 3200, 2048, 128}},   // A100
    {8, 6, {2.5, 8, 2000, 512, 256}},     // RTX 30 and 40
    {9, 0, {1.75, 2, 3200, 4096, 256}},   // H100, H200
    {10, 0, {1.85, 2, 6000, 8192, 256}},  // B200
    {12, 0, {2.4, 8, 2500, 512, 256}},    // RTX 50
};
constexpr const Rates& rates(const Device& device) {
  const Rates* found = &kRates[0].rates;
  for (const CapabilityRates& row : kRates)
    if (device.major > row.major || (device.major == row.major && device.minor >= row.minor))
      found = &row.rates;
  return *found;
}
constexpr double microseconds(double cycles, const Rates& r) {
  return cycles / (r.gigahertz * 1e3);
}

// ---- a persistent kernel

// The latency of an engine (kEngines) is paid at every step. In L2: a store one way, a load both
// ways, and what a poll loses; flags pay the way twice and a fence; a cluster 0.30, and a fence of
// the whole GPU, 200 to 600 cycles. The start is the kernel that packs U, the launch, and U into
// registers; of a grid a cooperative launch, and the stages that are filled. A layer in
// several launches is charged it for each, although U is packed once. To fill 128 MB of stages
// takes 40 us by the bandwidth of an H100's memory, which no part of the model has.

// A unit tile of a batch tile sends 128 elements of four gates through MUFU, 10 results each, 16 a
// cycle.
inline constexpr double kElementCycles = 80;
// The sum over warps costs a barrier and the latency of its loads, beside its bytes.
inline constexpr double kSums = 76;
inline constexpr double kSharedBytes = 128;  // a cycle
// Each gate, warp and chunk of k takes, beside two mma, the load and AND of h, and where masks are
// packed their unpacking.
inline constexpr double kOperand = 0.55;
inline constexpr double kUnpackMasks = 2.9;
// One multiprocessor gets from L2 at most so many bytes a cycle.
inline constexpr double kL2Bytes = 64;
// Clusters lie within a GPC, some multiprocessors of which are left over.
inline constexpr double kClusterShare = 0.9;

// Gives how long one batch tile keeps a multiprocessor busy in each step, while `busy` of them do
// so and share L2.
constexpr double work(Engine engine, Pass pass, const Tiling& t, const CellTraits& cell,
                      bool untied, const Device& device, int64_t busy) {
  const Rates& r = rates(device);
  const int gates = cell.gates;
  const int chunks = t.unit_tiles * t.k_warps * t.chunks, products = chunks * gates;
  double cycles =
      kElementCycles * t.unit_tiles * gates / 4 + (2 * r.mma_cycles + kOperand) * products;
  const SharedLayout layout = shared_layout(pass, t, cell, untied);
  const int sum_bytes = 4 * layout.buffer * layout.sum;  // stored, and then loaded
  cycles += 2 * sum_bytes / kSharedBytes + (sum_bytes > 0 ? kSums : 0);
  if (pass == Pass::forward && t.looped && untied) cycles += products * kUnpackMasks;
  // h, or dz of every gate, for each warp. What comes from shared memory hides behind the products
  // of four gates forward; backward each chunk has one.
  const double bytes = double(kChunkBytes) * (pass == Pass::forward ? chunks : products);
  if (!traits(engine).exchanges_shared)
    cycles += bytes / std::min(kL2Bytes, r.l2_bytes / double(busy));
  else if (pass == Pass::backward)
    cycles += bytes / kSharedBytes;
  return microseconds(cycles, r);
}

// ---- stepwise: a product by the library and a pointwise kernel, each step

// The CPU's time for a kernel and for a product of the library; and a kernel's on the GPU beside
// its work, after another on the same stream. Whichever is longer, CPU or GPU, is what a step
// takes.
inline constexpr double kLaunch = 2.5, kLibraryCall = 5;
inline constexpr double kKernel = 2.5;
// The library's products of a step in 16 bit reach this share of the rate of tensor cores;
// flop_rate has those of the other precisions.
inline constexpr double kLibraryShare = 0.35;

// The library's products reach so many FLOP a cycle and multiprocessor. tf32 names the setting of
// the recurrence; products of float32 follow torch's for matrix products, which is float32
// throughout unless the user changes it.
constexpr double flop_rate(Precision precision, const Rates& r) {
  switch (precision) {
    case Precision::bfloat16:
    case Precision::float16: return kLibraryShare * r.matrix_flop;
    case Precision::tf32:
    case Precision::float32: return 0.6 * r.float_flop;
    case Precision::float64: return 0.3 * r.float_flop;
  }
  return 0;
}

inline double stepwise_step(const Problem& p, int gates, const Device& device) {
  const Rates& r = rates(device);
  const double B = double(p.B), H = double(p.H), bytes = bytes_of(p.precision);
  const double flop = flop_rate(p.precision, r) * device.multiprocessors;
  const double product = std::max(2 * B * gates * H * H / flop, gates * H * H * bytes / r.l2_bytes);
  const double pointwise = B * H * (4 * gates + 3) * bytes / r.l2_bytes;  // gates: 4 times
  const int products = traits(p.cell).reset_before ? 2 : 1;
  const double cpu = products * (kLaunch + kLibraryCall);
  const double gpu = 2 * products * kKernel + microseconds(product + pointwise, r);
  return std::max(cpu, gpu);
}

}  // namespace brnn::cuda::cost
