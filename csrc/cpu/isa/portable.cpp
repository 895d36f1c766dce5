// portable.cpp compiles the CPU engine for any machine, in GCC's vectors of 16 bytes alone.
#define BRNN_ISA portable
#include "instance.h"

namespace brnn::cpu {

extern const Isa kPortable = {
    "portable",
    [] { return true; },
    &BRNN_ISA::kEngine<float>,
    &BRNN_ISA::kEngine<double>,
    &BRNN_ISA::kEngine<bfloat16>,
    &BRNN_ISA::sample_keep,
    &BRNN_ISA::count_products,
};

}  // namespace brnn::cpu
