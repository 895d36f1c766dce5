// test_kernels.cu - small kernels that put the machine itself to the test: the primitives of the
// product (test_primitives.cuh), a recurrence over blocks, right and wrong, and one bug at a time.
// A line with a bug says "BUG name".
#include "test_primitives.cuh"

namespace brnn::cuda {

// ---- a recurrence whose steps need all of the step before

struct StepParams {
  uint32_t* h;      // [T+1, N], h[0] given; the rest ~0 where data are polled
  uint32_t* flags;  // [T, blocks + 1], zero; nobody sets the last
  int T, N;         // a block of 32 threads owns 32 of the N
};

BRNN_DEVICE uint32_t step(const uint32_t* h, int N, int j) {
  uint32_t sum = j;
  for (int k = 0; k < N; ++k) sum = sum * 31 + h[k];
  return sum >> 2;  // never ~0
}

// no_wait: for the others' flags. no_barrier: between a block's writes and its flag. relaxed: does
// not order what was written before. nobody: waits for a flag that no block sets.
enum class Flags { right, no_wait, no_barrier, relaxed, nobody };
template <Flags Bug>
BRNN_DEVICE void steps_by_flags(const StepParams& p) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [N]
  const unsigned t = threadIdx.x, j = blockIdx.x * 32 + t;
  const unsigned blocks = gridDim.x, row = blocks + 1;
  for (int s = 0; s < p.T; ++s) {
    const bool waits = t < blocks || (Bug == Flags::nobody && t == blocks);
    if (s && waits && Bug != Flags::no_wait)
      while (load_acquire(p.flags + (s - 1) * row + t) == 0) {
      }
    __syncthreads();
    for (int i = t; i < p.N; i += 32) shared[i] = load_l2(p.h + s * p.N + i);  // READ h
    __syncthreads();
    p.h[(s + 1) * p.N + j] = step(shared, p.N, j);  // WRITE h
    if (Bug != Flags::no_barrier) __syncthreads();
    if (t == 0 && Bug == Flags::relaxed) store_relaxed(p.flags + s * row + blockIdx.x, 1);
    if (t == 0 && Bug != Flags::relaxed) store_release(p.flags + s * row + blockIdx.x, 1);
  }
}
KERNEL(32, flags_right, StepParams) { steps_by_flags<Flags::right>(p); }
KERNEL(32, flags_no_wait, StepParams) { steps_by_flags<Flags::no_wait>(p); }
KERNEL(32, flags_no_barrier, StepParams) { steps_by_flags<Flags::no_barrier>(p); }
KERNEL(32, flags_relaxed, StepParams) { steps_by_flags<Flags::relaxed>(p); }
KERNEL(32, flags_nobody, StepParams) { steps_by_flags<Flags::nobody>(p); }

// halves: published 16 bits at a time.
template <bool Halves>
BRNN_DEVICE void steps_by_data(const StepParams& p) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [2, N]
  const int t = threadIdx.x, j = blockIdx.x * 32 + t;
  for (int s = 0; s < p.T; ++s) {
    uint32_t* const now = shared + s % 2 * p.N;
    for (int i = t * 4; i < p.N; i += 128) {
      const uint4* from = reinterpret_cast<const uint4*>(p.h + s * p.N + i);
      uint4 v = load_relaxed(from);
      while (v.x == ~0u || v.y == ~0u || v.z == ~0u || v.w == ~0u) v = load_relaxed(from);
      *reinterpret_cast<uint4*>(now + i) = v;
    }
    __syncthreads();
    const uint32_t h = step(now, p.N, j);
    uint32_t* const to = p.h + (s + 1) * p.N + j;
    if (Halves) {
      volatile uint16_t* const half = reinterpret_cast<volatile uint16_t*>(to);
      half[0] = uint16_t(h);
      half[1] = uint16_t(h >> 16);
    } else {
      store_relaxed(to, h);
    }
  }
}
KERNEL(32, data_right, StepParams) { steps_by_data<false>(p); }
KERNEL(32, data_halves, StepParams) { steps_by_data<true>(p); }

