// product.h - the one place that names headers of the product.
#pragma once

#if defined(__CUDACC__)
#include "cuda/device.cuh"
#else
#include "cuda/engine.h"
#include "cuda/plan.h"
#endif
