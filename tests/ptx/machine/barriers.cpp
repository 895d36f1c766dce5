// barriers.cpp - barriers of a block and of a cluster. PTX ISA 9.0, sections 9.7.13.1 (barrier) and
// 9.7.13.4 (barrier.cluster). All are .aligned: the lanes of a warp come together.
#include "machine.h"

namespace ptx {
namespace {

void give(Warp& w, const std::shared_ptr<const Clock>& clock) {
  for (auto& own : w.clocks) own = clock;
}

// The operand of a barrier, on which the lanes of a warp must agree.
int agreed(Warp& w, const Operation& o, int32_t place, const char* what) {
  const int32_t* const values = w.from<int32_t>(place);
  for (int i = 1; i < kWarp; ++i)
    if (values[i] != values[0])
      fail(w, i, o,
           format("divergence: barrier with %s %d and, in the same warp, %d", what, values[i],
                  values[0]));
  return values[0];
}

// Places: the barrier, how many threads (-1: all of the block).
Step arrive_at(Warp& w, const Operation& o, uint32_t) {
  Block& block = *w.block;
  const int all = int(block.warps.size()) * kWarp;
  const int id = agreed(w, o, o.at[0], "number"), given = agreed(w, o, o.at[1], "a count of");
  const int threads = given < 0 ? all : given;
  if (id < 0 || id > 15) fail(w, 0, o, format("misuse: barrier %d, 0 to 15 expected", id));
  if (threads == 0 || threads % kWarp || threads > all)
    fail(w, 0, o, format("misuse: barrier of %d threads in a block of %d", threads, all));
  Barrier& b = block.barriers[uint32_t(id)];
  if (b.arrived && b.expected != threads)
    fail(w, 0, o,
         format("divergence: barrier %d of %d threads, others expect %d", id, threads, b.expected));
  const Kernel& kernel = *w.launch->kernel;
  if (b.arrived && given < 0 && kernel.where(b.line) != kernel.where(o.line))
    fail(w, 0, o,
         format("divergence: barrier of the block, others are in that of PTX line %d, %s", b.line,
                kernel.where(b.line).c_str()));
  b.expected = threads, b.line = o.line;
  buffers_to_block(w, kAll);
  if (options.races) add_to(b.clock, w, kAll);
  ++w.epoch;
  if ((b.arrived += kWarp) < threads) {
    b.warps.push_back(&w);
    return hold(w);
  }
  b.arrived = 0;
  if (options.races) {
    const auto clock = b.clock.take();
    give(w, clock);
    for (Warp* other : b.warps) give(*other, clock);
  }
  for (Warp* other : b.warps) let_go(*other);
  b.warps.clear();
  return Step::next;
}
Step bar_sync(Warp& w, const Operation& o, uint32_t mask) {
  return meet(w, o, mask, nullptr, arrive_at);
}

Step arrive_at_cluster(Warp& w, const Operation& o, uint32_t) {
  if (w.in_cluster_barrier)
    fail(w, 0, o, "misuse: a second arrive at the cluster barrier before the wait");
  for (int lane = 0; lane < kWarp; ++lane) fence(w, lane);
  Cluster& c = *w.block->cluster;
  if (options.races) add_to(c.clock, w, kAll);
  ++w.epoch;
  w.in_cluster_barrier = kAll, w.cluster_phase = c.phase;
  c.arrived += kWarp;
  advance(c);
  return Step::next;
}
Step cluster_arrive(Warp& w, const Operation& o, uint32_t mask) {
  return meet(w, o, mask, nullptr, arrive_at_cluster);
}

Step wait_for_cluster(Warp& w, const Operation& o, uint32_t) {
  if (!w.in_cluster_barrier)
    fail(w, 0, o, "misuse: a wait for the cluster barrier without an arrive");
  Cluster& c = *w.block->cluster;
  w.in_cluster_barrier = 0;
  if (c.phase == w.cluster_phase) {
    c.warps.push_back(&w);
    return hold(w);
  }
  if (options.races) give(w, c.passed);
  return Step::next;
}
Step cluster_wait(Warp& w, const Operation& o, uint32_t mask) {
  return meet(w, o, mask, nullptr, wait_for_cluster);
}

}  // namespace

void advance(Cluster& c) {
  if (c.live == 0 || c.arrived < c.live) return;
  c.arrived = 0, ++c.phase;
  if (options.races) c.passed = c.clock.take();
  for (Warp* w : c.warps) {
    if (options.races) give(*w, c.passed);
    let_go(*w);
  }
  c.warps.clear();
}

std::vector<Entry> barrier_operations() {
  return {{"bar.sync", bar_sync},
          {"barrier.cluster.arrive.release.aligned", cluster_arrive},
          {"barrier.cluster.wait.acquire.aligned", cluster_wait}};
}

}  // namespace ptx
