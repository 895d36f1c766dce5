// devices.h has the limits of GPUs that a plan may be asked about without one being here.
#pragma once

#include <span>
#include <string>

#include "plan.h"

namespace brnn::cuda {

std::span<const Device> known_devices();
// By short name, "H100" or "rtx 4090"; nullptr if unknown.
const Device* known_device(const std::string& name);
// "A100, H100, ..." for messages.
std::string known_device_names();

}  // namespace brnn::cuda
