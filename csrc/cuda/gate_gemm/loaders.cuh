// loaders.cuh brings the operands of kernels.cuh from global to shared memory: plain ones by
// asynchronous copies (but for odd rows of 16-bit numbers), masked ones through registers. Masks
// are applied there, to bits: a dropped NaN leaves no trace.
//
// A loader has a Tile; copy(tile, step), which need not be there before a wait; fetch(step), into
// registers; finish(tile), from there to shared memory and whatever else is left to do to a tile
// that was copied. `step` counts tiles along k.
#pragma once

#include "tiles.cuh"

namespace brnn::cuda::gate_gemm {

// A Divider gives n / divisor for 0 <= n < 2^31.
struct Divider {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  Divider() = default;
  explicit Divider(int64_t by) : divisor(by > 1 ? uint32_t(by) : 1) {  // no sequences, no rows
    while ((uint64_t{1} << shift) < divisor) ++shift;
    multiplier = uint32_t((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  BRNN_DEVICE int divide(int n) const {
    return int((uint32_t(uint64_t(uint32_t(n)) * multiplier >> 32) + uint32_t(n)) >> shift);
  }
  BRNN_DEVICE int modulo(int n) const { return n - divide(n) * int(divisor); }
};

// ---- chunks: 16 bytes of an operand, and what its mask says about them
//
// Loads are of `vector` numbers, the most that rows are aligned to: kLanes, kHalf, 2 or 1. None
// waits for another, and but for single 16-bit numbers none is looked at before the chunk is
// stored.

template <class S>
struct Chunk {
  uint32_t word[4] = {};
};

// Loads the first `count` numbers, with zeros behind.
template <class S>
BRNN_DEVICE Chunk<S> load_chunk(const S* from, int count, int vector) {
  if (vector == kLanes<S>) {
    uint4 v = {};
    if (count > 0) v = *reinterpret_cast<const uint4*>(from);
    return {{v.x, v.y, v.z, v.w}};
  }
  Chunk<S> chunk;
  if (vector == kHalf<S>) {
    uint2 low = {}, high = {};
    if (count > 0) low = reinterpret_cast<const uint2*>(from)[0];
    if (count > kHalf<S>) high = reinterpret_cast<const uint2*>(from)[1];
    return {{low.x, low.y, high.x, high.y}};
  }
  if (vector == kPerWord<S>) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i * kPerWord<S> < count) chunk.word[i] = reinterpret_cast<const uint32_t*>(from)[i];
    return chunk;
  }
  uint16_t half[8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) half[i] = reinterpret_cast<const uint16_t*>(from)[i];
#pragma unroll
  for (int i = 0; i < 4; ++i) chunk.word[i] = half[2 * i] | uint32_t(half[2 * i + 1]) << 16;
  return chunk;
}

// MaskChunk has a byte for each number of a chunk, 1 where it is kept: all in a row where loads are
// of 8 or 16 bytes, or those of each word by themselves.
struct MaskChunk {
  uint32_t word[4] = {};
};

template <class S>
BRNN_DEVICE MaskChunk load_mask_chunk(const uint8_t* from, int count, int vector) {
  MaskChunk keep;
  if (vector == kLanes<S> || (kPerWord<S> == 2 && vector == kHalf<S>)) {
#pragma unroll
    for (int i = 0; i < kLanes<S> / 4; ++i)
      if (i * 4 < count) keep.word[i] = reinterpret_cast<const uint32_t*>(from)[i];
    return keep;
  }
  if (vector == kHalf<S>) {
    if (count > 0) keep.word[0] = reinterpret_cast<const uint16_t*>(from)[0];
    if (count > 2) keep.word[0] |= uint32_t(reinterpret_cast<const uint16_t*>(from)[1]) << 16;
    return keep;
  }
  if (kPerWord<S> == 2 && vector == kPerWord<S>) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i * 2 < count) keep.word[i] = reinterpret_cast<const uint16_t*>(from)[i];
    return keep;
  }
  uint8_t byte[kLanes<S>] = {};
#pragma unroll
  for (int i = 0; i < kLanes<S>; ++i)
    if (i < count) byte[i] = from[i];
#pragma unroll
  for (int i = 0; i < kLanes<S>; ++i)
    keep.word[i / kPerWord<S>] |= uint32_t(byte[i]) << i % kPerWord<S> * 8;
  return keep;
}

