// grid.cpp - runs a grid: which clusters are there, which warp runs next, and when none ever will.
#include <algorithm>
#include <array>
#include <cstring>

#include "machine.h"
#include "report.h"

namespace ptx {

void make_ready(Warp& w) {
  auto& ready = w.launch->ready;
  w.ready_index = int(ready.size());
  ready.push_back(&w);
}
Step hold(Warp& w) {
  save_places(w, kAll, w.at + 1);
  w.held = kAll, w.ready = 0;
  return Step::regroup;
}
void let_go(Warp& w) {
  w.ready = w.held, w.held = 0;
  make_ready(w);
}

namespace {

constexpr int64_t kVainPolls = 2000;  // of every warp that can run: nobody will ever come
constexpr size_t kMostAtOnce = 16;    // clusters of a launch that is not cooperative

void unready(Warp& w) {
  auto& ready = w.launch->ready;
  ready.back()->ready_index = w.ready_index;
  ready[size_t(w.ready_index)] = ready.back();
  ready.pop_back();
}

// What a block finds in its registers: special ones first, as decode.py places them.
void write_special(Warp& w) {
  const GridSize& g = w.launch->grid;
  const Block& b = *w.block;
  const uint32_t uniform[] = {g.threads, b.index[0], b.index[1], b.index[2], g.x, g.y, g.z, b.rank};
  uint32_t* to = w.to<uint32_t>(0);
  for (uint32_t i = 0; i < kWarp; ++i) to[i] = uint32_t(w.index) * kWarp + i, to[kWarp + i] = i;
  to += 2 * kWarp;
  for (const uint32_t value : uniform) to = std::fill_n(to, kWarp, value);
}

class Grid {
 public:
  explicit Grid(Launch& launch) : l_(launch) {
    const GridSize& g = l_.grid;
    for (uint32_t z = 0; z < g.z; ++z)
      for (uint32_t y = 0; y < g.y; ++y)
        for (uint32_t x = 0; x < g.x; x += g.cluster) starts_.push_back({x, y, z});
    if (options.schedule != Schedule::round_robin)
      for (size_t i = starts_.size(); i > 1; --i)
        std::swap(starts_[i - 1], starts_[l_.random.below(uint32_t(i))]);
    resident_ = starts_.size();
    if (!g.cooperative) {  // nobody promises more than one cluster at a time
      size_t most = std::clamp<size_t>(2048 / (g.threads * g.cluster), 1, kMostAtOnce);
      if (options.schedule != Schedule::round_robin)
        most = l_.random.chance(0.25) ? 1 : 1 + l_.random.below(uint32_t(most));
      resident_ = std::min(resident_, most);
    }
    reserve_window(resident_ * g.cluster);
    for (size_t i = resident_ * g.cluster; i > 0; --i) l_.free_slots.push_back(int(i - 1));
  }
  ~Grid() {
    for (const auto& cluster : l_.clusters) free_registers(*cluster);
    for (uint8_t* memory : l_.free_registers) std::free(memory);
  }

  void run() {
    fill();
    while (!l_.ready.empty()) {
      Warp& w = next_warp();
      const Step step = ptx::run(w);
      ++l_.steps;
      if (step == Step::stay) {
        others_run(w);
      } else {
        unready(w);
        if (w.block->cluster->live == 0) end_cluster(*w.block->cluster);
      }
      if (l_.steps > options.most_steps)
        throw Report{
            report(l_, "endless: the launch has used up its steps", starts_.size() - next_)};
    }
    if (!l_.clusters.empty())
      throw Report{report(l_, "deadlock: no thread can run", starts_.size() - next_)};
  }

 private:
  Warp& next_warp() {
    auto& ready = l_.ready;
    switch (options.schedule) {
      case Schedule::round_robin:
        l_.cursor = (l_.cursor + 1) % ready.size();
        return *ready[l_.cursor];
      case Schedule::random: break;
      case Schedule::block_ahead: {
        Warp* first = nullptr;
        for (Warp* w : ready)
          if ((w->vain == 0 || w->vain_stamp != l_.stamp) &&
              (!first || w->block->order < first->block->order))
            first = w;
        if (first) return *first;
      }
    }
    return *ready[l_.random.below(uint32_t(ready.size()))];
  }

