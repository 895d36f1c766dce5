// host.cuh is the host code of the persistent recurrence: it finds the kernel of a plan, lays out
// its workspace, fills its parameters and launches it.
#pragma once

#include <type_traits>
#include <vector>

#include "../../arena.h"
#include "../device/launch.cuh"
#include "backward.cuh"
#include "forward.cuh"
#include "packed_resets.cuh"
#include "persistent.h"

namespace brnn::cuda::persistent {

template <class S>
struct ForwardKernel {
  Cell cell;
  Engine engine;
  Tiling tiling;
  MaskForm form;
  bool fused_input;
  void (*entry)(ForwardParams<S>);
};

template <class S>
struct BackwardKernel {
  Cell cell;
  Engine engine;
  Tiling tiling;
  void (*entry)(BackwardParams<S>);
};

// These list what was compiled (instantiations/).
template <class S>
const std::vector<ForwardKernel<S>>& forward_kernels();
template <class S>
const std::vector<BackwardKernel<S>>& backward_kernels();

// Untied masks meet h in its readers, any other mask in its maker.
inline MaskForm mask_form(const Mask& mask, const Recurrence& plan) {
  if (!mask.keep || !mask.untied()) return MaskForm::none;
  return untied_form(plan.tiling, plan.fused_input);
}

// Puts a kernel in words: "forward kernel for grid, lstm, 8 chunks, 4 k warps, 1 unit tiles".
inline std::string describe(const char* direction, Cell cell, const Recurrence& plan) {
  return std::string(direction) + " kernel for " + traits(plan.engine).name + ", " +
         traits(cell).name + ", " + std::to_string(plan.tiling.chunks) + " chunks, " +
         std::to_string(plan.tiling.k_warps) + " k warps, " +
         std::to_string(plan.tiling.unit_tiles) + " unit tiles" +
         (plan.tiling.looped ? ", looped" : "") + (plan.fused_input ? ", fused input" : "");
}

[[noreturn]] inline void no_kernel(const char* direction, Cell cell, const Recurrence& plan) {
  throw std::runtime_error("engine: no " + describe(direction, cell, plan));
}

template <class S>
auto forward_kernel_of(const Recurrence& plan, Cell cell, const Mask& mask) {
  for (const auto& kernel : forward_kernels<S>())
    if (kernel.cell == cell && kernel.engine == plan.engine && kernel.tiling == plan.tiling &&
        kernel.form == mask_form(mask, plan) && kernel.fused_input == plan.fused_input)
      return kernel.entry;
  no_kernel("forward", cell, plan);
}

template <class S>
auto backward_kernel_of(const Recurrence& plan, Cell cell) {
  for (const auto& kernel : backward_kernels<S>())
    if (kernel.cell == cell && kernel.engine == plan.engine && kernel.tiling == plan.tiling)
      return kernel.entry;
  no_kernel("backward", cell, plan);
}

inline Grid grid_of(const Recurrence& plan) {
  return {.x = unsigned(plan.blocks_x),
          .y = unsigned(plan.blocks_y),
          .threads = plan.threads,
          .shared_bytes = plan.shared_bytes,
          .cluster = plan.engine == Engine::cluster ? plan.blocks_x : 0,
          .cooperative = traits(plan.engine).waits_over_device};
}

// Blocks that wait for each other must run at the same time. A Shortage says what they need and
// what is there in its place; no `needs`: nothing is missing.
struct Shortage {
  std::string needs, has;
  int after = 0;  // steps that ran
};

template <class Params>
Shortage shortage_of_room(const Recurrence& plan, void (*entry)(Params)) {
  const auto blocks = [](int count) { return std::to_string(count) + " blocks at the same time"; };
  if (plan.engine == Engine::cluster) {
    std::string why;
    if (resident_clusters(entry, grid_of(plan), why) > 0) return {};
    return {"room for a cluster of " + blocks(plan.blocks_x),
            why.empty() ? "room for none" : "'" + why + "' from the driver"};
  }
  if (!traits(plan.engine).waits_over_device) return {};
  const int all = plan.blocks_x * plan.blocks_y, most = resident_blocks(entry, grid_of(plan));
  return most < all ? Shortage{"room for " + blocks(all), "room for " + std::to_string(most)}
                    : Shortage{};
}

// Starts the kernel with the parameters that `prepare` makes in scratch memory, `plan.steps` rounds
// at a time. The launches follow each other on the stream, which orders a refill of the exchange
// with what is published into it again.
template <class Params, class Memory, class Prepare>
Shortage try_start(const Recurrence& plan, void (*entry)(Params), const Memory& memory, int rounds,
                   void* stream, const Prepare& prepare) {
  const Shortage room = shortage_of_room(plan, entry);
  if (!room.needs.empty()) return room;
  Params params = prepare();
  for (params.first = 0; params.first < rounds; params.first = params.end) {
    params.end = params.first + plan.steps < params.T ? params.first + plan.steps : rounds;
    memory.fill(plan.engine, stream);
    const std::string refusal = try_launch(entry, grid_of(plan), stream, params);
    if (refusal.empty()) continue;
    const std::string after = " after " + std::to_string(params.first) + " steps";
    return {"a launch of " + std::to_string(plan.blocks_x) + " x " + std::to_string(plan.blocks_y) +
                " blocks",
            "'" + refusal + "' from the driver" + (params.first > 0 ? after : ""), params.first};
  }
  return {};
}

// Tells whether it was started, which is what persistent.h promises. The steps that ran may have
// `replaced` what stepwise would begin with.
inline bool started(const Shortage& shortage, const char* direction, Cell cell,
                    const Recurrence& plan, bool replaced) {
  if (shortage.needs.empty()) return true;
  if (!plan.named && !replaced) return false;
  throw std::runtime_error("engine: expected " + shortage.needs + " for '" +
                           traits(plan.engine).name + "' (" + describe(direction, cell, plan) +
                           "), got " + shortage.has);
}

// ---- scratch memory

// Its parts are packed U, packed W of a fused input part, the exchange, packed resets, and what a
// launch leaves for the next.
template <class S>
struct Workspace {
  uint4 *weights, *input_weights;
  ExchangeMemory exchange;
  int64_t stage_words, flags;
  uint16_t* resets;
  float* carried;
  size_t bytes;

