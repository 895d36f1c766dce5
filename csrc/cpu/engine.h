// engine.h says what the CPU engine offers, and the little it needs from its host.
//
// The engine is compiled once per instruction set (isa/*.cpp) and chosen at run time. It includes
// no torch header: threads come from the host, and memory is one scratch block that the caller
// gives.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../layer.h"

namespace brnn::cpu {

// Calls body(context, begin, end) on disjoint ranges that cover [0, count), perhaps in parallel.
// It promises no concurrency: no range may wait for another.
using Body = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t count, Body body, void* context);

struct Host {
  ParallelFor parallel_for;
  int threads;                    // how many parts are worth making
  bool flush_subnormals = false;  // take them for zero in what parallel_for runs
};

struct Microkernel {
  int rows, vectors;  // of sums, for AMX vectors of a tile
};

// An Engine has the entry points for one storage type. scratch_bytes tells what the call with the
// same arguments needs.
template <class S>
struct Engine {
  Microkernel narrow, wide;  // of those that its products take
  int lanes;                 // of a vector
  size_t (*forward_scratch_bytes)(Cell, const Forward<S>&, int threads);
  void (*forward)(Cell, const Forward<S>&, const Host&, void* scratch);
  size_t (*backward_scratch_bytes)(Cell, const Backward<S>&, int threads);
  void (*backward)(Cell, const Backward<S>&, const Host&, void* scratch);
};

// Engines that an instruction set shares with a lesser one point to those of that one.
struct Isa {
  const char* name;
  bool (*supported)();
  const Engine<float>* f32;
  const Engine<double>* f64;
  const Engine<bfloat16>* bf16;
  // Draws keep[count]: each is 1 with probability 1 - p, the same for a seed on every instruction
  // set.
  void (*sample_keep)(uint8_t* keep, int64_t count, uint64_t seed, double p);
  double (*count_fmas)();  // see peak.h

  template <class S>
  const Engine<S>& engine() const {
    constexpr Dtype kDtype = DtypeOf<S>::id;
    if constexpr (kDtype == Dtype::float32) return *f32;
    if constexpr (kDtype == Dtype::float64) return *f64;
    if constexpr (kDtype == Dtype::bfloat16) return *bf16;
  }
};

extern const Isa kAmx, kAvx512Bf16, kAvx512, kAvx2, kNeon, kPortable;
extern const Engine<float> kAvx512Float;
extern const Engine<double> kAvx512Double;

// Returns the best instruction set of this machine, or the one that BAYESRNN_CPU_ISA names (for
// tests). Throws std::runtime_error if that name is unknown or the machine lacks it.
const Isa& isa();

}  // namespace brnn::cpu