  // Between two turns: what is under way may arrive.
  void others_run(Warp& w) {
    if (!w.copies.empty() && !l_.random.chance(options.late_copies)) copies_arrive(w);
    if (l_.any_buffered && l_.steps % 16 == 0) some_stores_arrive(l_, 0.2);
    if (w.vain >= kVainPolls && w.vain % 256 == 0) look_for_livelock();
  }

  void look_for_livelock() {
    for (const Warp* w : l_.ready)
      if (w->vain < kVainPolls || w->vain_stamp != l_.stamp) return;
    if (l_.any_buffered) {
      some_stores_arrive(l_, 1);
      return l_.changed();
    }
    throw Report{report(l_, "livelock: threads only wait in vain", starts_.size() - next_)};
  }

  void fill() {
    while (next_ < starts_.size() && l_.clusters.size() < resident_)
      start_cluster(starts_[next_++]);
  }

  void start_cluster(const std::array<uint32_t, 3>& at) {
    const GridSize& g = l_.grid;
    auto cluster = std::make_unique<Cluster>();
    for (uint32_t rank = 0; rank < g.cluster; ++rank) {
      auto block = std::make_unique<Block>();
      block->cluster = cluster.get();
      block->index[0] = at[0] + rank, block->index[1] = at[1], block->index[2] = at[2];
      block->id = int((at[2] * g.y + at[1]) * g.x + at[0] + rank), block->rank = rank;
      block->order = int64_t(l_.random.next() >> 1);
      block->slot = l_.free_slots.back();
      l_.free_slots.pop_back();
      block->shared = window_of(block->slot) + kSharedBase;
      std::memset(block->shared, 0xFF, g.shared_bytes);  // NaN
      if (options.races) block->shadow.resize(g.shared_bytes / 16 + 1);
      block->live = int(g.threads);
      for (uint32_t i = 0; i < g.threads / kWarp; ++i) start_warp(*block, int(i));
      cluster->live += block->live;
      cluster->blocks.push_back(std::move(block));
    }
    l_.clusters.push_back(std::move(cluster));
  }

  void start_warp(Block& block, int index) {
    auto w = std::make_unique<Warp>();
    w->launch = &l_, w->block = &block, w->index = index;
    const size_t bytes = (l_.kernel->register_bytes + 63) / 64 * 64;
    if (l_.free_registers.empty()) {
      w->registers = static_cast<uint8_t*>(std::aligned_alloc(64, bytes));
    } else {
      w->registers = l_.free_registers.back();
      l_.free_registers.pop_back();
    }
    std::memset(w->registers, 0xFF, bytes);
    write_special(*w);
    make_ready(*w);
    block.warps.push_back(std::move(w));
  }

  void free_registers(Cluster& cluster) {
    for (const auto& block : cluster.blocks) {
      flush(block->stores);
      l_.free_slots.push_back(block->slot);
      for (const auto& w : block->warps) l_.free_registers.push_back(w->registers);
    }
  }

  void end_cluster(Cluster& cluster) {
    free_registers(cluster);
    const auto at = std::ranges::find(l_.clusters, &cluster, &std::unique_ptr<Cluster>::get);
    l_.clusters.erase(at);
    fill();
  }

  Launch& l_;
  std::vector<std::array<uint32_t, 3>> starts_;  // of clusters, in their order
  size_t next_ = 0, resident_;
};

}  // namespace

void run_grid(const Kernel& kernel, const void* params, const GridSize& grid) {
  if (grid.threads % kWarp)
    throw Report{format("launch: %u threads, a multiple of 32 expected", grid.threads)};
  // 8-byte aligned like the constant bank.
  std::vector<uint64_t> copy(size_t(kernel.param_bytes) / 8 + 1);
  std::memcpy(copy.data(), params, size_t(kernel.param_bytes));
  Launch l;
  l.kernel = &kernel, l.params = reinterpret_cast<const uint8_t*>(copy.data()), l.grid = grid;
  l.random.state = options.seed * 0x1234567 + ++options.launches;
  Grid(l).run();
}

}  // namespace ptx
