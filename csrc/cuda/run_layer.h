// run_layer.h says what the CUDA engines offer and the little they need from their host. It
// includes no torch and no CUDA header: memory comes as one scratch block, and matrix products of
// precisions that the kernels leave to a library, and those of stepwise, come through a callback.
//
// A layer runs in two parts, forward and backward alike:
//   1. all time steps at once  input part a = W (m x) + b; afterwards dx, dW, dU and bias sums
//   2. the recurrence          step by step, in one kernel (block, cluster, grid_flags; grid, of
//                              a long layer several) or in a few kernels a step (stepwise)
// Between them lie two tensors in workspace or among the saved ones:
//   gates [T, B, G*H]      S; holds the input part before the recurrence, activated gates after it
//   dz    [T, B, slots*H]  S; gradients of all slots (cells.h), what backward leaves for part 1
#pragma once

#include <cstddef>
#include <cstdint>

#include "../layer.h"
#include "plan/plan.h"

namespace brnn::cuda {

// This is a matrix on the device, or `batch` of them; strides count elements.
struct Matrix {
  const void* data;
  int64_t batch_stride, row_stride, column_stride;
};

// A Gemm is c = a b, or c += a b: [batch, M, K] times [batch, K, N]. c has column_stride 1.
struct Gemm {
  Dtype dtype;
  int64_t batch, M, N, K;
  Matrix a, b, c;
  bool accumulate;
};

struct Host {
  void* stream;  // cudaStream_t: everything is launched there
  void* context;
  void (*multiply)(void* context, const Gemm& gemm);  // on the same stream
};

// These run the whole layer under a plan. They throw std::runtime_error where a launch fails.
template <class S>
size_t forward_scratch_bytes(const Plan& plan, Cell cell, const Forward<S>& layer);
template <class S>
void forward(const Plan& plan, Cell cell, const Forward<S>& layer, const Host& host, void* scratch);
template <class S>
size_t backward_scratch_bytes(const Plan& plan, Cell cell, const Backward<S>& layer);
template <class S>
void backward(const Plan& plan, Cell cell, const Backward<S>& layer, const Host& host,
              void* scratch);

}  // namespace brnn::cuda
