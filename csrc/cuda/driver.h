// driver.h checks calls of the CUDA runtime and says what an error of it is called. One of them is
// told at length: the runtime that is linked in here may be newer than the driver can serve, though
// torch with an older one works.
#pragma once

#include <cuda_runtime.h>

#include <fstream>
#include <istream>
#include <stdexcept>
#include <string>

namespace brnn::cuda {

// Writes 13000 as "13.0".
inline std::string cuda_version(int number) {
  return "CUDA " + std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Finds "550.54.14" in what Linux's module says in /proc/driver/nvidia/version; gives "" where it
// says nothing.
inline std::string driver_release(std::istream& module) {
  for (std::string word; module >> word;) {
    const bool number = word.find_first_not_of("0123456789.") == std::string::npos;
    if (number && word.find('.') != std::string::npos) return word;
  }
  return "";
}

// Gives the first release of the driver that serves a runtime of that major version, or 0 if it is
// not known. NVIDIA's CUDA Compatibility, "Minor Version Compatibility", has the table.
constexpr int first_release(int runtime) {
  switch (runtime / 1000) {
    case 12: return 525;
    case 13: return 580;
    default: return 0;
  }
}

inline std::string driver_too_old(int runtime, int driver, const std::string& release) {
  const int first = first_release(runtime);
  const std::string needed = first ? "version " + std::to_string(first) + " or later" : "one";
  std::string found = "none";
  if (driver)
    found = (release.empty() ? "" : "version " + release + " for ") + cuda_version(driver);
  return "driver: expected NVIDIA's " + needed + " for " + cuda_version(runtime) + ", got " +
         found + "; update the driver, or build bayesrnn_cuda with an older CUDA toolkit";
}

inline std::string describe(cudaError_t error) {
  if (error != cudaErrorInsufficientDriver) return cudaGetErrorString(error);
  int driver = 0;
  cudaDriverGetVersion(&driver);  // stays 0 without a driver
  std::ifstream module("/proc/driver/nvidia/version");
  return driver_too_old(CUDART_VERSION, driver, driver_release(module));
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it has been told; the next call starts clean
  // This is worded as checks::no_memory words it, of which the host makes torch.OutOfMemoryError.
  if (error == cudaErrorMemoryAllocation)
    throw std::runtime_error(std::string("memory: expected room for a ") + what + ", got " +
                             describe(error));
  throw std::runtime_error(std::string(what) + ": " + describe(error));
}

}  // namespace brnn::cuda
