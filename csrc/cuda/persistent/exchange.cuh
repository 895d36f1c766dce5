// exchange.cuh says how the operand of the next step travels from the threads that make it to the
// warps that multiply by it: h_t forward (one plane), dz of every gate backward (G planes).
//
// A stage holds one step: [planes][batch tiles][chunks][8 sequences][16 words]. Each step of a
// launch reads the next one; the first is filled before the first step like any other, which is
// therefore not special.
#pragma once

#include "../device/intrinsics.cuh"
#include "fetch_ahead.cuh"
#include "tile.cuh"

namespace brnn::cuda {

struct ExchangeMemory {
  uint32_t* stages;  // grid: of a launch's steps, 0xFF; grid_flags: [2]; else none
  uint32_t* flags;   // grid_flags: [batch tiles, unit tiles], zero: stages published; else none
  int chunks;        // of the layer: every unit tile has its place
  int batch_tiles;   // of the layer, padded to those of all blocks
  int cluster_size;  // blocks
};

// Counts the words of one stage and plane, which are far below 2^31, unlike those of all stages.
BRNN_DEVICE int plane_words(const ExchangeMemory& m) {
  return m.batch_tiles * m.chunks * kChunkWords;
}

// The order in which a warp uses the words of its slice. Planes take turns, so that products which
// follow each other add to different sums: of one sum each would wait for the one before. Before
// Hopper ptxas has not the registers for it, and kernels of 4 and 6 chunks would spill.
template <int Planes, int Chunks>
struct StreamOrder {
#if __CUDA_ARCH__ >= 900
  BRNN_DEVICE static constexpr int plane(int i) { return i % Planes; }
  BRNN_DEVICE static constexpr int chunk(int i) { return i / Planes; }
#else
  BRNN_DEVICE static constexpr int plane(int i) { return i / Chunks; }
  BRNN_DEVICE static constexpr int chunk(int i) { return i % Chunks; }
#endif
};

// Says where a word lies within a batch tile, and where a lane's fragments of a chunk begin.
template <class S>
BRNN_DEVICE int word_offset(int unit, int row) {
  return unit / Number<S>::chunk_units * kChunkWords + row * 16 +
         unit % Number<S>::chunk_units / Number<S>::per_word;
}

// Through L2, the data is the flag: a reader looks until no word is 0xFFFFFFFF, which no published
// word can be. One trip through L2, no fence: words arrive whole, and no order between words is
// assumed. A launch uses a stage once, because a refill would not be ordered with a later
// publication.
template <class S, class Tile, int Planes>
class GridExchange {
 public:
  static constexpr bool kTravels = true;  // words are under way long enough to do something else
  static constexpr bool kGrows = true;    // with the steps: a long layer takes several launches

 private:
  // Polls share L2 with what they wait for, so only missing words are asked for again, where that
  // does not spill registers.
  static constexpr bool kPollAll = Tile::chunks > 3;
  using Order = StreamOrder<Planes, Tile::chunks>;

 public:
  BRNN_DEVICE GridExchange(const ExchangeMemory& m, uint32_t*, const Place<Tile>& at)
      : plane_(plane_words(m)),
        tile_(m.chunks * kChunkWords),
        in_(m.stages + (int64_t(at.batch_tile0) * m.chunks + at.chunk0) * kChunkWords +
            at.lane * 4),
        out_(m.stages + int64_t(at.batch_tile0) * tile_) {}

