// cuda_runtime.cpp - the part of the CUDA runtime that the engines use. A launch finds the PTX of
// its kernel and runs it; what a device would refuse is refused.
#include "cuda_runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace ptx {

namespace {

constexpr int kRegisters = 65536;  // of a multiprocessor
constexpr int kPlainShared = 48 * 1024;
constexpr int kMostParams = 4096;
constexpr int kPortableCluster = 8;
constexpr int kGroupMultiprocessors = 16;  // of a GPC, which holds a cluster

constexpr DeviceLimits kDevices[] = {
    {"A100", 8, 0, 108, 163 * 1024, 2048, 32, 0},
    {"H100", 9, 0, 132, 227 * 1024, 2048, 32, 16},
    {"B200", 10, 0, 148, 227 * 1024, 2048, 32, 16},
    {"RTX 5090", 12, 0, 170, 99 * 1024, 1536, 24, 8},
};

struct Function {
  std::string name;
  int most_shared = kPlainShared;
  bool large_clusters = false;
};

std::map<const void*, Function>& functions() {
  static std::map<const void*, Function> all;
  return all;
}
cudaError_t last_error = cudaSuccess;
std::string detail;

cudaError_t refuse(cudaError_t error, std::string why) {
  detail = std::move(why);
  return last_error = error;
}

Function& function_of(const void* entry) {
  const auto found = functions().find(entry);
  if (found == functions().end()) throw std::runtime_error("a launch of an unknown function");
  return found->second;
}

const Kernel& kernel_of(const std::string& name) {
  auto& kernels = runtime().kernels;
  if (!kernels.contains(name) && !(runtime().loader && runtime().loader(name.c_str())))
    throw std::runtime_error("no PTX of " + name);
  return kernels.at(name);
}

int blocks_on_multiprocessor(const Kernel& k, int threads, size_t shared) {
  const DeviceLimits& d = runtime().device;
  const int warps = (threads + kWarp - 1) / kWarp;
  const int warp_registers = (k.registers * kWarp + 255) / 256 * 256;
  const int by_registers = kRegisters / (warp_registers * warps);
  const int by_shared = int((size_t(d.shared_optin) + 1024) / (shared + 1024));
  return std::min({by_registers, by_shared, d.threads / (warps * kWarp), d.blocks});
}

// Whether the device would start such a grid.
cudaError_t check_grid(const Kernel& k, const Function& f, const GridSize& g) {
  const DeviceLimits& d = runtime().device;
  if (g.threads < 1 || g.threads > 1024)
    return refuse(cudaErrorInvalidConfiguration, "threads of a block");
  if (k.most_threads && int(g.threads) > k.most_threads)
    return refuse(cudaErrorLaunchOutOfResources, "more threads than __launch_bounds__");
  if (!g.x || !g.y || !g.z || g.x > 0x7FFFFFFF || g.y > 65535 || g.z > 65535)
    return refuse(cudaErrorInvalidConfiguration, "size of the grid");
  if (int64_t(g.shared_bytes) > f.most_shared)
    return refuse(cudaErrorInvalidValue, "dynamic shared memory beyond its attribute");
  if (g.cluster > 1 &&
      int(g.cluster) >
          (f.large_clusters ? d.most_cluster : std::min(d.most_cluster, kPortableCluster)))
    return refuse(cudaErrorInvalidClusterSize, "size of the cluster");
  if (g.x % g.cluster) return refuse(cudaErrorInvalidClusterSize, "a grid that is not of clusters");
  if (k.param_bytes > kMostParams) return refuse(cudaErrorInvalidValue, "parameters beyond 4 KB");
  if (blocks_on_multiprocessor(k, int(g.threads), g.shared_bytes) < 1)
    return refuse(cudaErrorLaunchOutOfResources, "registers or shared memory of a block");
  return cudaSuccess;
}

// The grid of a launch, and whether it names a size of clusters.
std::pair<GridSize, bool> read_config(const cudaLaunchConfig_t& c) {
  if (c.blockDim.y != 1 || c.blockDim.z != 1) throw std::runtime_error("expected blocks along x");
  GridSize g{c.gridDim.x, c.gridDim.y, c.gridDim.z, c.blockDim.x, uint32_t(c.dynamicSmemBytes),
             1,           false};
  bool named = false;
  for (unsigned i = 0; i < c.numAttrs; ++i) {
    const cudaLaunchAttribute& a = c.attrs[i];
    if (a.id == cudaLaunchAttributeCooperative) {
      g.cooperative = a.val.cooperative;
    } else if (a.id == cudaLaunchAttributeClusterDimension) {
      if (a.val.clusterDim.y != 1 || a.val.clusterDim.z != 1)
        throw std::runtime_error("expected clusters along x");
      g.cluster = a.val.clusterDim.x, named = true;
    } else {
      throw std::runtime_error("an unknown launch attribute: " + std::to_string(int(a.id)));
    }
  }
  return {g, named};
}

cudaError_t launch(const Function& f, const void* params, const GridSize& g) {
  const Kernel& k = kernel_of(f.name);
  if (const cudaError_t error = check_grid(k, f, g)) return error;
  const int64_t resident = int64_t(blocks_on_multiprocessor(k, int(g.threads), g.shared_bytes)) *
                           runtime().device.multiprocessors;
  const int64_t blocks = int64_t(g.x) * g.y * g.z;
  if (g.cooperative && (blocks > resident || runtime().refuses_cooperation.wrong()))
    return refuse(cudaErrorCooperativeLaunchTooLarge,
                  "too many blocks in cooperative launch: " + std::to_string(blocks) +
                      ", the device holds " + std::to_string(resident));
  runtime().launched.push_back(f.name);
  if (!runtime().dry) run_grid(k, params, g);
  return cudaSuccess;
}

}  // namespace