// Clears what is not kept.
template <class S>
BRNN_DEVICE void mask_chunk(Chunk<S>& chunk, const MaskChunk& keep, int vector) {
  constexpr uint32_t kFirst =
      kPerWord<S> == 2 ? 0x1100 : 0;  // spreads the bytes of a word's numbers
  if (vector >= kHalf<S>) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      chunk.word[i] &= permute_bytes(keep.word[i * kPerWord<S> / 4] * 0xFF,
                                     kFirst + i * kPerWord<S> % 4 * 0x1111);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) chunk.word[i] &= permute_bytes(keep.word[i] * 0xFF, kFirst);
  }
}

// Multiplies the numbers in two words and rounds the products.
BRNN_DEVICE uint32_t multiply_words(float s, uint32_t a, uint32_t b) {
  return pack(s, bits_to_float(a) * bits_to_float(b), 0.f);
}
template <class S>
BRNN_DEVICE uint32_t multiply_words(S s, uint32_t a, uint32_t b) {
  const auto low = [](uint32_t word) { return to_float(S{uint16_t(word)}); };
  const auto high = [](uint32_t word) { return to_float(S{uint16_t(word >> 16)}); };
  return pack(s, low(a) * low(b), high(a) * high(b));
}

template <class S>
BRNN_DEVICE void store_chunk(unsigned char* to, const Chunk<S>& chunk) {
  *reinterpret_cast<uint4*>(to) = {chunk.word[0], chunk.word[1], chunk.word[2], chunk.word[3]};
}

// Makes it what the tensor cores want.
template <class S>
BRNN_DEVICE Chunk<S> rounded(Chunk<S> chunk) {
  if constexpr (DtypeOf<S>::rounds_operands)
#pragma unroll
    for (uint32_t& word : chunk.word) word = to_tf32(bits_to_float(word));
  return chunk;
}

// Copies to shared memory as it is, asynchronously where words are aligned.
template <class S>
BRNN_DEVICE void copy_chunk(unsigned char* to, const S* from, int count, int vector) {
  if (vector == kLanes<S>)
    copy_async(to, from, count > 0);
  else if (vector == kHalf<S>)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      copy_async_half(to + i * 8, from + i * kHalf<S>, i * kHalf<S> < count);
  else if (vector == kPerWord<S>)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      copy_async_word(to + i * 4, from + i * kPerWord<S>, i * kPerWord<S> < count);
  else
    store_chunk(to, load_chunk(from, count, vector));
}

// ---- loaders

// These are the chunks of a tile that this thread brings: number j stands in row(j), all in one
// column. They are made anew for every tile, because registers are scarcer than instructions.
template <class S, class Tile, int kThreads>
struct ThreadChunks {
  static_assert(Tile::kRows * Tile::kChunks == kThreadChunks * kThreads);
  int thread = int(threadIdx.x);

  BRNN_DEVICE ThreadChunks() { opaque(thread); }
  BRNN_DEVICE int row(int j) const {
    return thread / Tile::kChunks + j * (kThreads / Tile::kChunks);
  }
  BRNN_DEVICE int column() const { return thread % Tile::kChunks * kLanes<S>; }
  BRNN_DEVICE unsigned char* address(unsigned char* tile, int j) const {
    return tile + Tile::offset(row(j), thread % Tile::kChunks);
  }
};

// Loads a matrix as it is. where(step) is the window that starts at the tile of a step.
template <class S, class Tile_, int kThreads, class Where>
class Plain {
 public:
  using Tile = Tile_;

  BRNN_DEVICE explicit Plain(const Where& where) : where_(where) {}

  BRNN_DEVICE void copy(unsigned char* tile, int step) {
    const Window<const S> from = where_(step);
    const ThreadChunks<S, Tile, kThreads> mine;
#pragma unroll
    for (int j = 0; j < kThreadChunks; ++j) {
      const int count = mine.row(j) < from.rows ? from.columns - mine.column() : 0;
      const S* const source = from.corner + int64_t{mine.row(j)} * from.pitch + mine.column();
      copy_chunk(mine.address(tile, j), source, count, from.vector);
    }
  }
  BRNN_DEVICE void fetch(int) {}
  // A copy cannot round; the thread that asked for a chunk does, when it has arrived.
  BRNN_DEVICE void finish(unsigned char* tile) {
    if constexpr (DtypeOf<S>::rounds_operands) {
      const ThreadChunks<S, Tile, kThreads> mine;
#pragma unroll
      for (int j = 0; j < kThreadChunks; ++j) {
        unsigned char* const to = mine.address(tile, j);
        store_chunk(to, rounded(load_chunk(reinterpret_cast<const S*>(to), kLanes<S>, kLanes<S>)));
      }
    }
  }

 private:
  const Where where_;
};

template <class S, class Tile, int kThreads, class Where>
BRNN_DEVICE Plain<S, Tile, kThreads, Where> plain(const Where& where) {
  return Plain<S, Tile, kThreads, Where>(where);
}

