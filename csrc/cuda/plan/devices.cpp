// devices.cpp lists the GPUs of devices.h.
#include "devices.h"

#include <algorithm>
#include <cctype>

namespace brnn::cuda {

namespace {

// Shared memory of a block is from the CUDA C++ Programming Guide, technical specifications per
// compute capability. Multiprocessors are from NVIDIA's architecture papers, for the parts as sold.
const Device kDevices[] = {
    {"A100", 8, 0, 108, 163 * 1024, 65536, true},
    {"H100", 9, 0, 132, 227 * 1024, 65536, true},  // SXM
    {"H100 PCIe", 9, 0, 114, 227 * 1024, 65536, true},
    {"H200", 9, 0, 132, 227 * 1024, 65536, true},
    {"B200", 10, 0, 148, 227 * 1024, 65536, true},
    {"RTX 4090", 8, 9, 128, 99 * 1024, 65536, true},
    {"RTX 5090", 12, 0, 170, 99 * 1024, 65536, true},
};

bool same(const std::string& a, const std::string& b) {
  return std::ranges::equal(a, b, [](unsigned char left, unsigned char right) {
    return std::tolower(left) == std::tolower(right);
  });
}

}  // namespace

std::span<const Device> known_devices() { return kDevices; }

const Device* known_device(const std::string& name) {
  for (const Device& device : kDevices)
    if (same(device.name, name)) return &device;
  return nullptr;
}

std::string known_device_names() {
  std::string names;
  for (const Device& device : kDevices) names += (names.empty() ? "" : ", ") + device.name;
  return names;
}

}  // namespace brnn::cuda
