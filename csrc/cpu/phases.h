// phases.h times the phases of a layer, for bench/phases.py. Where nobody has asked for
// that, a phase costs the look at one flag.
//
// A thread adds up for itself what it spends; time that it waits for others is no phase's.
#pragma once

#include <cstdint>

#include "../cells.h"

namespace brnn::cpu {

enum class Phase {
  pack_weights,       // into panels, and bits of masks
  pack_input,         // m x of a chunk into rows
  input_product,      // forward W (m x), backward dx with its masks and scale
  pack_hidden,        // m h_{t-1} into rows
  recurrent_product,  // forward U (m h), backward the masked sums of U^T dz
  gates,              // gate algebra, states and results
  pack_operands,      // backward: m x and m h_{t-1} of a chunk into panels
  turn,               // backward: dz of a chunk, so that units are its rows; sums for biases
  weight_products,    // backward: gradients of the weights
  convert,            // backward: sums to the storage type
  count
};
constexpr const char* kPhaseNames[] = {
    "pack weights", "pack input",    "input product", "pack hidden",     "recurrent product",
    "gates",        "pack operands", "turn dz",       "weight products", "convert"};
static_assert(sizeof kPhaseNames / sizeof *kPhaseNames == static_cast<int>(Phase::count));

// Tells whether phases are timed. Layers of other threads may read it while it changes.
extern bool times_phases;
BRNN_INLINE bool phases_are_timed() { return __atomic_load_n(&times_phases, __ATOMIC_RELAXED); }
int64_t nanoseconds();  // of a clock that never goes back
void add_phase(Phase phase, int64_t nanoseconds);
// Gives what all threads spent in a phase since the last call for it.
int64_t take_phase(Phase phase);

// Laps are consecutive phases of one thread.
class Laps {
 public:
  BRNN_INLINE Laps() : on_(phases_are_timed()), since_(on_ ? nanoseconds() : 0) {}

  // Ends a phase that began where the last one ended, or with this object.
  BRNN_INLINE void end(Phase phase) {
    if (!on_) return;
    const int64_t now = nanoseconds();
    add_phase(phase, now - since_);
    since_ = now;
  }

 private:
  const bool on_;
  int64_t since_;
};

}  // namespace brnn::cpu
