// avx2.cpp compiles the CPU engine for AVX2 and FMA.
#define BRNN_ISA avx2
#include "instance.h"

namespace brnn::cpu {

extern const Isa kAvx2 = {
    "avx2",
    [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
    &BRNN_ISA::kEngine<float>,
    &BRNN_ISA::kEngine<double>,
    &BRNN_ISA::kEngine<bfloat16>,
    &BRNN_ISA::sample_keep,
    &BRNN_ISA::count_products,
};

}  // namespace brnn::cpu