// no_barrier: of the block only. leaves_early: while others still write into its shared memory.
// no_start: writes into blocks that may not have started.
enum class Peers { right, no_barrier, leaves_early, no_start };
template <Peers Bug>
BRNN_DEVICE void steps_by_peers(const StepParams& p) {
  uint32_t* const shared = shared_memory<uint32_t>();  // [2, N]
  const int t = threadIdx.x, j = blockIdx.x * 32 + t;
  for (int i = t; i < p.N; i += 32) shared[i] = p.h[i];
  if (Bug == Peers::no_start) {
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();
  }
  for (int s = 0; s < p.T; ++s) {
    const uint32_t h = step(shared + s % 2 * p.N, p.N, j);
    p.h[(s + 1) * p.N + j] = h;
    uint32_t* const next = shared + (s + 1) % 2 * p.N + j;
    for (unsigned rank = 0; rank < gridDim.x; ++rank) *cluster_map(next, rank) = h;  // WRITE peer
    if (Bug == Peers::leaves_early && s == p.T - 1) break;
    if (Bug == Peers::no_barrier) {
      __syncthreads();
    } else {
      cluster_arrive();
      cluster_wait();
    }
  }
}
KERNEL(32, peers_right, StepParams) { steps_by_peers<Peers::right>(p); }
KERNEL(32, peers_no_barrier, StepParams) { steps_by_peers<Peers::no_barrier>(p); }
KERNEL(32, peers_leaves_early, StepParams) { steps_by_peers<Peers::leaves_early>(p); }
KERNEL(32, peers_no_start, StepParams) { steps_by_peers<Peers::no_start>(p); }

// ---- one bug each, in blocks of 64 threads with 256 bytes of shared memory

struct BugParams {
  uint32_t* out;  // [256], zero
};
// A loop that never ends is found anywhere in its kernel and has no mark.
#define BUG(name) KERNEL(64, name, BugParams)
#define SHARED uint32_t* const shared = shared_memory<uint32_t>()  // [64]
#define THREAD const unsigned t = threadIdx.x

