// portable.cpp compiles the CPU engine for any machine: SSE2 on x86-64, NEON on arm64.
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
};

}  // namespace brnn::cpu
