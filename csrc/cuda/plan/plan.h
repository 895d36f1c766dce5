// plan.h says which engine runs a layer, with which tiles. It asks sizes and device limits alone
// and is plain C++, so the same function plans for the GPU at hand and for one that is far away.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "../../layer.h"
#include "tilings.h"

namespace brnn::cuda {

enum class Precision { bfloat16, float16, tf32, float32, float64 };
constexpr Precision precision_of(Dtype dtype, bool allow_tf32) {
  switch (dtype) {
    case Dtype::bfloat16: return Precision::bfloat16;
    case Dtype::float16: return Precision::float16;
    case Dtype::float32: return allow_tf32 ? Precision::tf32 : Precision::float32;
    case Dtype::float64: return Precision::float64;
  }
  return Precision::float64;
}
// Gives the bytes of a number in memory.
constexpr int bytes_of(Precision precision) {
  switch (precision) {
    case Precision::bfloat16:
    case Precision::float16: return 2;
    case Precision::tf32:
    case Precision::float32: return 4;
    case Precision::float64: return 8;
  }
  return 0;
}

// A plan needs to know this of a GPU.
struct Device {
  std::string name;
  int major, minor;  // compute capability
  int multiprocessors;
  int shared_bytes_per_block;  // the opt-in limit
  int registers_per_block;
  bool cooperative_launch;
};

struct Recurrence {
  Engine engine;
  Tiling tiling;    // not of stepwise, like what follows
  int batch_tiles;  // of a block
  int blocks_x;     // over units; also the size of a cluster
  int blocks_y;     // over the batch
  int steps;        // of a launch
  int threads;
  int registers;  // of a thread; foreseen, not measured
  int shared_bytes;
  bool fused_input;     // block, forward: the input part is computed inside
  bool named;           // asked for by name: it runs or raises, stepwise never takes its place
  double microseconds;  // of a step, the start shared by those of a launch; a model (cost.h)
  std::string reason;
};

struct Plan {
  Precision precision;
  bool tensor_cores;  // part 1 by gate_gemm; otherwise by products
  Recurrence forward, backward;
};

struct Problem {
  Cell cell;
  int64_t T, B, I, H;
  Precision precision;
  bool untied_h;  // recurrent masks of their own for each gate
  bool save;      // forward will be followed by backward
};

// `wanted`: "auto", or the name of an engine, which then runs or is refused with its reason
// (std::runtime_error). An engine that has no backward (cluster), or that is refused for a backward
// that will not come (!save), leaves the choice for backward to "auto".
Plan plan(const Problem& problem, const Device& device, const std::string& wanted = "auto");

// Returns which instances backward takes of those that differ in it: kBackwardAhead, unless a
// measurement asks for others by BAYESRNN_BACKWARD_AHEAD in the environment, which is not to change
// while a layer runs.
int backward_ahead();

// Returns how many steps a launch of a grid runs at most, or 0 where the plan finds that out from
// kStageBytes: BAYESRNN_GRID_STEPS of the environment, for a measurement, which is not to change
// while a layer runs.
int64_t grid_steps();

// Returns the engine of that name, or none for "auto". Throws std::runtime_error for another name.
std::optional<Engine> engine_of(const std::string& wanted);

// Lists what `wanted` may be, for messages: "auto, block, ...".
std::string engine_names();
const char* name(Precision precision);
// Writes JSON for bayesrnn_cuda.plan.
std::string describe(const Plan& plan);

}  // namespace brnn::cuda
