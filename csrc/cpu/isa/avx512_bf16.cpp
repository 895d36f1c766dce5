// avx512_bf16.cpp compiles bfloat16 for AVX-512's dot products of pairs; the other types are
// AVX-512's.
#define BRNN_ISA avx512_bf16
#include "instance.h"

namespace brnn::cpu {

extern const Isa kAvx512Bf16 = {
    "avx512_bf16",
    [] { return kAvx512.supported() && __builtin_cpu_supports("avx512bf16"); },
    &kAvx512Float,
    &kAvx512Double,
    &BRNN_ISA::kEngine<bfloat16>,
    &BRNN_ISA::sample_keep,
    &BRNN_ISA::count_fmas,
};

}  // namespace brnn::cpu