  // It is called before the first put of all.
  BRNN_DEVICE void begin() {}
  // It is called before the first load of step s.
  BRNN_DEVICE void wait(int, int) {}
  // Asks for a lane's words of a chunk; `ready` then makes sure that they are there.
  BRNN_DEVICE uint4 load(int plane, int chunk, int n) const {
    return load_relaxed(reinterpret_cast<const uint4*>(address(plane, chunk, n)));
  }
  template <int From, int Count, int Size>
  BRNN_DEVICE void ready(uint4 (&words)[Size], int n) const {
    while (highest_word<Count>(words) == ~0u) {
#pragma unroll
      for (int i = 0; i < Count; ++i)
        if (kPollAll || highest_word<1>({words[i]}) == ~0u)
          words[i] = load(Order::plane(From + i), Order::chunk(From + i), n);
    }
    __syncwarp();
  }
  BRNN_DEVICE void put(int plane, int n, int offset, uint32_t word) {
    store_relaxed(out_ + (plane * plane_ + n * tile_ + offset), word);
  }
  // Where a word goes if put() is told batch tile 0 and, where it is `odd`, the plane before.
  BRNN_DEVICE int offset_of_pair(int odd, int n, int offset) const {
    return odd * plane_ + n * tile_ + offset;
  }
  // Brings this block's words of a stage to L2, which the output stage becomes `later` steps from
  // now.
  BRNN_DEVICE void fetch(const Place<Tile>& at, int n, int later) const {
    constexpr int kWords = kSectorBytes / 4, kUnits = kWords * Number<S>::per_word;
    constexpr int kSectors = kTileSequences * kTileUnits / kUnits;  // of a plane
    share_out<Planes * kSectors>(at.lane, [&](int i) {
      const int unit = at.tile * kTileUnits + i / kTileSequences % (kTileUnits / kUnits) * kUnits;
      const int offset =
          i / kSectors * plane_ + n * tile_ + word_offset<S>(unit, i % kTileSequences);
      prefetch_l2(out_ + (int64_t(later) * Planes * plane_ + offset));
    });
  }
  // It is called after all puts of a batch tile.
  BRNN_DEVICE void commit(int, int, bool) {}
  BRNN_DEVICE void next_output() { out_ += Planes * plane_; }
  BRNN_DEVICE void next_input() { in_ += Planes * plane_; }

 private:
  BRNN_DEVICE const uint32_t* address(int plane, int chunk, int n) const {
    return in_ + (plane * plane_ + n * tile_ + chunk * kChunkWords);
  }
  // An empty word is the highest of all. Two maxima of three at a time, an instruction each where
  // there is one for three, take half as long as a look at every 16 bytes by themselves.
  template <int Count, int Size>
  BRNN_DEVICE static uint32_t highest_word(const uint4 (&v)[Size]) {
    const auto higher = [](uint32_t a, uint32_t b) { return a > b ? a : b; };
    uint32_t xy = 0, zw = 0;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      xy = higher(xy, higher(v[i].x, v[i].y));
      zw = higher(zw, higher(v[i].z, v[i].w));
    }
    return higher(xy, zw);
  }

  const int plane_, tile_;
  const uint32_t* in_;
  uint32_t* out_;
};

// Through L2, a release/acquire flag per unit tile and batch tile, two stages. A stage can be
// reused without another barrier: a block publishes step s + 2 only after all its warps together
// have seen every producer's s + 1, and a producer publishes that only after all its warps have
// read s.
template <class S, class Tile, int Planes>
class FlagExchange {
  static constexpr int kFlags =
      Tile::chunks * Number<S>::chunk_units / kTileUnits;  // of a warp's slice

 public:
  static constexpr bool kTravels = true, kGrows = false;

  BRNN_DEVICE FlagExchange(const ExchangeMemory& m, uint32_t*, const Place<Tile>& at)
      : plane_(plane_words(m)),
        tile_(m.chunks * kChunkWords),
        tiles_(m.chunks * Number<S>::chunk_units / kTileUnits),
        barrier_(9 + (Tile::unit_tiles > 1 ? at.local : 0)),
        publishes_(at.thread == 0),
        in_(m.stages + (int64_t(at.batch_tile0) * m.chunks + at.chunk0) * kChunkWords +
            at.lane * 4),
        out_(m.stages + int64_t(at.batch_tile0) * tile_),
        mine_(m.flags + at.batch_tile0 * tiles_ + at.tile) {
    // Lanes past the last producer look at the last one's flag.
    const int producer = at.lane < kFlags ? at.lane : kFlags - 1;
    theirs_ = m.flags + at.batch_tile0 * tiles_ +
              at.chunk0 * (Number<S>::chunk_units / kTileUnits) + producer;
  }

