// devices.h has the limits of GPUs that a plan may be asked about without one being here.
#pragma once

#include <span>
#include <string>

#include "plan.h"

namespace brnn::cuda {

std::span<const Device> known_devices();
// Finds a GPU by short name, "H100" or "rtx 4090"; gives nullptr if it is unknown.
const Device* known_device(const std::string& name);
// Lists them for messages: "A100, H100, ...".
std::string known_device_names();

}  // namespace brnn::cuda
