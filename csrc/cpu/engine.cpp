// engine.cpp chooses the instruction set, once per process: one library serves every machine.
#include "engine.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace brnn::cpu {

namespace {

#if defined(__x86_64__)
const Isa* const kIsas[] = {&kAmx, &kAvx512Bf16, &kAvx512, &kAvx2, &kPortable};  // best first
#elif defined(__aarch64__)
const Isa* const kIsas[] = {&kNeon, &kPortable};
#else
const Isa* const kIsas[] = {&kPortable};
#endif

const Isa& choose() {
  const char* wanted = std::getenv("BAYESRNN_CPU_ISA");
  std::string names;
  for (const Isa* isa : kIsas) {
    if (!isa->supported()) continue;
    if (!wanted || std::string(wanted) == isa->name) return *isa;
    names += (names.empty() ? "" : ", ") + std::string(isa->name);
  }
  throw std::runtime_error("BAYESRNN_CPU_ISA: expected one of " + names +
                           " on this machine, got '" + wanted + "'");
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

}  // namespace brnn::cpu
