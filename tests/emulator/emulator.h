// emulator.h - what a CUDA kernel sees when g++ compiles it: the CUDA names that kernels of this
// project may use, and the calls behind the host twins of intrinsics.cuh.
//
// One fiber per CUDA thread executes the kernel on one thread of the host. Everything that moves
// lives in core/, compiled apart from the kernels, so that a sanitizer sees kernels only. Errors
// (deadlock, livelock, divergence, race, misuse) end a launch as emu::Error with a full report.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#pragma GCC visibility push(default)

extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // set at every switch of fibers

namespace emu {

using Site = std::source_location;  // where a kernel calls; a pointer, free to pass

struct Error : std::runtime_error {
  using runtime_error::runtime_error;
  ~Error() override;
};

enum class Schedule {
  round_robin,
  random,         // any thread that can run
  block_priority  // one block runs as far ahead as it can; the favourite changes now and then
};

struct Config {  // what a test sets
  Schedule schedule = Schedule::round_robin;
  uint64_t seed = 1;
  double yield_probability = 0;   // of a switch before a flag, a poll, a word of load_relaxed
  int resident_blocks = 1 << 20;  // what the device holds at the same time
  double watchdog_seconds = 10;   // CPU time that a thread may run without a switch
  double launch_seconds = 600;    // CPU time of a launch
};
extern Config config;

struct Statistics {  // of the last launch
  uint64_t switches;
  uint64_t accesses;  // seen by the race detector
};
extern Statistics statistics;

// Runs the body once per thread; x, y, z count blocks.
void launch(unsigned x, unsigned y, unsigned z, int threads, int shared_bytes, int cluster,
            bool cooperative, const std::function<void()>& body);

// Global memory that the race detector watches from now on, and under which name.
void watch(const void* memory, size_t bytes, const std::string& name);
void unwatch(const void* memory);

// ---- what the twins call

void* shared_memory();
uint32_t cluster_rank();
void* cluster_map(const void* mine, uint32_t rank, Site site);

void block_barrier(Site site);
void named_barrier(int id, int threads, Site site);
void cluster_arrive(Site site);
void cluster_wait(Site site);
void warp_barrier(uint32_t mask, Site site);

// The value that lane `source` of the warp passes; `what` names the caller in reports.
uint64_t shuffle(uint32_t mask, uint64_t value, unsigned source, const char* what, Site site);
bool any(uint32_t mask, bool predicate, Site site);
unsigned lane();

uint32_t load_acquire(const uint32_t* from, Site site);
void store_release(uint32_t* to, uint32_t value, Site site);
uint4 load_relaxed(const uint4* from, Site site);  // may be torn between the words
void store_relaxed(uint32_t* to, uint32_t value, Site site);
void spin(Site site);

// 4 or 16 bytes. Performed by the matching wait, or at any moment before: the destination is NaN
// until then.
void copy_async(void* to, const void* from, int bytes, bool inside, Site site);
void copy_async_commit();
void copy_async_wait(int pending, Site site);

enum class Number { bfloat16, float16, tf32 };
void mma(Number number, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site);
void load_matrices(uint32_t (&words)[4], const void* row, bool transposed, Site site);
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);  // to nearest, ties to even

}  // namespace emu

#pragma GCC visibility pop

inline void __syncthreads(emu::Site site = emu::Site::current()) { emu::block_barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, emu::Site site = emu::Site::current()) {
  emu::warp_barrier(mask, site);
}
inline int __any_sync(unsigned mask, int predicate, emu::Site site = emu::Site::current()) {
  return emu::any(mask, predicate != 0, site);
}

namespace emu {
template <class T>
T shuffle_bits(uint32_t mask, T value, unsigned source, const char* what, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(mask, bits, source, what, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace emu

// width: 2, 4, ... 32 lanes that shuffle among themselves.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              emu::Site site = emu::Site::current()) {
  const unsigned first = emu::lane() & ~unsigned(width - 1);
  return emu::shuffle_bits(mask, value, first + (source & (width - 1)), "__shfl_sync", site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32,
                  emu::Site site = emu::Site::current()) {
  const unsigned self = emu::lane(), other = self ^ flip;
  const unsigned source = other < (self & ~unsigned(width - 1)) + width ? other : self;
  return emu::shuffle_bits(mask, value, source, "__shfl_xor_sync", site);
}
