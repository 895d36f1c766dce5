// avx512.cpp - the CPU engine for AVX-512 (F, BW, DQ, VL).
#define BRNN_ISA avx512
#include "instance.h"

namespace brnn::cpu {

extern const Isa kAvx512 = {
    "avx512",
    [] {
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    },
    BRNN_ISA::kVectorBytes,
    BRNN_ISA::kRows,
    BRNN_ISA::kEngine<float>,
    BRNN_ISA::kEngine<double>,
    BRNN_ISA::kEngine<bfloat16>,
};

}  // namespace brnn::cpu
