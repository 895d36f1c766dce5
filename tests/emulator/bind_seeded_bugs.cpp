// bind_seeded_bugs.cpp - the forward recurrence with one thing wrong at a time, to prove that the
// emulator's tests can fail. Every bug is a class that shadows one member of the right one.
#include <map>

#include "bind_recurrence.h"
#include "cuda/stepwise/products.cuh"

namespace brnn::cuda {

constexpr MaskForm kNoMask{100}, kNextGatesMask{101};

template <class S, int G, int Chunks>
class WordMasks<kNoMask, S, G, Chunks> : public WordMasks<MaskForm::ready, S, G, Chunks> {
 public:
  uint32_t apply(uint32_t word, int, int) const { return word; }
};
template <class S, int G, int Chunks>
class WordMasks<kNextGatesMask, S, G, Chunks> : public WordMasks<MaskForm::ready, S, G, Chunks> {
 public:
  uint32_t apply(uint32_t word, int gate, int i) const {
    return WordMasks<MaskForm::ready, S, G, Chunks>::apply(word, (gate + 1) % G, i);
  }
};

using S = bfloat16;
using Small = Tile<Tiling{1, 2, 1, false}>;
using InBlock = Tile<Tiling{2, 1, 4, false}>;
using Pair = Tile<Tiling{1, 2, 2, false}>;

struct NoSumBarrier : Small {};
template <>
void group_barrier<NoSumBarrier>(int) {}
struct OneSumBuffer : Small {
  static constexpr int sum_buffers = 1;
};

struct DataNotAwaited : GridExchange<S, Small, 1> {
  using GridExchange::GridExchange;
  template <int From, int Count, int Size>
  void ready(uint4 (&)[Size], int) const {}
};
// Two slots in turn that nobody fills with 0xFF again.
struct DataInARing : GridExchange<S, Small, 1> {
  DataInARing(const ExchangeMemory& m, uint32_t* shared, const Place<Small>& at)
      : GridExchange(m, shared, at), slot(m.batch_tiles * m.chunks * kChunkWords) {}
  void put(int plane, int n, int place, uint32_t word) {
    GridExchange::put(plane, n, place - (outputs - outputs % 2) * slot, word);
  }
  uint4 load(int plane, int chunk, int n) const {
    return GridExchange::load(plane, chunk - (inputs - inputs % 2) * slot / kChunkWords, n);
  }
  template <int From, int Count, int Size>
  void ready(uint4 (&words)[Size], int n) const {
    while (words[0].x == ~0u) {
      spin();
      words[0] = load(0, 0, n);
    }
    __syncwarp();
  }
  void next_output() { GridExchange::next_output(), ++outputs; }
  void next_input() { GridExchange::next_input(), ++inputs; }
  int slot, outputs = 0, inputs = 0;
};
// 16 bits at a time: a word can be seen half written.
struct DataInHalves : GridExchange<S, Small, 1> {
  using GridExchange::GridExchange;
  void put(int plane, int n, int place, uint32_t word) {
    GridExchange::put(plane, n, place, word | 0xFFFF0000u);
    spin();
    GridExchange::put(plane, n, place, word);
  }
};

struct FlagsWithoutBarrier : FlagExchange<S, Small, 1> {
  FlagsWithoutBarrier(const ExchangeMemory& m, uint32_t* shared, const Place<Small>& at)
      : FlagExchange(m, shared, at),
        mine(m.flags + at.batch_tile0 * 2 * m.chunks + at.tile),
        first(at.thread == 0) {}
  void commit(int s, int n, bool) {
    if (first && n == 0) store_release(mine, uint32_t(s + 1));
  }
  uint32_t* mine;
  bool first;
};
struct FlagsOfTheStepBefore : FlagExchange<S, Small, 1> {
  using FlagExchange::FlagExchange;
  void wait(int s, int n) { FlagExchange::wait(s - 1, n); }
};
struct FlagsWithOneSlot : FlagExchange<S, Small, 1> {
  using FlagExchange::FlagExchange;
  void next_output() {}
  void next_input() {}
};

struct BlockWithoutBarrier : BlockExchange<S, InBlock, 1> {
  using SharedExchange::SharedExchange;
  void commit(int, int, bool) {}
};
struct BlockWithOneSlot : BlockExchange<S, InBlock, 1> {
  using SharedExchange::SharedExchange;
  void next_output() {}
  void next_input() {}
};

struct ClusterWithBlockBarrier : ClusterExchange<S, Pair, 1> {
  using SharedExchange::SharedExchange;
  void wait(int, int) {}
  void commit(int, int, bool) { __syncthreads(); }
};
struct ClusterWithoutBegin : ClusterExchange<S, Pair, 1> {
  using SharedExchange::SharedExchange;
  void begin() {}
};
struct ClusterWithOneSlot : ClusterExchange<S, Pair, 1> {
  using SharedExchange::SharedExchange;
  void next_output() {}
  void next_input() {}
};

template <class Exchange, class T, MaskForm Form = MaskForm::ready>
constexpr auto kernel = forward_kernel<Lstm, S, Exchange, T, Form, 0>;

struct Bug {
  Engine engine;
  Tiling tiling;
  void (*entry)(ForwardParams<S>);
};
const std::map<std::string, Bug> kBugs = {
    {"none, grid", {Engine::grid, Small::tiling, kernel<GridExchange<S, Small, 1>, Small>}},
    {"none, grid_flags",
     {Engine::grid_flags, Small::tiling, kernel<FlagExchange<S, Small, 1>, Small>}},
    {"none, block",
     {Engine::block, InBlock::tiling, kernel<BlockExchange<S, InBlock, 1>, InBlock>}},
    {"none, cluster", {Engine::cluster, Pair::tiling, kernel<ClusterExchange<S, Pair, 1>, Pair>}},
    {"missing mask",
     {Engine::grid, Small::tiling, kernel<GridExchange<S, Small, 1>, Small, kNoMask>}},
    {"mask of another gate",
     {Engine::grid, Small::tiling, kernel<GridExchange<S, Small, 1>, Small, kNextGatesMask>}},
    {"lengths off by one", {Engine::grid, Small::tiling, kernel<GridExchange<S, Small, 1>, Small>}},
    {"no barrier before the sum over warps",
     {Engine::grid, Small::tiling, kernel<GridExchange<S, NoSumBarrier, 1>, NoSumBarrier>}},
    {"one buffer of sums",
     {Engine::grid, Small::tiling, kernel<GridExchange<S, OneSumBuffer, 1>, OneSumBuffer>}},
    {"data not awaited", {Engine::grid, Small::tiling, kernel<DataNotAwaited, Small>}},
    {"data in a ring, not refilled", {Engine::grid, Small::tiling, kernel<DataInARing, Small>}},
    {"data published in halves", {Engine::grid, Small::tiling, kernel<DataInHalves, Small>}},
    {"no barrier before the release",
     {Engine::grid_flags, Small::tiling, kernel<FlagsWithoutBarrier, Small>}},
    {"flag of the step before",
     {Engine::grid_flags, Small::tiling, kernel<FlagsOfTheStepBefore, Small>}},
    {"one slot, flags", {Engine::grid_flags, Small::tiling, kernel<FlagsWithOneSlot, Small>}},
    {"no block barrier", {Engine::block, InBlock::tiling, kernel<BlockWithoutBarrier, InBlock>}},
    {"one slot, block", {Engine::block, InBlock::tiling, kernel<BlockWithOneSlot, InBlock>}},
    {"block barrier in a cluster",
     {Engine::cluster, Pair::tiling, kernel<ClusterWithBlockBarrier, Pair>}},
    {"cluster not started", {Engine::cluster, Pair::tiling, kernel<ClusterWithoutBegin, Pair>}},
    {"one slot, cluster", {Engine::cluster, Pair::tiling, kernel<ClusterWithOneSlot, Pair>}},
};

}  // namespace brnn::cuda

