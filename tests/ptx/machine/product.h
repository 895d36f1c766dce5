// product.h - the one place that names headers of the product.
#pragma once

#if defined(__CUDACC__)
#include "cuda/device/intrinsics.cuh"
#else
#include "cuda/gate_gemm/gate_gemm.h"
#include "cuda/masks/masks.h"
#include "cuda/plan/plan.h"
#include "cuda/plan/shared_layout.h"
#include "cuda/run_layer.h"
#endif