const DeviceLimits* device_limits(const std::string& name) {
  const auto found = std::ranges::find(kDevices, name, [](const auto& d) { return d.name; });
  return found == std::end(kDevices) ? nullptr : found;
}

Runtime& runtime() {
  static Runtime all;
  return all;
}

int launch_kernel(const std::string& name, const void* params, const GridSize& grid,
                  std::string& why) {
  const Function f{name, runtime().device.shared_optin, true};
  const cudaError_t error = launch(f, params, grid);
  why = error ? detail : "";
  return error;
}

}  // namespace ptx

using namespace ptx;

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  functions()[host].name = name;
}
// What the body of a host stub calls; the engines launch by cudaLaunchKernelExC alone.
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { std::abort(); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  std::abort();
}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { std::abort(); }

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  static std::string text;
  text = "cuda error " + std::to_string(int(error)) + " (" + detail + ")";
  return text.c_str();
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = runtime().device.shared_optin; break;
    case cudaDevAttrMultiProcessorCount: *value = runtime().device.multiprocessors; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    default: throw std::runtime_error("an unknown attribute: " + std::to_string(int(which)));
  }
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* entry, cudaFuncAttribute which, int value) {
  Function& f = function_of(entry);
  if (which == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > runtime().device.shared_optin)
      return refuse(cudaErrorInvalidValue, "shared memory beyond the limit of the device");
    f.most_shared = value;
  } else if (which == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    f.large_clusters = value;
  } else {
    throw std::runtime_error("an unknown attribute of a function: " + std::to_string(int(which)));
  }
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* entry, void** arguments) {
  return launch(function_of(entry), arguments[0], read_config(*c).first);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* entry,
                                                          int threads, size_t shared) {
  const Function& f = function_of(entry);
  const Kernel& k = kernel_of(f.name);
  const bool fits = !runtime().nothing_fits && int64_t(shared) <= f.most_shared &&
                    !(k.most_threads && threads > k.most_threads);
  *blocks = fits ? blocks_on_multiprocessor(k, threads, shared) : 0;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* entry,
                                           const cudaLaunchConfig_t* c) {
  const Function& f = function_of(entry);
  const Kernel& k = kernel_of(f.name);
  const auto [g, named] = read_config(*c);
  if (const cudaError_t error = check_grid(k, f, g)) return error;
  if (!named) return refuse(cudaErrorInvalidClusterSize, "cluster size not specified");
  const int blocks = blocks_on_multiprocessor(k, int(g.threads), g.shared_bytes);
  const int groups = runtime().device.multiprocessors / kGroupMultiprocessors;
  *clusters =
      runtime().nothing_fits ? 0 : groups * (kGroupMultiprocessors * blocks / int(g.cluster));
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  if (runtime().dry) return cudaSuccess;
  if (!in_memory(to, bytes))
    throw std::runtime_error("memset: expected memory that was given, got " +
                             std::to_string(bytes) + " bytes that reach out of it");
  if (!runtime().fills_nothing.wrong()) std::memset(to, byte, bytes);
  return cudaSuccess;
}
}
