// emulator_bugs.cuh - one bug at a time that the emulator must find. Its line says "BUG name".
#pragma once

#include "cuda/device/launch.cuh"

namespace brnn::testing {

using namespace cuda;

// Names as in the enumeration, for Python.
enum class Bug {
  divergent_barriers,
  two_places,
  half_a_shuffle,
  lane_gone,
  half_a_warp,
  two_mma,
  two_counts,
  no_block_barrier,
  no_warp_barrier,
  warp_barrier,
  never_written,
  wrong_barrier,
  one_word,
  past_shared,
  past_global,
  raw_spin,
  votes_for_ever,
  two_flags_never,
  two_flags_late,
  waits_for_a_block,
  votes_without_spin,
  one_lane_polls,
  barrier_every_round,
  stores_for_ever,
  misaligned_row,
  row_not_shared,
  no_arrive,
  no_cluster_wait,
  no_such_rank,
  no_such_barrier,
  outside_mask,
  misaligned_copy,
  throws,
};
constexpr const char* bug_names[] = {
    "divergent_barriers", "two_places",          "half_a_shuffle",
    "lane_gone",          "half_a_warp",         "two_mma",
    "two_counts",         "no_block_barrier",    "no_warp_barrier",
    "warp_barrier",       "never_written",       "wrong_barrier",
    "one_word",           "past_shared",         "past_global",
    "raw_spin",           "votes_for_ever",      "two_flags_never",
    "two_flags_late",     "waits_for_a_block",   "votes_without_spin",
    "one_lane_polls",     "barrier_every_round", "stores_for_ever",
    "misaligned_row",     "row_not_shared",      "no_arrive",
    "no_cluster_wait",    "no_such_rank",        "no_such_barrier",
    "outside_mask",       "misaligned_copy",     "throws"};

struct BugParams {
  Bug bug;
  uint32_t* out;  // [256], zero
};

BRNN_DEVICE void divergent_code(Bug bug, uint32_t* out) {
  const unsigned t = threadIdx.x;
  if (bug == Bug::divergent_barriers) {
    if (t < 32) {
      __syncthreads();  // BUG divergent_barriers
    } else {
      named_barrier(1, 64);
    }
  }
  if (bug == Bug::two_places) {
    if (t < 32) {
      __syncthreads();  // BUG two_places
    } else {
      __syncthreads();
    }
  }
  if (bug == Bug::half_a_shuffle) {
    if (t % 32 < 16) {
      out[t] = __shfl_xor_sync(~0u, t, 1);  // BUG half_a_shuffle
    } else {
      __syncwarp();
    }
  }
  if (bug == Bug::lane_gone) {
    if (t % 32 == 7) return;
    out[t] = __shfl_xor_sync(~0u, t, 1);  // BUG lane_gone
  }
  if (bug == Bug::half_a_warp) {
    if (t % 2) named_barrier(1, 32);  // BUG half_a_warp
    __syncthreads();
  }
  if (bug == Bug::two_mma) {
    float c[4] = {};
    const uint32_t a[4] = {};
    if (t % 2) {
      mma(bfloat16{}, c, a, 0, 0);  // BUG two_mma
    } else {
      mma(bfloat16{}, c, a, 0, 0);
    }
  }
  if (bug == Bug::two_counts) named_barrier(1, t % 2 ? 32 : 64);  // BUG two_counts
}

BRNN_DEVICE void missing_order(Bug bug, uint32_t* out) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [64]
  const unsigned t = threadIdx.x;
  if (bug == Bug::no_block_barrier) {
    shared[t] = t;            // WRITE shared
    out[t] = shared[63 - t];  // BUG no_block_barrier
  }
  if (bug == Bug::no_warp_barrier) {
    shared[t] = t;           // WRITE warp's
    out[t] = shared[t ^ 1];  // BUG no_warp_barrier
  }
  if (bug == Bug::warp_barrier) {
    shared[t] = t;
    __syncwarp();
    out[t] = shared[t ^ 1];  // correct, and a warp's own business
  }
  if (bug == Bug::never_written) out[t] = shared[t];  // BUG never_written
  if (bug == Bug::wrong_barrier) {                    // a named barrier orders its own warps only
    shared[t] = t;
    named_barrier(1 + t / 32, 32);
    out[t] = shared[63 - t];  // BUG wrong_barrier
  }
  if (bug == Bug::one_word) out[blockIdx.x] = t;              // BUG one_word
  if (bug == Bug::past_shared) shared[t + (t == 63)] = t;     // BUG past_shared
  if (bug == Bug::past_global) out[t + 256 * (t == 63)] = t;  // BUG past_global
}