  Workspace(const Recurrence& plan, Cell cell, const Layer<S>& layer, Pass pass, void* scratch) {
    const Tiling& t = plan.tiling;
    const int unit_tiles = plan.blocks_x * t.unit_tiles, gates = traits(cell).gates;
    const int chunks = published_chunks(t, plan.blocks_x, sizeof(S));
    const int batch_tiles = plan.blocks_y * plan.batch_tiles;
    const bool ring = plan.engine == Engine::grid_flags, whole = plan.steps >= layer.T;
    // A launch reads a stage in each step; backward, the first of all but the first launch is what
    // the one before has left.
    const int64_t filled = whole ? layer.T : plan.steps + (pass == Pass::backward);
    const int planes = pass == Pass::forward ? 1 : gates;
    const int64_t stages = !traits(plan.engine).waits_over_device ? 0 : ring ? 2 : filled;
    stage_words = stages * planes * batch_tiles * chunks * kChunkWords;
    flags = ring ? int64_t{batch_tiles} * unit_tiles : 0;

    Arena<> arena(scratch);
    const auto packed = [&](int chunks) {
      return arena.take<uint4>(packed_count(unit_tiles, t.k_warps, gates, chunks));
    };
    weights = packed(t.chunks);
    input_weights = packed(plan.fused_input ? kFusedChunks : 0);
    exchange = {.stages = arena.take<uint32_t>(stage_words),
                .flags = arena.take<uint32_t>(flags),
                .chunks = chunks,
                .batch_tiles = batch_tiles,
                .cluster_size = plan.blocks_x};
    resets = arena.take<uint16_t>(layer.resets ? packed_pairs(int(layer.T), batch_tiles) : 0);
    carried = whole ? nullptr : arena.take<float>(2 * layer.B * layer.H);
    bytes = arena.used();
  }

