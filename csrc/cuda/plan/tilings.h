// tilings.h lists every way to cut a persistent recurrence that is compiled, and says what
// registers each takes (shared_layout.h has the shared memory). The plan chooses from these tables
// and the kernels' registries instantiate them, so the two cannot disagree.
//
// A unit tile is 16 hidden units of every gate, a batch tile 8 sequences, a chunk of k 512 bytes of
// a batch tile: 32 units in 16 bit, 16 in tf32.
#pragma once

#include <cstdint>
#include <span>

#include "../../cells.h"

namespace brnn::cuda {

enum class Engine { block, cluster, grid, grid_flags, stepwise };
enum class Pass { forward, backward };

// These say what an engine is. cost.h tells where the times come from.
struct EngineTraits {
  Engine id;
  const char* name;
  bool persistent;         // one kernel for all steps, or for many
  bool waits_over_device;  // its blocks wait for each other wherever they run: all run at once
  bool exchanges_shared;   // h travels through shared memory, not through L2
  double latency;          // microseconds from an element's update until the last peer has its h
  double start;            // microseconds before the first step of a launch
};
// Every engine stands here, in the order of the enumeration and of messages.
inline constexpr EngineTraits kEngines[] = {
    {Engine::block, "block", true, false, true, 0.12, 5},
    {Engine::cluster, "cluster", true, false, true, 0.53, 6},
    {Engine::grid, "grid", true, true, false, 0.45, 9},
    {Engine::grid_flags, "grid_flags", true, true, false, 0.77, 9},
    {Engine::stepwise, "stepwise", false, false, false, 0, 0},
};
constexpr const EngineTraits& traits(Engine engine) { return kEngines[int(engine)]; }
static_assert([] {
  for (const EngineTraits& engine : kEngines)
    if (traits(engine.id).id != engine.id) return false;
  return true;
}());

struct Tiling {
  int chunks;      // of k, held by a warp: its slice of U stays in registers
  int k_warps;     // warps that share a unit tile, each with its slice of k
  int unit_tiles;  // of a block
  bool looped;     // a block has several batch tiles, one after the other; state in shared memory
  int ahead = 0;   // words of 16 bytes that a lane waits for at once; 0: as registers allow