// This is masked x or masked h_{t-1}, [T, B, K].
template <class S>
struct Operand {
  const S* values;         // [T, B, K] x, or y
  const S* first;          // [B, K] h0, what the step that starts a sequence sees; nullptr for x
  int shift;               // rows from a row to the one that it sees: 0 for x, -B or B for y
  const uint8_t* keep;     // [G, B, K] or [B, K], or nullptr
  int gate_rows;           // rows of keep from gate to gate: B or 0
  const int64_t* lengths;  // [B] or nullptr; see length_of
  const uint8_t* resets;   // [T, B], see resets_at; nullptr for x
  int T, K, vector;
  bool reverse;
  Divider sequences;  // B
  const S* r;         // [T, B, r_pitch] is multiplied in for r_gate, if that is not -1
  int r_pitch, r_gate;
};

struct Coord {
  int row, column;
};

// Loads masked x or h_{t-1} as `gate` sees it. where(step) is the first row and column of the tile.
// With kSameRows the rows are those of step 0 all along.
template <class S, class Tile_, int kThreads, bool kSameRows, class Where>
class Masked {
 public:
  using Tile = Tile_;

  BRNN_DEVICE Masked(const Operand<S>& from, int gate, const Where& where)
      : from_(from), gate_(gate), where_(where) {
#pragma unroll
    for (int j = 0; j < kThreadChunks; ++j) row_[j] = locate(where_(0).row + Mine().row(j));
  }

  BRNN_DEVICE void copy(unsigned char*, int) {}
  BRNN_DEVICE void fetch(int step) {
    const Mine mine;
    const Coord corner = where_(step);
    const int column = corner.column + mine.column();
#pragma unroll
    for (int j = 0; j < kThreadChunks; ++j) {
      const Row row = kSameRows ? row_[j] : locate(corner.row + mine.row(j));
      const int count = row.at >= 0 ? from_.K - column : 0;
      const S* const values = row.first ? from_.first : from_.values;
      chunk_[j] = load_chunk(values + int64_t{row.at} * from_.K + column, count, from_.vector);
      if (!kSameRows && gate_ == from_.r_gate) {
        const int64_t own = corner.row + mine.row(j);
        multiply(chunk_[j],
                 load_chunk(from_.r + own * from_.r_pitch + column, count, from_.vector));
      }
      if (from_.keep)
        keep_[j] = load_mask_chunk<S>(from_.keep + int64_t{row.keep} * from_.K + column, count,
                                      from_.vector);
    }
  }
  BRNN_DEVICE void finish(unsigned char* tile) {
    const Mine mine;
#pragma unroll
    for (int j = 0; j < kThreadChunks; ++j) {
      if (from_.keep) mask_chunk(chunk_[j], keep_[j], from_.vector);
      store_chunk(mine.address(tile, j), rounded(chunk_[j]));
    }
  }

 private:
  using Mine = ThreadChunks<S, Tile, kThreads>;

  struct Row {
    int at;      // row of x, y or h0 that is seen; -1: zeros, whatever stands there
    int keep;    // row of the mask
    bool first;  // it is a row of h0
  };
  BRNN_DEVICE Row locate(int row) const {
    const int t = from_.sequences.divide(row), b = row - t * int(from_.sequences.divisor);
    const int length = int(length_of(from_.lengths, b, from_.T));
    const bool starts = from_.first && starts_at(t, length, from_.reverse);
    const int seen = starts ? b : row + from_.shift;
    const bool sees = t < length && (kSameRows || !from_.resets || !from_.resets[row]);
    return {sees ? seen : -1, gate_ * from_.gate_rows + b, !kSameRows && starts};
  }

  BRNN_DEVICE static void multiply(Chunk<S>& chunk, const Chunk<S>& by) {
#pragma unroll
    for (int i = 0; i < 4; ++i) chunk.word[i] = multiply_words(S{}, chunk.word[i], by.word[i]);
  }

  const Operand<S>& from_;
  const int gate_;
  const Where where_;
  Row row_[kThreadChunks];
  Chunk<S> chunk_[kThreadChunks];
  MaskChunk keep_[kThreadChunks];
};

template <class S, class Tile, int kThreads, bool kSameRows, class Where>
BRNN_DEVICE Masked<S, Tile, kThreads, kSameRows, Where> masked(const Operand<S>& from, int gate,
                                                               const Where& where) {
  return Masked<S, Tile, kThreads, kSameRows, Where>(from, gate, where);
}

}  // namespace brnn::cuda::gate_gemm
