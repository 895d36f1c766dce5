// probes.cu - what decides the cost of a step and no data sheet gives, by the kernels' own
// instructions and without torch. bench/gpu/probes.py compiles, runs and explains it. Every probe
// writes what it has read or summed, so that nothing is optimised away and tests can check it.
#include <cstring>

#include "cuda/device/launch.cuh"

namespace brnn::cuda {
namespace {

struct Params {
  uint32_t* memory;
  int64_t words;    // of memory
  int repeats;      // or steps
  int partner;      // hop: the block that answers
  int64_t* cycles;  // [blocks]
  uint32_t* seen;   // [blocks, threads]
};

#define PROBE(threads, name) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)

// Cycles from the first thread's start to the last one's end.
template <class Work>
BRNN_DEVICE void timed(const Params& p, const Work& work) {
  __syncthreads();
  const long long start = clock64();
  work();
  __syncthreads();
  if (threadIdx.x == 0) p.cycles[blockIdx.x] = clock64() - start;
}

BRNN_DEVICE void saw(const Params& p, uint32_t value) {
  p.seen[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

// Each block reads `repeats` times 16 bytes a thread, around all of memory: what every block does
// with h_t. Memory has at least 16 bytes for each thread, so that one step around is enough.
PROBE(1024, l2_reads) {
  constexpr int kInFlight = 8;  // loads of a thread
  const uint4* const words = reinterpret_cast<const uint4*>(p.memory);
  const int64_t count = p.words / 4;
  uint32_t sum = 0;
  timed(p, [&] {
    int64_t at = threadIdx.x;
    for (int repeat = 0; repeat < p.repeats; repeat += kInFlight) {
      uint4 v[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        v[j] = load_relaxed(words + at);
        at += blockDim.x;
        if (at >= count) at -= count;
      }
#pragma unroll
      for (const uint4& word : v) sum += word.x ^ word.y ^ word.z ^ word.w;
    }
  });
  saw(p, sum);
}

// Every warp: `repeats` times 8 independent products of numbers from memory, which as bfloat16 are
// of ordinary size.
PROBE(1024, tensor_cores) {
  constexpr int kChains = 8;
  float sums[kChains][4] = {};
  const uint32_t* const mine = p.memory + threadIdx.x % 32;
  uint32_t a[4], b[kChains][2];
  for (int i = 0; i < 4; ++i) a[i] = mine[32 * i];
  for (int i = 0; i < kChains; ++i)
    b[i][0] = mine[32 * (4 + 2 * i)], b[i][1] = mine[32 * (5 + 2 * i)];
  timed(p, [&] {
    for (int repeat = 0; repeat < p.repeats; ++repeat) {
#pragma unroll
      for (int i = 0; i < kChains; ++i) mma(bfloat16{}, sums[i], a, b[i][0], b[i][1]);
      opaque(a[0]);
    }
  });
  float total = 0;
  for (const auto& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
  saw(p, float_to_bits(total));
}

// As grid_flags publishes: one thread a block stores a word and then its flag with release, each
// block in cache lines of its own.
PROBE(32, releases) {
  uint32_t* const mine = p.memory + 64 * blockIdx.x;
  timed(p, [&] {
    if (threadIdx.x != 0) return;
    for (int repeat = 1; repeat <= p.repeats; ++repeat) {
      store_relaxed(mine, repeat);
      store_release(mine + 32, repeat);
    }
  });
  saw(p, threadIdx.x == 0 ? load_acquire(mine + 32) : 0);
}

// A barrier of a cluster with release and acquire.
PROBE(256, cluster_barriers) {
  timed(p, [&] {
    for (int repeat = 0; repeat < p.repeats; ++repeat) cluster_arrive(), cluster_wait();
  });
  saw(p, blockIdx.x);
}

// A word there and back between blocks 0 and `partner`; memory of 64 words a repeat is 0xFF.
PROBE(32, hops) {
  const bool first = blockIdx.x == 0, second = int(blockIdx.x) == p.partner;
  if (threadIdx.x != 0 || !(first || second)) return;
  const auto await = [](const uint32_t* word) {
    uint32_t value;
    while ((value = load_relaxed(word)) == ~0u) {
    }
    return value;
  };
  uint32_t sum = 0;
  const long long start = clock64();
  for (int i = 0; i < p.repeats; ++i) {
    uint32_t* const word = p.memory + 64 * i;
    if (first) {
      store_relaxed(word, i + 1);
      sum += await(word + 32);
    } else {
      store_relaxed(word + 32, await(word) + 1);
    }
  }
  if (first) p.cycles[0] = clock64() - start;
  if (first) p.seen[0] = sum;
}

// The sum over 8 warps of four gates, 128 elements each: stores, barrier, loads.
PROBE(256, warp_sums) {
  float4* const shared = shared_memory<float4>();
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  float4 own = {float(t % 7), 1, 2, 3};
  float total = 0;
  timed(p, [&] {
    for (int repeat = 0; repeat < p.repeats; ++repeat) {
      float4* const buffer = shared + (repeat & 1) * 1024;
#pragma unroll
      for (int j = 0; j < 4; ++j) buffer[warp * 128 + j * 32 + lane] = own;
      __syncthreads();
      if (warp < 4) {
        float4 sum = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const float4 part = buffer[k * 128 + t];
          sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
        }
        total = sum.x + sum.y + sum.z + sum.w;
        own.x = total > 1e6f ? 0.f : own.x;  // the next round waits for this one, as a step does
      }
    }
  });
  saw(p, float_to_bits(total));
}

// Three chunks of k for four gates: 24 products a warp in 4 chains, each operand masked by an AND.
PROBE(256, masked_products) {
  const uint32_t* const mine = p.memory + threadIdx.x % 32;
  uint32_t u[4][4], h[3][4], keep[4];
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    keep[g] = mine[32 * g] | 0xFFFF0000u;
#pragma unroll
    for (int i = 0; i < 4; ++i) u[g][i] = mine[32 * (4 + 4 * g + i)];
  }
#pragma unroll
  for (int k = 0; k < 3; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) h[k][i] = mine[32 * (20 + 4 * k + i)];
  float total = 0;
  timed(p, [&] {
    for (int repeat = 0; repeat < p.repeats; ++repeat) {
      float sums[4][4] = {};
#pragma unroll
      for (int k = 0; k < 3; ++k)
#pragma unroll
        for (int g = 0; g < 4; ++g) {
          mma(bfloat16{}, sums[g], u[g], h[k][0] & keep[g], h[k][1] & keep[g]);
          mma(bfloat16{}, sums[g], u[g], h[k][2] & keep[g], h[k][3] & keep[g]);
        }
      total = 0;
#pragma unroll
      for (int g = 0; g < 4; ++g) total += sums[g][0] + sums[g][1] + sums[g][2] + sums[g][3];
#pragma unroll
      for (int g = 0; g < 4; ++g) keep[g] |= total > 1e30f;  // the next round waits for this one
      __syncthreads();
    }
  });
  saw(p, float_to_bits(total));
}

// ---- the exchange of a grid alone: 48 unit tiles of 16, two batch tiles, as of H = 768, B = 16

constexpr int kAllChunks = 24, kBatchTiles = 2;
constexpr int kWordsOfChunk = 128;
constexpr int kPlane = kBatchTiles * kAllChunks * kWordsOfChunk;  // words of a plane of a stage

BRNN_DEVICE bool has_empty(const uint4& v) {
  const uint32_t xy = v.x > v.y ? v.x : v.y, zw = v.z > v.w ? v.z : v.w;
  return (xy > zw ? xy : zw) == ~0u;
}

// Planes: 1 of forward, 4 of backward. Ahead: loads of a thread under way beyond those it waits
// for. Prefetch: one warp asks for a share of the stage four steps ahead to be brought into L2.
template <int Planes, int Ahead, bool Prefetch>
BRNN_DEVICE void exchange(const Params& p) {
  constexpr int kLoads = 3 * Planes, kLines = Planes * kPlane / 32;
  const int t = threadIdx.x, lane = t % 32, warp = t / 32, tile = blockIdx.x, n = blockIdx.y;
  uint32_t* const from = p.memory + (n * kAllChunks + 3 * warp) * kWordsOfChunk + lane * 4;
  uint32_t* const to = p.memory + (n * kAllChunks + tile / 2) * kWordsOfChunk + t / 16 * 16 +
                       tile % 2 * 8 + t % 16 / 2;
  uint32_t* const sums = shared_memory<uint32_t>();
  const auto publish = [&](int s, uint32_t value) {
    if (t >= 128 || t % 2) return;
#pragma unroll
    for (int plane = 0; plane < Planes; ++plane)
      store_relaxed(to + (int64_t(s) * Planes + plane) * kPlane, value & 0x7FFF7FFFu);
  };
  const auto place = [&](int s, int i) {
    return reinterpret_cast<const uint4*>(from + (int64_t(s) * Planes + i / 3) * kPlane +
                                          i % 3 * kWordsOfChunk);
  };
  uint32_t total = 0;
  publish(0, tile + 1);
  const long long start = clock64();
  for (int s = 0; s < p.repeats; ++s) {
    if (Prefetch && warp == 7 && s + 4 < p.repeats)
      for (int line = n * gridDim.x + tile + 96 * lane; line < kLines; line += 96 * 32)
        prefetch_l2(p.memory + int64_t(s + 4) * Planes * kPlane + line * 32);
    uint4 v[kLoads];
#pragma unroll
    for (int i = 0; i < Ahead && i < kLoads; ++i) v[i] = load_relaxed(place(s, i));
    uint32_t sum = 0;
#pragma unroll
    for (int begin = 0; begin < kLoads; begin += Ahead) {
#pragma unroll
      for (int i = begin + Ahead; i < begin + 2 * Ahead && i < kLoads; ++i)
        v[i] = load_relaxed(place(s, i));
      for (;;) {
        bool missing = false;
#pragma unroll
        for (int i = begin; i < begin + Ahead && i < kLoads; ++i) missing |= has_empty(v[i]);
        if (!missing) break;
#pragma unroll
        for (int i = begin; i < begin + Ahead && i < kLoads; ++i)
          if (has_empty(v[i])) v[i] = load_relaxed(place(s, i));
      }
      __syncwarp();
#pragma unroll
      for (int i = begin; i < begin + Ahead && i < kLoads; ++i)
        sum += v[i].x + v[i].y + v[i].z + v[i].w;
    }
    if (lane == 0) sums[(s & 1) * 8 + warp] = sum;
    __syncthreads();
    total += sums[(s & 1) * 8 + s % 8];
    if (s + 1 < p.repeats) publish(s + 1, total + tile);
  }
  if (t == 0) p.cycles[n * gridDim.x + tile] = clock64() - start;
  p.seen[(n * gridDim.x + tile) * 256 + t] = total;
}

#define EXCHANGE(planes, ahead, prefetch)                \
  PROBE(256, exchange_##planes##_##ahead##_##prefetch) { \
    exchange<planes, ahead, prefetch != 0>(p);           \
  }
EXCHANGE(1, 3, 0)
EXCHANGE(1, 3, 1)
EXCHANGE(1, 1, 1)
EXCHANGE(4, 12, 0)
EXCHANGE(4, 12, 1)
EXCHANGE(4, 6, 1)
EXCHANGE(4, 3, 1)

PROBE(32, nothing) { saw(p, 1); }

struct Probe {
  const char* name;
  void (*kernel)(Params);
  int shared_bytes;
};
const Probe kProbes[] = {
    {"l2_reads", l2_reads, 0},
    {"tensor_cores", tensor_cores, 0},
    {"releases", releases, 0},
    {"cluster_barriers", cluster_barriers, 0},
    {"hops", hops, 0},
    {"warp_sums", warp_sums, 32768},
    {"masked_products", masked_products, 0},
    {"exchange_1_3_0", exchange_1_3_0, 64},
    {"exchange_1_3_1", exchange_1_3_1, 64},
    {"exchange_1_1_1", exchange_1_1_1, 64},
    {"exchange_4_12_0", exchange_4_12_0, 64},
    {"exchange_4_12_1", exchange_4_12_1, 64},
    {"exchange_4_6_1", exchange_4_6_1, 64},
    {"exchange_4_3_1", exchange_4_3_1, 64},
    {"nothing", nothing, 0},
};

}  // namespace
}  // namespace brnn::cuda

// How a probe is launched, `launches` times; the rest is Params.
struct ProbeCall {
  const char* name;
  int launches, blocks, blocks_y, threads, cluster, cooperative;
  int repeats, partner;
  void* memory;
  int64_t bytes;
  void *cycles, *seen, *stream;
};

// Launches a probe. Returns null, or what is wrong, which is valid until the next call.
extern "C" const char* probe(const ProbeCall* call) {
  using namespace brnn::cuda;
  static std::string error;
  for (const Probe& known : kProbes) {
    if (std::strcmp(call->name, known.name)) continue;
    const Params params{static_cast<uint32_t*>(call->memory),
                        call->bytes / 4,
                        call->repeats,
                        call->partner,
                        static_cast<int64_t*>(call->cycles),
                        static_cast<uint32_t*>(call->seen)};
    const Grid grid{.x = unsigned(call->blocks),
                    .y = unsigned(call->blocks_y),
                    .threads = call->threads,
                    .shared_bytes = known.shared_bytes,
                    .cluster = call->cluster,
                    .cooperative = call->cooperative != 0};
    try {
      for (int i = 0; i < call->launches; ++i) launch(known.kernel, grid, call->stream, params);
    } catch (const std::exception& failed) {
      error = failed.what();
      return error.c_str();
    }
    return nullptr;
  }
  error = std::string("name: expected a probe, got '") + call->name + "'";
  return error.c_str();
}
