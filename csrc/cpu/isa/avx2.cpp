// avx2.cpp compiles the CPU engine for AVX2 and FMA.
#define BRNN_ISA avx2
#include "instance.h"

namespace brnn::cpu {

extern const Isa kAvx2 = BRNN_ISA::own_isa(
    "avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); });

}  // namespace brnn::cpu
