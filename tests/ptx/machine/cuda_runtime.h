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

struct Runtime {
  DeviceLimits device{};
  bool refuses_cooperation = false;  // as MPS or a green context may
  bool nothing_fits = false;         // every question for occupancy is answered 0
  bool fills_nothing = false;        // cudaMemsetAsync leaves memory as it is
  bool dry = false;                  // launches are checked and noted, nothing runs
  std::vector<std::string> launched;
  std::map<std::string, Kernel> kernels;
  bool (*loader)(const char* name) = nullptr;  // calls define_kernel
};
Runtime& runtime();

// A launch by name. Returns a cudaError_t, whose reason is in `why`.
int launch_kernel(const std::string& name, const void* params, const GridSize& grid,
                  std::string& why);

}  // namespace ptx
