// report.h - texts of reports.
#pragma once

#include <cstddef>
#include <string>

#include "machine.h"

namespace ptx {

// `what`, and every thread that has not exited, grouped by where it is.
std::string report(const Launch& l, const char* what, size_t not_started);

}  // namespace ptx
