// products.h makes all time steps at once (part 1 of run_layer.h) by library products, one gate at
// a time where masks are untied. It serves the precisions that gate_gemm does not take. Operands
// are masked in copies of one gate, in scratch.
#pragma once

#include <cstddef>

#include "../run_layer.h"

namespace brnn::cuda::products {

// Makes gates [T, B, G*H] = W_k (m_k s x) + b_ih_k + b_hh_k, without b_hh of the gates whose bias
// is recurrent (cells.h).
template <class S>
size_t input_part_scratch_bytes(Cell cell, const Forward<S>& layer);
template <class S>
void input_part(Cell cell, const Forward<S>& layer, S* gates, const Host& host, void* scratch);

// Makes layer.dx [T, B, I] = sum over k of m_k s (W_k^T dz_k), from dz [T, B, slots*H].
template <class S>
size_t input_gradient_scratch_bytes(Cell cell, const Backward<S>& layer);
template <class S>
void input_gradient(Cell cell, const Backward<S>& layer, const S* dz, const Host& host,
                    void* scratch);

// Makes layer.dweight_ih, dweight_hh, and dbias_ih and dbias_hh where wanted, from dz [T, B,
// slots*H].
template <class S>
size_t weight_gradients_scratch_bytes(Cell cell, const Backward<S>& layer);
template <class S>
void weight_gradients(Cell cell, const Backward<S>& layer, const S* dz, const Host& host,
                      void* scratch);

}  // namespace brnn::cuda::products
