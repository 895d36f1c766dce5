// control.cpp - which lanes of a warp run: branches, exits, and turns of lanes that disagree.
#include <cmath>

#include "machine.h"

namespace ptx {

Options options;

std::string Kernel::where(int line) const {
  auto next = sources.upper_bound(line);
  return next == sources.begin() ? "no source" : std::prev(next)->second;
}

void save_places(Warp& w, uint32_t lanes, uint32_t at) {
  each(lanes, [&](int i) { w.pc[i] = at; });
}

bool gives_way(Warp& w, bool poll) {
  Launch& l = *w.launch;
  if (!(w.active & ~w.gave)) {
    w.gave &= ~w.active;
    return false;
  }
  if (poll) {
    if (w.vain_stamp != l.stamp) w.vain = 0, w.vain_stamp = l.stamp;
    ++w.vain;
  } else if (--l.budget >= 0) {
    return false;
  } else {  // how long until the next switch
    const double p = options.yields;
    l.budget = p <= 0   ? INT64_MAX
               : p >= 1 ? 0
                        : int64_t(std::log(1 - l.random.unit()) / std::log(1 - p));
  }
  w.gave |= w.active;
  return true;
}

void exit_lanes(Warp& w, uint32_t lanes) {
  const Operation& o = w.operation();
  if (w.in_cluster_barrier & lanes)
    fail(w, std::countr_zero(lanes), o,
         "misuse: exits between arrive and wait of a cluster barrier");
  Block& block = *w.block;
  Cluster& cluster = *block.cluster;
  for (uint32_t left = lanes & w.buffered; left; left &= left - 1)
    flush(w.stores[std::countr_zero(left)]);
  w.buffered &= ~lanes;
  w.ready &= ~lanes, w.exited |= lanes;
  check_exits(w);
  if (options.races) add_to(block.end, w, lanes);
  w.launch->changed();
  const int count = std::popcount(lanes);
  cluster.live -= count;
  if ((block.live -= count) == 0) {
    flush(block.stores);
    const auto end = options.races ? block.end.take() : nullptr;
    for (const PeerAccess& p : block.peers)
      if (end->seen(p.block, p.thread) < p.epoch)
        fail(w, 0, o,
             format("late access: to shared memory of this block, which exits, by block %d thread "
                    "%d at PTX line %d, %s",
                    p.block, p.thread, p.line, w.launch->kernel->where(p.line).c_str()));
  }
  advance(cluster);
}

namespace {

constexpr int64_t kMostLoops = 1'000;

Step branch(Warp& w, const Operation& o, uint32_t mask) {
  const uint32_t target = uint32_t(o.number);
  const bool together = w.active == w.ready || w.turns;
  if (mask == w.active && together) {
    if (target <= w.at && ++w.loops >= kMostLoops) {  // others run, whatever this loop does
      w.loops = 0, w.at = target;
      return Step::stay;
    }
    w.at = target;
    return Step::jump;
  }
  save_places(w, w.active & ~mask, w.at + 1);
  save_places(w, mask, target);
  if (target <= w.at && ++w.loops >= kMostLoops) {
    w.loops = 0, w.active = 0;
    return Step::stay;
  }
  return Step::regroup;
}

// Lanes that disagree may meet again.
Step label(Warp& w, const Operation&, uint32_t) {
  if (w.active == w.ready || w.turns) return Step::next;
  save_places(w, w.active, w.at + 1);
  // Those that wait before the label come first.
  return Step::regroup;
}

Step ret(Warp& w, const Operation&, uint32_t mask) {
  save_places(w, w.active & ~mask, w.at + 1);
  exit_lanes(w, mask);
  return Step::regroup;
}

Step trap(Warp& w, const Operation& o, uint32_t mask) {
  fail(w, std::countr_zero(mask), o, "trap");
}

// The group that runs next: the one that is furthest behind, so that lanes meet again; now and then
// another one, because the first may wait for it.
void choose(Warp& w) {
  int first = std::countr_zero(w.ready);
  w.turns = false;
  if (w.gave_way) {
    bool disagree = false;
    for (uint32_t left = w.ready; left; left &= left - 1)
      disagree |= w.pc[std::countr_zero(left)] != w.pc[first];
    if (disagree && (options.schedule == Schedule::round_robin || w.launch->random.chance(0.5))) {
      const uint32_t later = w.ready & ~((2u << w.turn) - 1u);
      w.turn = std::countr_zero(w.turn < kWarp - 1 && later ? later : w.ready);
      first = w.turn, w.turns = true;
    }
  }
  w.gave_way = false;
  w.at = w.pc[first];
  if (!w.turns)
    for (uint32_t left = w.ready; left; left &= left - 1)
      w.at = std::min(w.at, w.pc[std::countr_zero(left)]);
  w.active = 0;
  for (uint32_t left = w.ready; left; left &= left - 1) {
    const int i = std::countr_zero(left);
    w.active |= uint32_t(w.pc[i] == w.at) << i;
  }
}

}  // namespace

Step run(Warp& w) {
  const Operation* const operations = w.launch->kernel->operations.data();
  while (w.ready) {
    choose(w);
    for (bool together = true; together;) {
      const Operation& o = operations[w.at];
      uint32_t mask = w.active;
      if (o.guard != kNone) mask &= *w.from<uint32_t>(o.guard) ^ o.flip;
      switch (mask ? o.handler(w, o, mask) : Step::next) {
        case Step::next: ++w.at; break;
        case Step::jump: break;
        case Step::regroup: together = false; break;
        case Step::stay:
          save_places(w, w.active, w.at);
          w.gave_way = true;
          return Step::stay;
      }
    }
  }
  return Step::regroup;
}

std::vector<Entry> control_operations() {
  return {{"bra", branch}, {"label", label}, {"ret", ret}, {"trap", trap}};
}

}  // namespace ptx
