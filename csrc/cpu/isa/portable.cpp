// portable.cpp compiles the CPU engine for any machine, in GCC's vectors of 16 bytes alone.
#define BRNN_ISA portable
#include "instance.h"

namespace brnn::cpu {

extern const Isa kPortable = BRNN_ISA::own_isa("portable", [] { return true; });

}  // namespace brnn::cpu
