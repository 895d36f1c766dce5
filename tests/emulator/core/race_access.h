// race_access.h - what tsan_hooks.cpp tells the race detector.
#pragma once

#include <cstddef>

namespace emu::race {

// By the current thread, if a kernel runs.
void access(const void* memory, size_t bytes, bool writes, const void* instruction);

}  // namespace emu::race
