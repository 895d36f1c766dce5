// avx512.cpp compiles the CPU engine for AVX-512 (F, BW, DQ, VL).
#define BRNN_ISA avx512
#include "instance.h"

namespace brnn::cpu {

extern const Engine<float> kAvx512Float = BRNN_ISA::kEngine<float>;
extern const Engine<double> kAvx512Double = BRNN_ISA::kEngine<double>;

extern const Isa kAvx512 = {
    "avx512",
    [] {
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    },
    &kAvx512Float,
    &kAvx512Double,
    &BRNN_ISA::kEngine<bfloat16>,
    &BRNN_ISA::sample_keep,
    &BRNN_ISA::count_fmas,
};

}  // namespace brnn::cpu