  BRNN_INLINE constexpr int threads() const { return 32 * k_warps * unit_tiles; }
  constexpr int most_chunks() const { return k_warps * chunks; }
  bool operator==(const Tiling&) const = default;
};

// ---- what is compiled, per storage type and cell; smallest first

inline constexpr int kTileUnits = 16;
inline constexpr int kTileSequences = 8;
inline constexpr int kTileElements = kTileUnits * kTileSequences;
inline constexpr int kChunkBytes = 512;
inline constexpr int kChunkWords = kChunkBytes / 4;  // 8 sequences times 16 words
constexpr int units_of_chunk(int bytes) { return kChunkBytes / kTileSequences / bytes; }

// A block of a grid has one unit tile. Forward exists with untied masks and without; looped, untied
// masks are packed in shared memory.
inline constexpr Tiling kGridForward[] = {{1, 8, 1, false}, {2, 8, 1, false}, {3, 8, 1, false},
                                          {4, 8, 1, false}, {2, 8, 1, true},  {4, 8, 1, true},
                                          {6, 8, 1, true}};
inline constexpr Tiling kGridBackward[] = {{1, 8, 1, true},    {2, 8, 1, true}, {3, 8, 1, true, 6},
                                           {3, 8, 1, true, 3}, {4, 8, 1, true}, {6, 8, 1, true}};

// Backward waits for the words of G planes. In portions of 6 all 12 of an LSTM with 3 chunks are
// asked for at the start, as twice a portion is under way, and the products of the first hide the
// look at the others. In portions of 3 half as many polls share L2 with the data that they wait
// for, but the last trip begins later. Which is faster `exchange` of bench/gpu/probes.py tells;
// until it has run this stands for the answer, and of tilings that differ in nothing else the plan
// takes its own.
inline constexpr int kBackwardAhead = 6;

// Grid_flags is there to compare with grid, at the size where that matters most.
inline constexpr Tiling kFlagsForward[] = {{3, 8, 1, false}};
inline constexpr Tiling kFlagsBackward[] = {{3, 8, 1, true}};

// Block has all unit tiles in one block, and a warp has all of k, in both passes. A number has
// `Bytes`.
template <int Bytes>
inline constexpr Tiling kBlock[] = {{2, 1, 8 / Bytes, false}, {4, 1, 16 / Bytes, false}};
// Block forward up to this many chunks also exists with the input part computed inside, for up to
// as many chunks of x.
inline constexpr int kFusedChunks = 2;

// Cluster is forward only; backward of such a layer runs in a block or a grid.
inline constexpr Tiling kCluster[] = {{2, 4, 2, false}};

// Gives the table of an engine; it is empty where the engine has no such pass.
constexpr std::span<const Tiling> tilings(Engine engine, Pass pass, int bytes) {
  using Table = std::span<const Tiling>;
  const bool forward = pass == Pass::forward;
  switch (engine) {
    case Engine::block: return bytes == 2 ? Table(kBlock<2>) : Table(kBlock<4>);
    case Engine::cluster: return forward ? Table(kCluster) : Table();
    case Engine::grid: return forward ? Table(kGridForward) : Table(kGridBackward);
    case Engine::grid_flags: return forward ? Table(kFlagsForward) : Table(kFlagsBackward);
    case Engine::stepwise: break;
  }
  return {};
}

// Counts the blocks over the units. Every chunk that the warps read has unit tiles that publish it,
// also past H.
constexpr int unit_blocks(const Tiling& t, int64_t H, int bytes) {
  const int units = units_of_chunk(bytes);
  const int64_t needed = (H + units - 1) / units, chunks = needed > t.chunks ? needed : t.chunks;
  const int64_t tiles = chunks * units / kTileUnits;
  return int((tiles + t.unit_tiles - 1) / t.unit_tiles);
}
// Counts the chunks of k that so many blocks publish.
constexpr int published_chunks(const Tiling& t, int blocks, int bytes) {
  return blocks * t.unit_tiles * kTileUnits / units_of_chunk(bytes);
}

// ---- registers

inline constexpr int kMostRegisters = 255;   // of a thread
inline constexpr int kRegisterFile = 65536;  // of a multiprocessor, compute capability 8.0 to 12.0

// Untied masks of forward are packed where they wait in shared memory or registers run short.
constexpr bool packs_masks(const Tiling& t, bool fused_input) {
  return t.looped || fused_input || (t.k_warps == 1 && t.chunks > 2);
}
// Counts the words of packed masks that a thread has for each gate.
BRNN_INLINE constexpr int packed_words(int chunks) { return (4 * chunks + 15) / 16; }

// Foresees a thread's registers, within 20 of what nvcc gives on every architecture (`make
// kernels`), but backward: there a GRU of 4 chunks and an LSTM of 2 take up to 35 more, a block up
// to 40 less. None of these is near where two blocks share a multiprocessor, which is what the plan
// asks. Beyond 255 the compiler shortens lives of values until it fits, or spills and fails `make
// kernels`. `input_chunks` are those of x, where the input part is computed inside.
constexpr int registers(Pass pass, const Tiling& t, int gates, bool untied, int input_chunks = 0) {
  const int weights = 8 * gates * t.chunks, sums = 16;
  const int ahead = t.chunks < 2 ? t.chunks : 2;  // chunks asked for before they are needed
  const int more_cells = t.k_warps < 4 ? 4 / t.k_warps - 1 : 0;  // a thread's, beside the first
  const int prepared = t.chunks < 3 ? 0 : 7 * gates;             // see BackwardPass::prepare
  if (pass == Pass::backward)
    return weights + sums + 4 * gates * ahead + prepared + 16 * more_cells + 38;
  const bool packed = packs_masks(t, input_chunks > 0);
  const int masks = !untied ? 0 : gates * (packed ? packed_words(t.chunks) : 4 * t.chunks);
  const int h = 4 * (t.looped ? ahead : t.chunks);
  const int input = input_chunks ? (8 * gates + 4) * input_chunks + 3 * gates + sums : 0;
  return weights + sums + masks + h + input + 8 * more_cells + 50;
}

// Gives the second argument of __launch_bounds__: two blocks a multiprocessor where that is no
// squeeze. The plan counts on it for a grid, whose blocks must all run at the same time.
constexpr int blocks_per_multiprocessor(Pass pass, const Tiling& t, int gates, bool untied,
                                        int input_chunks = 0) {
  return 2 * t.threads() * registers(pass, t, gates, untied, input_chunks) <= kRegisterFile ? 2 : 1;
}

}  // namespace brnn::cuda
