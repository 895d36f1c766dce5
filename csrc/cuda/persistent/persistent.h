// persistent.h offers the persistent recurrence: all time steps of a layer in one kernel, or as
// many as Recurrence::steps says in each of several. It is plain C++; the kernels stand in
// forward.cuh and backward.cuh, the host code in host.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../layer.h"
#include "../plan/plan.h"

namespace brnn::cuda::persistent {

// Both passes return whether they were started. Not where the blocks wait for each other and the
// device at hand, or what the driver gives this process of it, does not run all of them at the same
// time: then the caller takes stepwise, which finds all that it begins with. An engine that was
// asked for by name raises std::runtime_error in its place, and so does forward where there is no
// input part for stepwise: it is refused after launches that have replaced it, or has a fused one.

// gates [T, B, G*H]: holds the input part; activated gates after it where layer.gates is wanted.
template <class S>
size_t forward_scratch_bytes(const Recurrence& plan, Cell cell, const Forward<S>& layer);
template <class S>
bool forward(const Recurrence& plan, Cell cell, const Forward<S>& layer, S* gates, void* scratch,
             void* stream);

// dz [T, B, slots*H]: gradients of all slots, rounded to S. Also writes dh0 and dc0 of the layer.
template <class S>
size_t backward_scratch_bytes(const Recurrence& plan, Cell cell, const Backward<S>& layer);
template <class S>
bool backward(const Recurrence& plan, Cell cell, const Backward<S>& layer, S* dz, void* scratch,
              void* stream);

}  // namespace brnn::cuda::persistent