namespace brnn::testing {
namespace {

void forward(const std::string& bug_name, const py::dict& fields) {
  const Bug& bug = kBugs.at(bug_name);
  const Fields watched(fields);
  Forward<bfloat16> layer = forward_layer<bfloat16>(watched);
  const Recurrence plan = cut(Pass::forward, bug.engine, bug.tiling, 1, Cell::lstm, layer);
  const Host host{nullptr, nullptr, multiply};
  const Block own_gates(layer.T * layer.B * 4 * layer.H * sizeof(bfloat16));
  auto* const gates = static_cast<bfloat16*>(own_gates.data());
  const Block input(library::input_part_scratch_bytes(Cell::lstm, layer));
  library::input_part(Cell::lstm, layer, gates, host, input.data());
  std::vector<int64_t> lengths;
  if (bug_name == "lengths off by one") {
    for (int64_t b = 0; b < layer.B; ++b) lengths.push_back(layer.lengths[b] + 1);
    layer.lengths = lengths.data();
  }
  const Block block(recurrence::forward_scratch_bytes(plan, Cell::lstm, layer));
  launch(bug.entry, recurrence::grid_of(plan), nullptr,
         recurrence::prepare(plan, Cell::lstm, layer, gates, block.data(), nullptr));
}

}  // namespace

PYBIND11_MODULE(bind_seeded_bugs, m) {
  m.doc() = "The forward recurrence of a bfloat16 LSTM with one thing wrong.";
  emu::bind_controls(m);
  m.def("names", [] {
    std::vector<std::string> names;
    for (const auto& [name, bug] : kBugs) names.push_back(name);
    return names;
  });
  m.def("forward", &forward);
}

}  // namespace brnn::testing