BUG(divergent_barriers) {
  THREAD;
  if (t < 32) {
    __syncthreads();  // BUG divergent_barriers
    p.out[t] = 1;
  } else {
    named_barrier(1, 64);
  }
}
BUG(two_places) {
  THREAD;
  if (t < 32) {
    __syncthreads();  // BUG two_places
    p.out[t] = 1;
  } else {
    __syncthreads();
    p.out[t] = 2;
  }
}
BUG(half_a_shuffle) {
  THREAD;
  if (t % 32 < 16) {
    p.out[t] = __shfl_xor_sync(~0u, t, 1);  // BUG half_a_shuffle
  } else {
    __syncwarp();
    p.out[t] = 2;
  }
}
BUG(lane_gone) {
  THREAD;
  if (t % 32 == 7) return;
  p.out[t] = __shfl_xor_sync(~0u, t, 1);  // BUG lane_gone
}
BUG(half_a_warp) {
  THREAD;
  if (t % 2) named_barrier(1, 32);  // BUG half_a_warp
  __syncthreads();
}
BUG(half_a_matrix) {
  SHARED;
  THREAD;
  uint32_t words[4] = {};
  if (t % 2) load_matrices(words, shared + t % 8 * 4);  // BUG half_a_matrix
  __syncthreads();
  p.out[t] = words[0];
}
BUG(two_counts) {
  THREAD;
  named_barrier(1, t % 2 ? 32 : 64);  // BUG two_counts
}
BUG(no_block_barrier) {
  SHARED;
  THREAD;
  shared[t] = t;              // WRITE shared
  p.out[t] = shared[63 - t];  // BUG no_block_barrier
}
BUG(no_warp_barrier) {
  SHARED;
  THREAD;
  shared[t] = t;
  p.out[t] = shared[t ^ 1];  // BUG no_warp_barrier
}
BUG(warp_barrier) {  // correct, and a warp's own business
  SHARED;
  THREAD;
  shared[t] = t;
  __syncwarp();
  p.out[t] = shared[t ^ 1];
}
BUG(never_written) {
  SHARED;
  THREAD;
  p.out[t] = shared[t];
}
BUG(wrong_barrier) {  // a named barrier orders its own warps only
  SHARED;
  THREAD;
  shared[t] = t;
  named_barrier(1 + t / 32, 32);
  p.out[t] = shared[63 - t];  // BUG wrong_barrier
}
BUG(shuffle_is_no_barrier) {
  SHARED;
  THREAD;
  shared[t] = t;
  p.out[64 + t] = __shfl_xor_sync(~0u, t, 1);
  p.out[t] = shared[t ^ 1];  // BUG shuffle_is_no_barrier
}
BUG(one_word) {
  p.out[blockIdx.x] = threadIdx.x;  // BUG one_word
}
BUG(past_shared) {
  SHARED;
  THREAD;
  shared[t + (t == 63)] = t;  // BUG past_shared
}
BUG(past_global) {
  THREAD;
  p.out[t + 256 * (t == 63)] = t;  // BUG past_global
}
BUG(raw_spin) {
  while (*static_cast<volatile uint32_t*>(p.out) == 0) {
  }
}
BUG(votes_for_ever) {
  bool missing = true;
  while (missing) {
    const uint4 v = load_relaxed(reinterpret_cast<const uint4*>(p.out) + threadIdx.x);
    missing = __any_sync(~0u, v.x == 0);
  }
}
BUG(two_flags_never) {
  while (load_acquire(p.out) == 0 || load_acquire(p.out + 1) == 0) {
  }
}
BUG(two_flags_late) {  // two flags, set late: correct
  THREAD;
  if (t == 1) store_release(p.out, 1);
  if (t == 0)
    while (load_acquire(p.out) == 0 || load_acquire(p.out + 1) == 0) {
    }
  if (t == 63) store_release(p.out + 1, 1);
}
BUG(waits_for_a_block) {  // every block waits for the last one
  if (threadIdx.x) return;
  if (blockIdx.x == gridDim.x - 1) store_release(p.out, 1);
  while (load_acquire(p.out) == 0) {  // BUG waits_for_a_block
  }
}
BUG(one_lane_polls) {
  bool there = false;
  while (!there) {
    there = threadIdx.x % 32 == 0 && load_acquire(p.out) != 0;
    there = __any_sync(~0u, there);
  }
}
BUG(barrier_every_round) {
  SHARED;
  THREAD;
  if (t == 0) shared[0] = 0;
  __syncthreads();
  while (shared[0] == 0) {
    __syncthreads();
    if (t == 0) shared[0] = load_acquire(p.out);
    __syncthreads();
  }
}
BUG(counts_for_ever) {  // no memory, no end
  uint32_t n = threadIdx.x;
  while (n != 64) {
    n = n * 2654435761u | 128;
    opaque(n);
  }
  p.out[0] = n;
}
BUG(stores_for_ever) {
  for (uint32_t n = 0;; ++n) store_relaxed(p.out + threadIdx.x, n);
}
BUG(misaligned_row) {
  SHARED;
  uint32_t words[4];
  load_matrices(words, shared + 1);  // BUG misaligned_row
  p.out[threadIdx.x] = words[0];
}
BUG(row_not_shared) {
  SHARED;
  uint32_t words[4];
  load_matrices(words, shared + 1024);  // BUG row_not_shared
  p.out[threadIdx.x] = words[0];
}
BUG(no_such_barrier) {
  named_barrier(16, 64);  // BUG no_such_barrier
}
BUG(outside_mask) {
  THREAD;
  p.out[t] = __shfl_sync(0xFFFFu << (t & 16), 1u, 3);  // BUG outside_mask
}
BUG(misaligned_copy) {
  copy_async(shared_memory<uint32_t>() + 1, p.out, true);  // BUG misaligned_copy
}
BUG(misaligned_load) {
  p.out[threadIdx.x] = load_l2(reinterpret_cast<const uint4*>(p.out + 1)).x;  // BUG misaligned_load
}
BUG(no_arrive) {
  cluster_wait();  // BUG no_arrive
}
BUG(no_cluster_wait) {
  cluster_arrive();  // BUG no_cluster_wait
}
BUG(no_such_rank) {
  *cluster_map(shared_memory<uint32_t>(), 1) = 0;  // BUG no_such_rank
}

}  // namespace brnn::cuda
