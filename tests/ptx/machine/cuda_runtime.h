// cuda_runtime.h - the CUDA runtime that the engines' host code finds here, and its device.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "machine.h"

namespace ptx {

// Limits per multiprocessor and block: CUDA C++ Programming Guide, technical specifications per
// compute capability. Multiprocessors: of the parts as sold.
struct DeviceLimits {
  const char* name;
  int major, minor, multiprocessors;
  int shared_optin;     // of a block; a multiprocessor has 1 KB more
  int threads, blocks;  // of a multiprocessor
  int most_cluster;     // blocks, 0: no clusters
};
const DeviceLimits* device_limits(const std::string& name);

// Says when something begins to go wrong: at the first time, the second and so on; 0: never.
struct Count {
  int first = 0, seen = 0;
  bool wrong() { return ++seen >= first && first > 0; }
};

struct Runtime {
  DeviceLimits device{};
  Count refuses_cooperation{};  // as MPS or a green context may
  Count fills_nothing{};        // cudaMemsetAsync leaves memory as it is
  bool nothing_fits = false;    // every question for occupancy is answered 0
  bool dry = false;             // launches are checked and noted, nothing runs
  std::vector<std::string> launched;
  std::map<std::string, Kernel> kernels;
  bool (*loader)(const char* name) = nullptr;  // calls define_kernel
};
Runtime& runtime();

// A launch by name. Returns a cudaError_t, whose reason is in `why`.
int launch_kernel(const std::string& name, const void* params, const GridSize& grid,
                  std::string& why);

}  // namespace ptx
