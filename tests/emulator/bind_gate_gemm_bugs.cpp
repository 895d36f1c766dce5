// bind_gate_gemm_bugs.cpp - the products of gate_gemm.h with one thing wrong at a time, to prove
// that their tests can fail: barriers and waits here, wrong parameters in bind_gate_gemm.h.
#include "bind_layer.h"
#include "cuda/device/launch.cuh"

namespace brnn::testing {

extern std::string seeded_bug;

inline void barrier_or_none(emu::Site at = emu::Site::current()) {
  if (seeded_bug != "no barrier") emu::block_barrier(at);
}
template <int Pending>
void wait_or_less(emu::Site at = emu::Site::current()) {
  if (seeded_bug != "no wait") emu::copy_async_wait(Pending + (seeded_bug == "late wait"), at);
}

}  // namespace brnn::testing

#define __syncthreads brnn::testing::barrier_or_none
#define copy_async_wait brnn::testing::wait_or_less
#include "cuda/gate_gemm/host.cuh"
#undef __syncthreads
#undef copy_async_wait

#include "bind_gate_gemm.h"

PYBIND11_MODULE(bind_gate_gemm_bugs, m) { brnn::testing::bind_products<brnn::bfloat16>(m); }
