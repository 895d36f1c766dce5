// launch.cuh says how host code starts a kernel. There is one way for all of them, so that none is
// launched unchecked.
#pragma once

#include <cstddef>
#include <string>

#include "../driver.h"
#include "intrinsics.cuh"

namespace brnn::cuda {

struct Grid {
  unsigned x = 1, y = 1;
  int threads = 1;
  int shared_bytes = 0;
  int cluster = 0;           // blocks along x that form a cluster, at most 8; 0: no clusters
  bool cooperative = false;  // all blocks run at the same time, or the launch fails
};

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetAttribute(&value, which, device), "attribute of the device");
  return value;
}

// Allows all that a block may have, not what one launch needs: launches of other sizes may run
// beside it.
inline void allow_shared_memory(const void* kernel) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
        "shared memory of a kernel");
}

// Holds what a launch of the grid needs beside the kernel and its parameters.
struct LaunchConfig {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};

  LaunchConfig(const void* kernel, const Grid& grid, void* stream) {
    if (grid.shared_bytes > 48 * 1024) allow_shared_memory(kernel);
    config.gridDim = dim3(grid.x, grid.y);
    config.blockDim = dim3(grid.threads);
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    if (grid.cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (grid.cluster > 0) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs++].val.clusterDim = {unsigned(grid.cluster), 1, 1};
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;  // config points into attributes
};

template <class Params>
void launch(void (*kernel)(Params), const Grid& grid, void* stream, const Params& params) {
  const LaunchConfig how(reinterpret_cast<const void*>(kernel), grid, stream);
  check(cudaLaunchKernelEx(&how.config, kernel, params), "kernel launch");
}

// Does the same where the driver may refuse a grid that occupancy allowed: under MPS and in green
// contexts fewer multiprocessors are there than the device has. Returns why, or "" where it is
// launched.
template <class Params>
std::string try_launch(void (*kernel)(Params), const Grid& grid, void* stream,
                       const Params& params) {
  const LaunchConfig how(reinterpret_cast<const void*>(kernel), grid, stream);
  const cudaError_t error = cudaLaunchKernelEx(&how.config, kernel, params);
  if (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorInvalidClusterSize ||
      error == cudaErrorNotSupported) {
    cudaGetLastError();
    return cudaGetErrorString(error);
  }
  check(error, "kernel launch");
  return "";
}

// Tells how many clusters of such a grid the current device runs at the same time. Where the
// runtime cannot tell, as of a size that the device does not have, that is 0, and `why` says what
// it said.
template <class Params>
int resident_clusters(void (*kernel)(Params), const Grid& grid, std::string& why) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  const LaunchConfig how(entry, grid, nullptr);
  int clusters = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, entry, &how.config);
  if (error == cudaSuccess) return clusters;
  cudaGetLastError();
  why = cudaGetErrorString(error);
  return 0;
}

// Tells how many blocks of such a grid the current device runs at the same time.
template <class Params>
int resident_blocks(void (*kernel)(Params), const Grid& grid) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  const LaunchConfig how(entry, grid, nullptr);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entry, grid.threads,
                                                      grid.shared_bytes),
        "occupancy");
  return blocks * attribute(cudaDevAttrMultiProcessorCount);
}

inline void fill_bytes(void* to, int byte, size_t bytes, void* stream) {
  if (bytes) check(cudaMemsetAsync(to, byte, bytes, static_cast<cudaStream_t>(stream)), "memset");
}

}  // namespace brnn::cuda