  BRNN_DEVICE void begin() {}
  BRNN_DEVICE void wait(int s, int n) {
    while (load_acquire(theirs_ + n * tiles_) < uint32_t(s + 1)) {
    }
    __syncwarp();
  }
  BRNN_DEVICE uint4 load(int plane, int chunk, int n) const {
    return load_l2(reinterpret_cast<const uint4*>(
        in_ + ((input_stage_ * Planes + plane) * plane_ + n * tile_ + chunk * kChunkWords)));
  }
  template <int From, int Count, int Size>
  BRNN_DEVICE void ready(uint4 (&)[Size], int) const {}
  BRNN_DEVICE void put(int plane, int n, int offset, uint32_t word) {
    out_[(stage_ * Planes + plane) * plane_ + n * tile_ + offset] = word;
  }
  BRNN_DEVICE int offset_of_pair(int odd, int n, int offset) const {
    return odd * plane_ + n * tile_ + offset;
  }
  BRNN_DEVICE void fetch(const Place<Tile>&, int, int) const {}  // its stages stay in L2
  // `s` is the step that reads the stage.
  BRNN_DEVICE void commit(int s, int n, bool maker) {
    if (!maker) return;
    named_barrier(barrier_, Tile::makers);
    if (publishes_) store_release(mine_ + n * tiles_, uint32_t(s + 1));
  }
  BRNN_DEVICE void next_output() { stage_ ^= 1; }
  BRNN_DEVICE void next_input() { input_stage_ ^= 1; }

 private:
  const int plane_, tile_, tiles_, barrier_;
  const bool publishes_;
  int stage_ = 0, input_stage_ = 0;
  const uint32_t* in_;
  uint32_t* out_;
  const uint32_t* theirs_;
  uint32_t* mine_;
};

// Says where 16 bytes c of row `row` lie in a chunk in shared memory. They are rotated within two
// rows so that neither the writes in fragment order nor the reads of 16 bytes meet in a bank.
BRNN_DEVICE int rotated(int row, int c) {
  return (row / 2 * 8 + (((row & 1) * 4 + c) ^ (row & 6))) * 4;
}

// The block's own shared memory has the two stages (shared_layout.h), for one block barrier a step.
// With a cluster every block of it has them, written by all, for one cluster barrier a step.
template <class S, class Tile, int Planes, bool Cluster>
class SharedExchange {
 public:
  static constexpr bool kTravels = false, kGrows = false;

  BRNN_DEVICE SharedExchange(const ExchangeMemory& m, uint32_t* shared, const Place<Tile>& at)
      : plane_(m.chunks * kChunkWords),
        blocks_(m.cluster_size),
        in_(shared + at.chunk0 * kChunkWords + rotated(at.g, at.q)),
        out_(shared) {}

  // Shared memory of a block that has not started must not be written.
  BRNN_DEVICE void begin() {
    if (Cluster) cluster_arrive(), cluster_wait();
  }
  BRNN_DEVICE void wait(int, int) {
    if (Cluster) cluster_wait();
  }
  BRNN_DEVICE uint4 load(int plane, int chunk, int) const {
    return *reinterpret_cast<const uint4*>(in_ + (input_stage_ * Planes + plane) * plane_ +
                                           chunk * kChunkWords);
  }
  template <int From, int Count, int Size>
  BRNN_DEVICE void ready(uint4 (&)[Size], int) const {}
  BRNN_DEVICE void put(int plane, int, int offset, uint32_t word) {
    const int row = offset % kChunkWords / 16, column = offset % 16;
    uint32_t* to = out_ + (stage_ * Planes + plane) * plane_ + offset / kChunkWords * kChunkWords +
                   rotated(row, column / 4) + column % 4;
    if constexpr (!Cluster) {
      *to = word;
    } else {
      for (int rank = 0; rank < blocks_; ++rank) *cluster_map(to, rank) = word;
    }
  }
  BRNN_DEVICE void commit(int, int, bool) {
    if (Cluster)
      cluster_arrive();
    else
      __syncthreads();
  }
  BRNN_DEVICE void next_output() { stage_ ^= 1; }
  BRNN_DEVICE void next_input() { input_stage_ ^= 1; }

 private:
  const int plane_, blocks_;
  int stage_ = 0, input_stage_ = 0;
  const uint32_t* in_;
  uint32_t* out_;
};

template <class S, class Tile, int Planes>
using BlockExchange = SharedExchange<S, Tile, Planes, false>;
template <class S, class Tile, int Planes>
using ClusterExchange = SharedExchange<S, Tile, Planes, true>;

}  // namespace brnn::cuda