  // Fills the memory as the exchange expects it before the first step.
  void fill(Engine engine, void* stream) const {
    if (engine == Engine::grid)
      fill_bytes(exchange.stages, 0xFF, stage_words * sizeof(uint32_t), stream);
    fill_bytes(exchange.flags, 0, flags * sizeof(uint32_t), stream);
  }
};

// Packs a weight of `chunks` chunks for each warp into `to` and returns it.
template <class S>
const uint4* pack(const Recurrence& plan, Cell cell, const S* weight, bool by_columns, int64_t H,
                  int64_t K, int chunks, int all_chunks, uint4* to, void* stream) {
  const PackParams<S> p{.weight = weight,
                        .packed = to,
                        .by_columns = by_columns,
                        .gates = traits(cell).gates,
                        .H = int(H),
                        .K = int(K),
                        .unit_tiles = plan.blocks_x * plan.tiling.unit_tiles,
                        .k_warps = plan.tiling.k_warps,
                        .chunks = chunks,
                        .all_chunks = all_chunks};
  const int64_t count = packed_count(p.unit_tiles, p.k_warps, p.gates, p.chunks);
  const unsigned blocks = unsigned((count + kPackThreads - 1) / kPackThreads);
  launch(pack_weights_kernel<S>, Grid{.x = blocks, .threads = kPackThreads}, stream, p);
  return p.packed;
}

// Packs the resets of a layer that has any into `to` and returns it.
template <class S>
const uint8_t* pack_resets(const Layer<S>& layer, int batch_tiles, uint16_t* to, void* stream) {
  if (!layer.resets) return nullptr;
  const ResetParams p{.resets = layer.resets,
                      .lengths = layer.lengths,
                      .T = int(layer.T),
                      .B = int(layer.B),
                      .batch_tiles = batch_tiles,
                      .packed = to};
  const int64_t count = packed_pairs(p.T, batch_tiles);
  const unsigned blocks = unsigned((count + kResetThreads - 1) / kResetThreads);
  launch(pack_resets_kernel<uint8_t>, Grid{.x = blocks, .threads = kResetThreads}, stream, p);
  return reinterpret_cast<const uint8_t*>(p.packed);
}

// ---- persistent.h

template <class S>
size_t forward_scratch_bytes(const Recurrence& plan, Cell cell, const Forward<S>& layer) {
  return Workspace<S>(plan, cell, layer, Pass::forward, nullptr).bytes;
}
template <class S>
size_t backward_scratch_bytes(const Recurrence& plan, Cell cell, const Backward<S>& layer) {
  return Workspace<S>(plan, cell, layer, Pass::backward, nullptr).bytes;
}

// Makes the parameters of the kernel, but for the steps of a launch.
template <class S>
ForwardParams<S> prepare(const Recurrence& plan, Cell cell, const Forward<S>& layer, S* gates,
                         const Workspace<S>& memory, void* stream) {
  const bool fused = plan.fused_input;
  const auto packed = [&](const S* weight, int64_t K, int chunks, int all_chunks, uint4* to) {
    return pack(plan, cell, weight, false, layer.H, K, chunks, all_chunks, to, stream);
  };
  return {.T = int(layer.T),
          .B = int(layer.B),
          .H = int(layer.H),
          .first = 0,
          .end = 0,
          .carried = memory.carried,
          .reverse = layer.reverse,
          .lengths = layer.lengths,
          .resets = pack_resets(layer, memory.exchange.batch_tiles, memory.resets, stream),
          .weights = packed(layer.weight_hh, layer.H, plan.tiling.chunks, memory.exchange.chunks,
                            memory.weights),
          .bias_hh = layer.bias_hh,
          .mask_h = layer.mask_h,
          .scale_h = float(layer.mask_h.scale),
          .h0 = layer.h0,
          .c0 = layer.c0,
          .gates = gates,
          .save = layer.gates != nullptr,
          .y = layer.y,
          .h_n = layer.h_n,
          .c_n = layer.c_n,
          .saved = layer.saved,
          .I = fused ? int(layer.I) : 0,
          .x = fused ? layer.x : nullptr,
          .input_weights = fused ? packed(layer.weight_ih, layer.I, kFusedChunks, kFusedChunks,
                                          memory.input_weights)
                                 : nullptr,
          .bias_ih = fused ? layer.bias_ih : nullptr,
          .mask_x = fused ? layer.mask_x : Mask{},
          .exchange = memory.exchange,
          .batch_tiles = plan.batch_tiles};
}

template <class S>
BackwardParams<S> prepare(const Recurrence& plan, Cell cell, const Backward<S>& layer, S* dz,
                          const Workspace<S>& memory, void* stream) {
  return {.T = int(layer.T),
          .B = int(layer.B),
          .H = int(layer.H),
          .first = 0,
          .end = 0,
          .carried = memory.carried,
          .reverse = layer.reverse,
          .lengths = layer.lengths,
          .resets = pack_resets(layer, memory.exchange.batch_tiles, memory.resets, stream),
          .weights = pack(plan, cell, layer.weight_hh, true, layer.H, layer.H, plan.tiling.chunks,
                          memory.exchange.chunks, memory.weights, stream),
          .mask_h = layer.mask_h,
          .scale_h = float(layer.mask_h.scale),
          .h0 = layer.h0,
          .c0 = layer.c0,
          .y = layer.y,
          .gates = layer.gates,
          .saved = layer.saved,
          .dy = layer.dy,
          .dh_n = layer.dh_n,
          .dc_n = layer.dc_n,
          .dz = dz,
          .dh0 = layer.dh0,
          .dc0 = layer.dc0,
          .exchange = memory.exchange,
          .batch_tiles = plan.batch_tiles};
}

template <class S>
bool forward(const Recurrence& plan, Cell cell, const Forward<S>& layer, S* gates, void* scratch,
             void* stream) {
  const Workspace<S> memory(plan, cell, layer, Pass::forward, scratch);
  const auto make = [&] { return prepare(plan, cell, layer, gates, memory, stream); };
  const auto entry = forward_kernel_of<S>(plan, cell, layer.mask_h);
  const Shortage shortage = try_start(plan, entry, memory, int(layer.T), stream, make);
  // Stepwise would begin with input parts. There are none, or activated gates stand there.
  const bool replaced = plan.fused_input || (shortage.after > 0 && layer.gates != nullptr);
  return started(shortage, "forward", cell, plan, replaced);
}

template <class S>
bool backward(const Recurrence& plan, Cell cell, const Backward<S>& layer, S* dz, void* scratch,
              void* stream) {
  const Workspace<S> memory(plan, cell, layer, Pass::backward, scratch);
  const auto make = [&] { return prepare(plan, cell, layer, dz, memory, stream); };
  const auto entry = backward_kernel_of<S>(plan, cell);
  const int rounds = int(layer.T) + 1;  // the last makes dh0
  const Shortage shortage = try_start(plan, entry, memory, rounds, stream, make);
  return started(shortage, "backward", cell, plan, false);  // dz is all that was written
}

// ---- lists of kernels (instantiations/)

template <Engine E, class S, class T, int Planes>
using ExchangeOf = std::conditional_t<
    E == Engine::block, BlockExchange<S, T, Planes>,
    std::conditional_t<E == Engine::cluster, ClusterExchange<S, T, Planes>,
                       std::conditional_t<E == Engine::grid, GridExchange<S, T, Planes>,
                                          FlagExchange<S, T, Planes>>>>;

template <template <class> class CellOf, class S, Engine E, Tiling Cut, MaskForm Form,
          int InputChunks>
constexpr ForwardKernel<S> forward_entry() {
  using T = Tile<Cut>;
  return {.cell = CellOf<DeviceMath>::id,
          .engine = E,
          .tiling = Cut,
          .form = Form,
          .fused_input = InputChunks > 0,
          .entry = forward_kernel<CellOf, S, ExchangeOf<E, S, T, 1>, T, Form, InputChunks>};
}
template <template <class> class CellOf, class S, Engine E, Tiling Cut>
constexpr BackwardKernel<S> backward_entry() {
  using T = Tile<Cut>;
  constexpr int G = CellOf<DeviceMath>::gates;
  return {.cell = CellOf<DeviceMath>::id,
          .engine = E,
          .tiling = Cut,
          .entry = backward_kernel<CellOf, S, ExchangeOf<E, S, T, G>, T>};
}

// This tells whether the persistent kernels of a cell are compiled for S.
template <template <class> class CellOf, class S>
constexpr bool kCompiled =
    CellOf<DeviceMath>::persistent == Persistent::all ||
    (CellOf<DeviceMath>::persistent == Persistent::bfloat16 && std::is_same_v<S, bfloat16>);

// Adds the kernels of a table of tilings.h to a list: of every cell, forward without masks of its
// own and, where there are gates to tell apart, with those that its tilings have.
template <class S, Engine E, const auto& Table, int InputChunks = 0>
void add_forward(std::vector<ForwardKernel<S>>& list) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    const auto add = [&]<template <class> class CellOf, Tiling Cut>() {
      if constexpr (InputChunks == 0 || Cut.chunks <= kFusedChunks) {
        constexpr MaskForm kUntied = untied_form(Cut, InputChunks > 0);
        list.push_back(forward_entry<CellOf, S, E, Cut, MaskForm::none, InputChunks>());
        if constexpr (CellOf<DeviceMath>::gates > 1)
          list.push_back(forward_entry<CellOf, S, E, Cut, kUntied, InputChunks>());
      }
    };
    for_each_cell([&]<template <class> class CellOf>() {
      if constexpr (kCompiled<CellOf, S>) (add.template operator()<CellOf, Table[i]>(), ...);
    });
  }(std::make_index_sequence<std::size(Table)>());
}
template <class S, Engine E, const auto& Table>
void add_backward(std::vector<BackwardKernel<S>>& list) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    for_each_cell([&]<template <class> class CellOf>() {
      if constexpr (kCompiled<CellOf, S>)
        (list.push_back(backward_entry<CellOf, S, E, Table[i]>()), ...);
    });
  }(std::make_index_sequence<std::size(Table)>());
}

// These make the lists of every kernel of tilings.h for a storage type.
template <class S>
std::vector<ForwardKernel<S>> compile_forward_kernels() {
  std::vector<ForwardKernel<S>> list;
  add_forward<S, Engine::grid, kGridForward>(list);
  add_forward<S, Engine::grid_flags, kFlagsForward>(list);
  add_forward<S, Engine::block, kBlock<sizeof(S)>>(list);
  add_forward<S, Engine::block, kBlock<sizeof(S)>, kFusedChunks>(list);
  add_forward<S, Engine::cluster, kCluster>(list);
  return list;
}
template <class S>
std::vector<BackwardKernel<S>> compile_backward_kernels() {
  std::vector<BackwardKernel<S>> list;
  add_backward<S, Engine::grid, kGridBackward>(list);
  add_backward<S, Engine::grid_flags, kFlagsBackward>(list);
  add_backward<S, Engine::block, kBlock<sizeof(S)>>(list);
  return list;
}

}  // namespace brnn::cuda::persistent
