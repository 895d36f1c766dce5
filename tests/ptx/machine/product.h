// product.h - the one place that names headers of the product.
#pragma once

#include "cuda/engine.h"
#include "cuda/plan.h"
