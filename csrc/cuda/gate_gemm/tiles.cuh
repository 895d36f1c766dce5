// tiles.cuh has what the matrix products of kernels.cuh are made of: tiles of operands in shared
// memory, the pipeline that fills them, tensor-core products of tiles, and the way of the sums to
// memory. An operand has an outer index (rows or columns of the result) and k.
#pragma once

#include "../device/intrinsics.cuh"

namespace brnn::cuda::gate_gemm {

template <class S>
constexpr int kPerWord = 4 / int(sizeof(S));
template <class S>
constexpr int kLanes = 16 / int(sizeof(S));  // numbers of a chunk of 16 bytes
template <class S>
constexpr int kHalf = kLanes<S> / 2;  // numbers of 8 bytes
template <class S>
constexpr int kDepth = 64 / int(sizeof(S));  // k of a tile: two tensor-core steps
constexpr int kThreadChunks = 2;             // chunks of a tile that a thread brings

// A Shape cuts a block's tile of the result into warps and those into fragments of 16 x 8.
template <int kM_, int kN_, int kWarpsM, int kWarpsN>
struct Shape {
  static_assert(kWarpsN == kM_ / kWarpsM / 16, "sum_over_k");
  static constexpr int kM = kM_, kN = kN_, kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kFragmentsM = kM / kWarpsM / 16, kFragmentsN = kN / kWarpsN / 8;

