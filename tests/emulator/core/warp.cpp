// warp.cpp - meetings of lanes, shuffles, votes, __syncwarp.
#include "warp.h"

#include <bit>
#include <string>

#include "race.h"
#include "report.h"

namespace emu {
namespace {

Meeting& join_or_open(Warp& warp, const Gathering& call, unsigned lane) {
  if (!(call.mask >> lane & 1))
    machine->fail(std::string("misuse: ") + call.what + ": the lane is not in its own mask",
                  call.site);
  if (call.mask & ~warp.live)
    machine->fail(std::string("divergence: ") + call.what +
                      ": the mask names lanes that do not exist or have exited",
                  call.site);
  for (Meeting& meeting : warp.meetings) {
    if (meeting.mask != call.mask) continue;
    if (meeting.what != call.what || (call.aligned && !same_line(meeting.site, call.site)))
      machine->fail(std::string("divergence: ") + call.what + ", but other lanes are in " +
                        meeting.what + " at " + source_line(meeting.site),
                    call.site);
    return meeting;
  }
  Meeting& meeting = warp.meetings.emplace_back();
  meeting.mask = call.mask;
  meeting.what = call.what;
  meeting.site = call.site;
  return meeting;
}

struct Shuffle {
  uint64_t value;
  unsigned source;
  uint64_t result;
};

struct Vote {
  bool predicate, result;
};

}  // namespace

void meet(const Gathering& call, void* box, Combine combine) {
  Thread& self = *current;
  Warp& warp = self.block->warps[self.rank / 32];
  Meeting& meeting = join_or_open(warp, call, self.lane());
  self.box = box;
  meeting.lanes[self.lane()] = &self;
  meeting.arrived |= 1u << self.lane();
  if (meeting.arrived != meeting.mask) {
    machine->wait(call.what, call.site, &warp);
    return;
  }
  combine(meeting.lanes, meeting.mask);
  Thread* present[32];
  size_t count = 0;
  for (uint32_t rest = meeting.mask; rest; rest &= rest - 1)
    present[count++] = meeting.lanes[std::countr_zero(rest)];
  machine->take_turn(present, count);
  for (size_t i = 0; i < count; ++i)
    if (present[i] != &self) machine->wake(*present[i]);
  std::swap(meeting, warp.meetings.back());
  warp.meetings.pop_back();
}

unsigned lane() { return current->lane(); }

uint64_t shuffle(uint32_t mask, uint64_t value, unsigned source, const char* what, Site site) {
  if (!(mask >> source & 1))
    machine->fail(std::string("misuse: ") + what + ": reads lane " + std::to_string(source) +
                      ", which is not in the mask",
                  site);
  Shuffle box{value, source, 0};
  meet({mask, what, site, false}, &box, [](Thread* const* lanes, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      Shuffle& mine = box_of<Shuffle>(lanes[std::countr_zero(rest)]);
      mine.result = box_of<Shuffle>(lanes[mine.source]).value;
    }
  });
  return box.result;
}

bool any(uint32_t mask, bool predicate, Site site) {
  Vote box{predicate, false};
  meet({mask, "__any_sync", site, false}, &box, [](Thread* const* lanes, uint32_t mask) {
    bool result = false;
    for (uint32_t rest = mask; rest; rest &= rest - 1)
      result |= box_of<Vote>(lanes[std::countr_zero(rest)]).predicate;
    for (uint32_t rest = mask; rest; rest &= rest - 1)
      box_of<Vote>(lanes[std::countr_zero(rest)]).result = result;
  });
  return box.result;
}

void warp_barrier(uint32_t mask, Site site) {
  meet({mask, "__syncwarp", site, false}, nullptr, [](Thread* const* lanes, uint32_t mask) {
    Thread* present[32];
    int count = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1)
      present[count++] = lanes[std::countr_zero(rest)];
    race::join(present, count);
  });
}

}  // namespace emu
