// race.h - the race detector: happens-before by vector clocks. Kernels compiled with
// -fsanitize=thread call it at every access (tsan_hooks.cpp); the calls of emulator.h tell it what
// orders threads. Without EMULATOR_RACE nothing remains of it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../emulator.h"

namespace emu {
struct Block;
struct Cluster;
struct Shape;
struct Thread;
}  // namespace emu

namespace emu::race {

#ifdef EMULATOR_RACE

// A launch and the shared memory of its blocks.
void begin(const Shape& shape);
void end();
void shared_memory_appears(const Block& block);
void shared_memory_dies(const Block& block);  // the block has exited, its cluster has not
void shared_memory_goes(const Block& block);
uint64_t accesses();
const void* last_access();  // the instruction, nullptr if unknown

// Order. A join orders everything before it, by any of the threads, before everything after it.
void join(Thread* const* threads, size_t count);
void release(const void* flag);
void forget_release(const void* flag);  // overwritten by a store that releases nothing
void acquire(const void* flag);
void arrive(const Cluster& cluster);
void pass(const Cluster& cluster, uint64_t phase);

// Accesses by the current thread.
void read(const void* memory, size_t bytes, Site site);
void atomic_read(const void* memory, size_t bytes, Site site);
void atomic_write(const void* memory, size_t bytes, Site site);
void begin_copy(void* to, size_t bytes, Site site);  // nobody may touch it before end_copy
void end_copy(void* to, size_t bytes);

#else

inline void begin(const Shape&) {}
inline void end() {}
inline void shared_memory_appears(const Block&) {}
inline void shared_memory_dies(const Block&) {}
inline void shared_memory_goes(const Block&) {}
inline uint64_t accesses() { return 0; }
inline const void* last_access() { return nullptr; }
inline void join(Thread* const*, size_t) {}
inline void release(const void*) {}
inline void forget_release(const void*) {}
inline void acquire(const void*) {}
inline void arrive(const Cluster&) {}
inline void pass(const Cluster&, uint64_t) {}
inline void read(const void*, size_t, Site) {}
inline void atomic_read(const void*, size_t, Site) {}
inline void atomic_write(const void*, size_t, Site) {}
inline void begin_copy(void*, size_t, Site) {}
inline void end_copy(void*, size_t) {}

#endif

}  // namespace emu::race
