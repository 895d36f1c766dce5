// barrier.cpp - barriers of a block, of some of its warps, of a cluster.
#include <algorithm>
#include <string>

#include "machine.h"
#include "race.h"
#include "report.h"

namespace emu {
namespace {

void arrive_and_wait(Barrier& barrier, const char* doing, Site site) {
  barrier.arrived.push_back(current);
  if (barrier.arrived.size() < barrier.expected) {
    machine->wait(doing, site, &barrier);
    return;
  }
  race::join(barrier.arrived.data(), barrier.arrived.size());
  release(barrier);
  if (!machine->ordered()) machine->yield(doing, site);  // the last to arrive need not go first
}

// bar.sync is executed by warps: a count of threads means nothing where lanes are missing.
void check_whole_warps(const Barrier& barrier, Site site) {
  const Block& block = *current->block;
  std::vector<uint32_t> lanes(block.warps.size());
  lanes[current->rank / 32] = 1u << current->lane();
  for (const Thread* thread : barrier.arrived) lanes[thread->rank / 32] |= 1u << thread->lane();
  for (size_t warp = 0; warp < lanes.size(); ++warp)
    if (lanes[warp] && lanes[warp] != block.warps[warp].live)
      machine->fail("divergence: named_barrier reached by some lanes of warp " +
                        std::to_string(warp) + " only",
                    site);
}

}  // namespace

void release(Barrier& barrier) {
  machine->take_turn(barrier.arrived.data(), barrier.arrived.size());
  for (Thread* thread : barrier.arrived)
    if (thread->waits_for == &barrier) machine->wake(*thread);
  barrier.arrived.clear();
  ++barrier.phase;
}

void leave_barriers(Thread& thread) {
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.rank / 32];
  for (const Meeting& meeting : warp.meetings)
    if (meeting.mask >> thread.lane() & 1)
      machine->fail(std::string("divergence: exits while other lanes wait for it in ") +
                        meeting.what + " at " + source_line(meeting.site),
                    thread.site);
  warp.live &= ~(1u << thread.lane());
  Barrier& barrier = block.barriers[0];
  --barrier.expected;
  if (!barrier.arrived.empty() && barrier.arrived.size() >= barrier.expected) {
    race::join(barrier.arrived.data(), barrier.arrived.size());
    release(barrier);
  }

  if (thread.arrived_at_cluster)
    machine->fail("misuse: exits between cluster_arrive and cluster_wait", thread.site);
  Barrier& cluster = block.cluster->barrier;
  --cluster.expected;
  if (!cluster.arrived.empty() && cluster.arrived.size() >= cluster.expected) release(cluster);
}

void block_barrier(Site site) {
  Barrier& barrier = current->block->barriers[0];
  if (barrier.arrived.empty()) {
    barrier.site = site;
  } else if (!same_line(barrier.site, site)) {
    machine->fail("divergence: __syncthreads reached at different places; " +
                      name_of(*barrier.arrived[0]) + " waits at " + source_line(barrier.site),
                  site);
  }
  arrive_and_wait(barrier, "__syncthreads", site);
}

void named_barrier(int id, int threads, Site site) {
  if (id < 1 || id > 15)
    machine->fail("misuse: named_barrier " + std::to_string(id) + ", 1 to 15 expected", site);
  if (threads <= 0 || threads % 32 || uint32_t(threads) > (machine->shape.threads + 31) / 32 * 32)
    machine->fail("misuse: named_barrier of " + std::to_string(threads) +
                      " threads, a multiple of 32 within the block expected",
                  site);
  Barrier& barrier = current->block->barriers[id];
  if (!barrier.arrived.empty() && barrier.expected != uint32_t(threads))
    machine->fail("divergence: named_barrier of " + std::to_string(threads) + " threads, " +
                      name_of(*barrier.arrived[0]) + " waits for " +
                      std::to_string(barrier.expected),
                  site);
  barrier.expected = uint32_t(threads);
  if (barrier.arrived.size() + 1 == barrier.expected) check_whole_warps(barrier, site);
  arrive_and_wait(barrier, "named_barrier", site);
}

void cluster_arrive(Site site) {
  Thread& thread = *current;
  Barrier& barrier = thread.block->cluster->barrier;
  if (thread.arrived_at_cluster)
    machine->fail("misuse: cluster_arrive twice without cluster_wait", site);
  thread.arrived_at_cluster = true;
  thread.cluster_phase = barrier.phase;
  thread.doing = "cluster_arrive";
  thread.site = site;
  race::arrive(*thread.block->cluster);
  barrier.arrived.push_back(&thread);
  if (barrier.arrived.size() >= barrier.expected) release(barrier);
  machine->may_yield("cluster_arrive", site);
}

void cluster_wait(Site site) {
  Thread& thread = *current;
  if (!thread.arrived_at_cluster)
    machine->fail("misuse: cluster_wait without cluster_arrive", site);
  const Barrier& barrier = thread.block->cluster->barrier;
  if (barrier.phase == thread.cluster_phase) machine->wait("cluster_wait", site, &barrier);
  thread.arrived_at_cluster = false;
  race::pass(*thread.block->cluster, thread.cluster_phase);
}

}  // namespace emu