  // These give the first row and column of a thread's warp.
  BRNN_DEVICE static int row(int thread = int(threadIdx.x)) {
    return thread / 32 / kWarpsN * (kM / kWarpsM);
  }
  BRNN_DEVICE static int column(int thread = int(threadIdx.x)) {
    return warp_column(thread) * (kN / kWarpsN);
  }
  BRNN_DEVICE static int warp_column(int thread = int(threadIdx.x)) {
    return thread / 32 % kWarpsN;
  }
  // Gives the first of the 16 rows that the warp sums in sum_over_k.
  BRNN_DEVICE static int summed_row(int thread = int(threadIdx.x)) {
    return row(thread) + warp_column(thread) * 16;
  }
};
using Large = Shape<128, 128, 2, 4>;
using Small = Shape<64, 64, 2, 2>;

template <class Shape>
using Sums = float[Shape::kFragmentsM][Shape::kFragmentsN][4];

// These give this lane's place in a fragment of the result, for its element e.
BRNN_DEVICE int fragment_row(int e) { return int(threadIdx.x) % 32 / 4 + e / 2 * 8; }
BRNN_DEVICE int fragment_column(int e) { return int(threadIdx.x) % 4 * 2 + e % 2; }

// ---- tiles in shared memory

// [kOuter][k]: the matrix in memory is contiguous along k. Rows of 64 bytes, chunks swizzled so
// that 8 rows of one chunk column lie in different banks.
template <class S, int kOuter>
struct AlongK {
  static constexpr int kRows = kOuter, kChunks = 4, kBytes = kOuter * 64;
  BRNN_DEVICE static int offset(int row, int chunk) {
    return row * 64 + (chunk ^ (row >> 1 & 3)) * 16;
  }
  // Fragments of 16 outer numbers from `outer` on and k step 0 or 1: the operand a, ...
  BRNN_DEVICE static void load_a(uint32_t (&a)[4], const unsigned char* tile, int outer, int step,
                                 int lane) {
    load_matrices(a, tile + offset(outer + lane % 16, step * 2 + lane / 16));
  }
  // ... or two operands b of 8 each.
  BRNN_DEVICE static void load_b(uint32_t (&b)[4], const unsigned char* tile, int outer, int step,
                                 int lane) {
    load_matrices(b, tile + offset(outer + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
  }
};

// [k][kOuter]: the matrix in memory has a row for each k, so fragments are transposed as they are
// loaded. Padded rows keep 8 rows of a chunk column (16 bit), or 4 x 8 words, in different banks.
template <class S, int kOuter>
struct AcrossK {
  static constexpr int kRows = kDepth<S>, kChunks = kOuter / kLanes<S>;
  static constexpr int kPitch = kChunks * 16 + 8 * int(sizeof(S)), kBytes = kRows * kPitch;
  BRNN_DEVICE static int offset(int row, int chunk) { return row * kPitch + chunk * 16; }
  BRNN_DEVICE static void load_a(uint32_t (&a)[4], const unsigned char* tile, int outer, int step,
                                 int lane) {
    if constexpr (kPerWord<S> == 2)
      load_matrices_transposed(
          a, tile + offset(step * 16 + lane / 16 * 8 + lane % 8, outer / 8 + lane / 8 % 2));
    else
      for (int i = 0; i < 4; ++i)
        a[i] = word(tile, step * 8 + lane % 4 + i / 2 * 4, outer + lane / 4 + i % 2 * 8);
  }
  BRNN_DEVICE static void load_b(uint32_t (&b)[4], const unsigned char* tile, int outer, int step,
                                 int lane) {
    if constexpr (kPerWord<S> == 2)
      load_matrices_transposed(
          b, tile + offset(step * 16 + lane / 8 % 2 * 8 + lane % 8, outer / 8 + lane / 16));
    else
      for (int i = 0; i < 4; ++i)
        b[i] = word(tile, step * 8 + lane % 4 + i % 2 * 4, outer + lane / 4 + i / 2 * 8);
  }

 private:
  BRNN_DEVICE static uint32_t word(const unsigned char* tile, int k, int outer) {
    return *reinterpret_cast<const uint32_t*>(tile + k * kPitch + outer * 4);
  }
};

// ---- products

// Adds a b of two tiles to sums.
template <class S, class Shape, class TileA, class TileB>
BRNN_DEVICE void multiply(Sums<Shape>& sums, const unsigned char* tile_a,
                          const unsigned char* tile_b) {
  int thread = int(threadIdx.x);
  opaque(thread);  // addresses are made anew for every tile: registers are scarcer
  const int lane = thread % 32, row = Shape::row(thread), column = Shape::column(thread);
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t b[Shape::kFragmentsN / 2][4];
#pragma unroll
    for (int n = 0; n < Shape::kFragmentsN / 2; ++n)
      TileB::load_b(b[n], tile_b, column + n * 16, step, lane);
#pragma unroll
    for (int m = 0; m < Shape::kFragmentsM; ++m) {
      uint32_t a[4];
      TileA::load_a(a, tile_a, row + m * 16, step, lane);
#pragma unroll
      for (int n = 0; n < Shape::kFragmentsN; ++n)
        mma(S{}, sums[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
  }
}

// Adds a times a matrix of ones to sums: every column has the sum over k of 16 outer numbers. The
// warps of a row of warps share the row's, a fragment each.
template <class S, class Shape, class TileA>
BRNN_DEVICE void sum_over_k(float (&sums)[4], const unsigned char* tile_a) {
  const uint32_t one = pack(S{}, 1.f, 1.f);
  int thread = int(threadIdx.x);
  opaque(thread);
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t a[4];
    TileA::load_a(a, tile_a, Shape::summed_row(thread), step, thread % 32);
    mma(S{}, sums, a, one, one);
  }
}

// Counts the stages of the ring. Rounding to tf32 in place takes one of its own.
template <class S, int kWanted>
constexpr int kStages = kWanted + DtypeOf<S>::rounds_operands;

// Brings the tiles of steps first .. last through a ring in shared memory and calls
// use(tile_a, tile_b, step) on each pair.
// The loaders copy kRing - 1 tiles ahead, fetch two ahead and finish the next.
template <class S, int kRing, class A, class B, class Use>
BRNN_DEVICE void pipeline(A& a, B& b, int first, int last, const Use& use) {
  constexpr int kBytesA = A::Tile::kBytes, kBytes = kBytesA + B::Tile::kBytes;
  constexpr int kPending = kRing - kStages<S, 2>;
  unsigned char* const ring = shared_memory<unsigned char>();
  const auto stage = [&](int step) { return ring + step % kRing * kBytes; };
  const auto copy = [&](int step) {
    if (step < last) a.copy(stage(step), step), b.copy(stage(step) + kBytesA, step);
    copy_async_commit();  // a group for each step, be it empty
  };
  const auto fetch = [&](int step) {
    if (step < last) a.fetch(step), b.fetch(step);
  };
  const auto finish = [&](int step) {
    if (step < last) a.finish(stage(step)), b.finish(stage(step) + kBytesA);
  };
#pragma unroll
  for (int i = 0; i < kRing - 1; ++i) copy(first + i);
  fetch(first);
  copy_async_wait<kRing - 2>();
  finish(first);
  fetch(first + 1);
#pragma unroll 1
  for (int step = first; step < last; ++step) {
    copy_async_wait<kPending>();
    __syncthreads();  // this tile is complete, and nobody uses the one before any more
    finish(step + 1);
    fetch(step + 2);
    copy(step + kRing - 1);
    use(stage(step), stage(step) + kBytesA, step);
  }
}

// ---- results

// Lane t of four gets word t of each: what lane i had as word t becomes word i.
BRNN_DEVICE void transpose_quad(uint32_t (&word)[4]) {
  const int t = int(threadIdx.x) % 4;
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!(i & bit)) {
        const bool upper = t & bit;
        const uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, upper ? word[i] : word[i | bit], bit);
        if (upper)
          word[i] = got;
        else
          word[i | bit] = got;
      }
}

// A Window looks into a row-major matrix: `rows` and `columns` are left from there on. Loads and
// stores of `vector` numbers are aligned: kLanes, kHalf, 2 or 1.
template <class S>
struct Window {
  S* corner;
  int pitch, rows, columns, vector;
};

// Stores a chunk of which `count` numbers are inside.
template <class S>
BRNN_DEVICE void store_chunk(S* to, const uint32_t (&word)[4], int count, int vector) {
  if (count <= 0) return;
  if (vector == kLanes<S>) {
    *reinterpret_cast<uint4*>(to) = {word[0], word[1], word[2], word[3]};
    return;
  }
  if (vector == kHalf<S>) {
    reinterpret_cast<uint2*>(to)[0] = {word[0], word[1]};
    if (count > kHalf<S>) reinterpret_cast<uint2*>(to)[1] = {word[2], word[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes<S>; i += 2) {
    if (vector == 2 && i < count) reinterpret_cast<uint32_t*>(to)[i / 2] = word[i / 2];
    if (vector == 1 && i < count) to[i].bits = uint16_t(word[i / 2]);
    if (vector == 1 && i + 1 < count) to[i + 1].bits = uint16_t(word[i / 2] >> 16);
  }
}

// Writes value(m, n, e), element e of fragment (m, n) of the warp, to the block's window.
template <class Shape, class S, class Value>
BRNN_DEVICE void store_sums(const Window<S>& to, const Value& value) {
  const int t = int(threadIdx.x) % 4;
#pragma unroll
  for (int m = 0; m < Shape::kFragmentsM; ++m)
#pragma unroll
    for (int n = 0; n < Shape::kFragmentsN; n += 2) {
      uint32_t word[4];  // rows g and g + 8 of two fragments side by side
#pragma unroll
      for (int i = 0; i < 4; ++i)
        word[i] = pack(S{}, value(m, n + i % 2, i / 2 * 2), value(m, n + i % 2, i / 2 * 2 + 1));
      transpose_quad(word);
      const int row = Shape::row() + m * 16 + fragment_row(t / 2 * 2);
      const int column = Shape::column() + (n + t % 2) * 8;
      if (row < to.rows)
        store_chunk(to.corner + int64_t{row} * to.pitch + column, word, to.columns - column,
                    to.vector);
    }
}

template <class Shape, class Value>
BRNN_DEVICE void store_sums(const Window<float>& to, const Value& value) {
#pragma unroll
  for (int m = 0; m < Shape::kFragmentsM; ++m)
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const int row = Shape::row() + m * 16 + fragment_row(e);
      if (row >= to.rows) continue;
#pragma unroll
      for (int n = 0; n < Shape::kFragmentsN; ++n) {
        const int column = Shape::column() + n * 8 + fragment_column(0);
        float* const place = to.corner + int64_t{row} * to.pitch + column;
        const float low = value(m, n, e), high = value(m, n, e + 1);
        if (to.vector > 1 && column < to.columns) {
          *reinterpret_cast<float2*>(place) = {low, high};
        } else {
          if (column < to.columns) place[0] = low;
          if (column + 1 < to.columns) place[1] = high;
        }
      }
    }
}

}  // namespace brnn::cuda::gate_gemm
