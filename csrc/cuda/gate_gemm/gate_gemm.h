// gate_gemm.h offers part 1 of a layer: the matrix products over all time steps at once, on tensor
// cores, with the dropout masks applied inside. S is bfloat16, float16, or float for TF32.
//
// Rows of all matrices are (time, sequence) pairs; T * B < 2^29. Gradients of gates that lie
// outside a sequence's length are zero; x and y may hold anything there and are not used.
#pragma once

#include <cstddef>

#include "../../layer.h"

namespace brnn::cuda::gate_gemm {

// Makes gates [T, B, G*H] = W_k (m_k s x) + b_ih_k + b_hh_k, without b_hh of the gates whose bias
// is recurrent (cells.h).
template <class S>
void input_part(Cell cell, const Forward<S>& layer, S* gates, void* stream);

// Makes layer.dx [T, B, I] = sum over gates of m_k s (W_k^T da_k), da_k being a slot of dz [T, B,
// slots*H].
template <class S>
void input_gradient(Cell cell, const Backward<S>& layer, const S* dz, void* stream);

// Makes layer.dweight_ih, dweight_hh, dbias_ih and dbias_hh, by the same sums in the same order on
// every GPU.
template <class S>
size_t weight_gradients_scratch_bytes(Cell cell, const Backward<S>& layer);
template <class S>
void weight_gradients(Cell cell, const Backward<S>& layer, const S* dz, void* scratch,
                      void* stream);

}  // namespace brnn::cuda::gate_gemm