BRNN_DEVICE void endless(Bug bug, uint32_t* out) {
  const unsigned t = threadIdx.x;
  if (bug == Bug::raw_spin)
    while (*static_cast<volatile uint32_t*>(out) == 0) {  // BUG raw_spin
    }
  if (bug == Bug::votes_for_ever) {
    bool missing = true;
    while (missing) {
      const uint4 v = load_relaxed(reinterpret_cast<const uint4*>(out) + t);
      missing = __any_sync(~0u, v.x == 0);
      if (missing) spin();  // BUG votes_for_ever
    }
  }
  if (bug == Bug::two_flags_never)
    while (load_acquire(out) == 0 || load_acquire(out + 1) == 0) {  // BUG two_flags_never
    }
  if (bug == Bug::two_flags_late) {  // two flags, set late: correct
    if (t == 1) store_release(out, 1);
    if (t == 0)
      while (load_acquire(out) == 0 || load_acquire(out + 1) == 0) {
      }
    if (t == 63) store_release(out + 1, 1);
  }
  if (bug == Bug::waits_for_a_block && t == 0) {  // block 0 waits for the last one
    if (blockIdx.x == gridDim.x - 1) store_release(out, 1);
    while (load_acquire(out) == 0) {  // BUG waits_for_a_block
    }
  }
  if (bug == Bug::votes_without_spin) {
    while (!__any_sync(~0u, load_acquire(out + t) != 0)) {  // BUG votes_without_spin
    }
  }
}

// Endless loops whose threads meet in every round.
BRNN_DEVICE void endless_together(Bug bug, uint32_t* out) {
  const unsigned t = threadIdx.x;
  uint32_t* const shared = shared_memory<uint32_t>();
  if (bug == Bug::one_lane_polls) {
    bool there = false;
    while (!there) {
      there = t % 32 == 0 && load_acquire(out) != 0;  // BUG one_lane_polls
      there = __any_sync(~0u, there);
    }
  }
  if (bug == Bug::barrier_every_round) {
    if (t == 0) shared[0] = 0;
    __syncthreads();
    while (shared[0] == 0) {
      __syncthreads();
      if (t == 0) shared[0] = load_acquire(out);  // BUG barrier_every_round
      __syncthreads();
    }
  }
  if (bug == Bug::stores_for_ever)
    while (true) {
      store_relaxed(out + t, t);
      __syncwarp();  // BUG stores_for_ever
    }
}

BRNN_DEVICE void misuse(Bug bug, uint32_t* out) {
  uint32_t* const shared = shared_memory<uint32_t>();
  uint32_t words[4];
  if (bug == Bug::misaligned_row) load_matrices(words, shared + 1);  // BUG misaligned_row
  if (bug == Bug::row_not_shared) load_matrices(words, out);         // BUG row_not_shared
  if (bug == Bug::no_arrive) cluster_wait();                         // BUG no_arrive
  if (bug == Bug::no_cluster_wait) cluster_arrive();                 // BUG no_cluster_wait
  if (bug == Bug::no_such_rank) *cluster_map(shared, 1) = 0;         // BUG no_such_rank
  if (bug == Bug::no_such_barrier) named_barrier(16, 64);            // BUG no_such_barrier
  if (bug == Bug::outside_mask)
    out[threadIdx.x] = __shfl_sync(0xFFFFu << (threadIdx.x & 16), 1u, 3);  // BUG outside_mask
  if (bug == Bug::misaligned_copy) copy_async(shared + 1, out, true);      // BUG misaligned_copy
  if (bug == Bug::throws && threadIdx.x == 5) throw std::runtime_error("thrown by thread 5");
}

__global__ void __launch_bounds__(64) bug_kernel(const __grid_constant__ BugParams p) {
  divergent_code(p.bug, p.out);
  missing_order(p.bug, p.out);
  endless(p.bug, p.out);
  endless_together(p.bug, p.out);
  misuse(p.bug, p.out);
}

}  // namespace brnn::testing
