// neon.cpp compiles the CPU engine for 64-bit ARM, all of which has NEON. There GCC orders
// instructions before it assigns registers, unless flags.json forbids it, and 24 sums would not
// stay in theirs.
#define BRNN_ISA neon
#define BRNN_NEON
#include "instance.h"

namespace brnn::cpu {

extern const Isa kNeon = BRNN_ISA::own_isa("neon", [] { return true; });

}  // namespace brnn::cpu
