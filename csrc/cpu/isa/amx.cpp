// amx.cpp compiles bfloat16 for matrix registers; the other types are AVX-512's.
#define BRNN_ISA amx
#include <cpuid.h>

#include "instance.h"
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace brnn::cpu {

namespace {

// Linux hands out the registers' 8 KiB to processes that ask.
bool permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned kBf16AndTile = 1u << 22 | 1u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16AndTile) == kBf16AndTile;
}

}  // namespace

extern const Isa kAmx = {
    "amx",
    [] { return kAvx512Bf16.supported() && has_amx() && permitted(); },
    &kAvx512Float,
    &kAvx512Double,
    &BRNN_ISA::kEngine<bfloat16>,
    &BRNN_ISA::sample_keep,
    &BRNN_ISA::count_fmas,
};

}  // namespace brnn::cpu
