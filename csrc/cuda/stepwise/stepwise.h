// stepwise.h offers the recurrence of any size and dtype: a library product a step and a kernel or
// two that do the rest. It takes its memory from the scratch block and never waits for the host, so
// it runs inside a captured graph.
#pragma once

#include <cstddef>

#include "../run_layer.h"

namespace brnn::cuda::stepwise {

template <class S>
size_t forward_scratch_bytes(Cell cell, const Forward<S>& layer);
// gates [T, B, G*H] has the input part on entry; on return it has the activated gates if
// layer.gates is set (it may be the same memory), else nothing of use.
template <class S>
void forward(Cell cell, const Forward<S>& layer, S* gates, const Host& host, void* scratch);

template <class S>
size_t backward_scratch_bytes(Cell cell, const Backward<S>& layer);
// Writes dz [T, B, slots*H], layer.dh0 and layer.dc0.
template <class S>
void backward(Cell cell, const Backward<S>& layer, S* dz, const Host& host, void* scratch);

}  // namespace brnn::cuda::stepwise
