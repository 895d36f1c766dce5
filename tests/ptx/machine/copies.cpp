// copies.cpp - cp.async, PTX ISA 9.0 section 9.7.9.25: copies of 16 or 4 bytes that arrive as late
// as they may, or at random before.
#include <cstring>

#include "machine.h"

namespace ptx {
namespace {

void arrive(Warp& w, Copy& c) {
  if (c.arrived) return;
  uint8_t* const to = w.block->shared + (c.to - kSharedBase);
  std::memset(to, 0, size_t(c.bytes));
  if (c.source_bytes)
    std::memcpy(to, reinterpret_cast<const void*>(c.from), size_t(c.source_bytes));
  c.arrived = true;
  w.launch->changed();
}

// Places: where to, where from, how many bytes of the source (the rest is zero).
Step copy(Warp& w, const Operation& o, uint32_t mask) {
  if (gives_way(w, false)) return Step::stay;
  for (; mask; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    const uint64_t to = uint32_t(w.from<uint32_t>(o.at[0])[lane] + uint32_t(o.number >> 32));
    const uint64_t from = w.from<uint64_t>(o.at[1])[lane] + uint64_t(int64_t(int32_t(o.number)));
    const int source_bytes = w.from<int32_t>(o.at[2])[lane];
    check_alignment(w, lane, o, to, o.bytes);
    check_alignment(w, lane, o, from, o.bytes);
    uint8_t* const target = shared_at(w, lane, o, to, o.bytes);
    if (source_bytes < 0 || source_bytes > o.bytes)
      fail(w, lane, o, format("misuse: cp.async of %d bytes of %d", source_bytes, o.bytes));
    if (source_bytes) {
      check_global(w, lane, o, from, source_bytes);
      watch_global(w, lane, o, from, source_bytes, Access::read, false);
    }
    watch_shared(w, lane, o, w.block->slot, to, o.bytes, Access::copy, false);
    std::memset(target, 0xFF, o.bytes);  // NaN until it arrives
    w.copies.push_back({lane, w.group[lane], to, from, o.bytes, source_bytes, o.line, false});
    if (!w.launch->random.chance(options.late_copies)) arrive(w, w.copies.back());
  }
  return Step::next;
}

Step commit(Warp& w, const Operation&, uint32_t mask) {
  each(mask, [&](int i) { ++w.group[i]; });
  return Step::next;
}
Step wait_group(Warp& w, const Operation& o, uint32_t mask) {
  finish_copies(w, mask, int(o.number));
  return Step::next;
}

}  // namespace

// Those of all groups but the last `pending`.
void finish_copies(Warp& w, uint32_t lanes, int pending) {
  if (w.copies.empty()) return;
  const Operation& o = w.operation();
  size_t left = 0;
  for (Copy& c : w.copies) {
    if (lanes >> c.lane & 1 && int64_t(c.group) < int64_t(w.group[c.lane]) - pending) {
      arrive(w, c);
      watch_arrival(w, c.lane, o, c.to, c.bytes);
    } else {
      w.copies[left++] = c;
    }
  }
  w.copies.resize(left);
}

void copies_arrive(Warp& w) {
  for (Copy& c : w.copies) arrive(w, c);
}

std::vector<Entry> copy_operations() {
  return {
      {"cp.async", copy}, {"cp.async.commit_group", commit}, {"cp.async.wait_group", wait_group}};
}

}  // namespace ptx
