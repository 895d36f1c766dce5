// memory.cpp - what memory there is, loads and stores, and how late a store is seen. PTX ISA 9.0,
// chapter 8 (memory consistency model) and sections 9.7.9.8 to 9.7.9.11.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "machine.h"

namespace ptx {
namespace {

struct Range {
  uint64_t begin, end;
  std::string name;
};
std::vector<Range> ranges_;
Range last_{};

struct Sector {
  bool fetched = false, loaded_before = false, loaded_after = false;
};
std::unordered_map<uint64_t, Sector> halves_;  // by address / 16, as memory is aligned

uint8_t* window_;  // generic addresses of shared memory
size_t window_slots_;

bool in_window(uint64_t address) {
  return address >= uint64_t(window_) && address < uint64_t(window_) + window_slots_ * kSlot;
}

}  // namespace

void add_memory(const void* begin, size_t bytes, const char* name) {
  ranges_.push_back({uint64_t(begin), uint64_t(begin) + bytes, name});
}
void remove_memory(const void* begin) {
  std::erase_if(ranges_, [&](const Range& r) { return r.begin == uint64_t(begin); });
  last_ = {};
}
bool in_memory(const void* begin, size_t bytes) {
  return std::ranges::any_of(ranges_, [&](const Range& r) {
    return uint64_t(begin) >= r.begin && uint64_t(begin) + bytes <= r.end;
  });
}
void clear_memory() {
  ranges_.clear();
  last_ = {};
}
Fetches fetches() {
  Fetches found;
  for (const auto& [address, half] : halves_) {
    if (!half.fetched) continue;
    ++found.sectors, found.loaded += half.loaded_after, found.late += half.loaded_before;
  }
  return {found.sectors / 2, found.loaded / 2, found.late};
}
void clear_fetches() { halves_.clear(); }
void reserve_window(size_t slots) {
  if (slots <= window_slots_) return;
  if (window_) munmap(window_, window_slots_ * kSlot);
  void* const memory = mmap(nullptr, slots * kSlot, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  window_slots_ = slots, window_ = static_cast<uint8_t*>(memory);
}
uint8_t* window_of(int slot) { return window_ + size_t(slot) * kSlot; }

std::string memory_name(uint64_t address) {
  for (const Range& r : ranges_)
    if (address >= r.begin && address < r.end)
      return format("%s + %llu bytes", r.name.c_str(), (unsigned long long)(address - r.begin));
  return format("%#llx", (unsigned long long)address);
}

void check_alignment(const Warp& w, int lane, const Operation& o, uint64_t address, int bytes) {
  if (address % uint64_t(bytes))
    fail(w, lane, o,
         format("misaligned: %d bytes at address %#llx", bytes, (unsigned long long)address));
}

void check_global(Warp& w, int lane, const Operation& o, uint64_t address, int bytes) {
  if (address >= last_.begin && address + uint64_t(bytes) <= last_.end) return;
  const Range* near = nullptr;
  for (const Range& r : ranges_) {
    if (address >= r.begin && address + uint64_t(bytes) <= r.end) {
      last_ = r;
      return;
    }
    if (address + 4096 >= r.begin && address < r.end + 4096 &&
        (!near || std::llabs(int64_t(address - r.end)) < std::llabs(int64_t(address - near->end))))
      near = &r;
  }
  const std::string which =
      near ? format("%s, %lld bytes from its begin, %lld from its end", near->name.c_str(),
                    (long long)(address - near->begin), (long long)(address - near->end))
           : "no memory";
  fail(w, lane, o, format("out of bounds: %d bytes of %s", bytes, which.c_str()));
}

uint8_t* shared_at(Warp& w, int lane, const Operation& o, uint64_t address, int bytes) {
  const uint32_t size = w.launch->grid.shared_bytes;
  address = uint32_t(address);
  if (address < kSharedBase || address + uint64_t(bytes) > kSharedBase + size)
    fail(w, lane, o,
         format("out of bounds: %d bytes at %lld of %u bytes of shared memory", bytes,
                (long long)address - kSharedBase, size));
  return w.block->shared + (address - kSharedBase);
}

// ---- store buffers

namespace {

void write_back(uint64_t word, const Pending& p) {
  for (int i = 0; i < 8; ++i)
    if (p.mask >> i & 1) reinterpret_cast<uint8_t*>(word)[i] = p.bytes[i];
}
void overlay(const StoreBuffer& buffer, uint64_t address, uint8_t* to, int bytes) {
  if (buffer.empty()) return;
  for (uint64_t word = address & ~7ull; word < address + uint64_t(bytes); word += 8) {
    const auto found = buffer.find(word);
    if (found == buffer.end()) continue;
    for (uint64_t i = 0; i < 8; ++i)
      if (found->second.mask >> i & 1 && word + i >= address &&
          word + i < address + uint64_t(bytes))
        to[word + i - address] = found->second.bytes[i];
  }
}
void put(StoreBuffer& buffer, uint64_t address, const uint8_t* from, int bytes) {
  for (int i = 0; i < bytes; ++i) {
    Pending& p = buffer[(address + uint64_t(i)) & ~7ull];
    p.bytes[(address + uint64_t(i)) & 7] = from[i];
    p.mask |= uint8_t(1 << ((address + uint64_t(i)) & 7));
  }
}
void drop(StoreBuffer& buffer, uint64_t address, int bytes) {  // what a later store covers
  if (buffer.empty()) return;
  for (int i = 0; i < bytes; ++i) {
    const auto found = buffer.find((address + uint64_t(i)) & ~7ull);
    if (found == buffer.end()) continue;
    found->second.mask &= uint8_t(~(1 << ((address + uint64_t(i)) & 7)));
    if (!found->second.mask) buffer.erase(found);
  }
}

}  // namespace

void flush(StoreBuffer& buffer) {
  for (const auto& [word, p] : buffer) write_back(word, p);
  buffer.clear();
}
void merge(StoreBuffer& from, StoreBuffer& to) {
  for (const auto& [word, p] : from) {
    Pending& q = to[word];
    for (int i = 0; i < 8; ++i)
      if (p.mask >> i & 1) q.bytes[i] = p.bytes[i];
    q.mask |= p.mask;
  }
  from.clear();
}

// What this thread has stored, or seen stored by its block at a barrier, becomes visible.
void fence(Warp& w, int lane) {
  flush(w.block->stores);
  flush(w.stores[lane]);
  w.buffered &= ~(1u << lane);
}

// At a barrier the stores of a thread become those of its block.
void buffers_to_block(Warp& w, uint32_t lanes) {
  for (uint32_t left = w.buffered & lanes; left; left &= left - 1)
    merge(w.stores[std::countr_zero(left)], w.block->stores);
  w.buffered &= ~lanes;
}

// Stores arrive after some time even if nothing orders them.
void some_stores_arrive(Launch& l, double probability) {
  if (!l.any_buffered) return;
  bool left = false;
  for (const auto& cluster : l.clusters)
    for (const auto& block : cluster->blocks) {
      if (!block->stores.empty() && l.random.chance(probability)) flush(block->stores);
      left |= !block->stores.empty();
      for (const auto& w : block->warps) {
        for (uint32_t lanes = w->buffered; lanes; lanes &= lanes - 1) {
          const int lane = std::countr_zero(lanes);
          if (!l.random.chance(probability)) continue;
          flush(w->stores[lane]);
          w->buffered &= ~(1u << lane);
        }
        left |= w->buffered != 0;
      }
    }
  l.any_buffered = left;
}

// ---- loads and stores

namespace {

// Where an address of a lane leads: global memory, or a place in the shared memory of a block.
struct Place {
  uint8_t* memory;
  int slot = -1;
  uint64_t offset = 0;
};

Place peer_place(Warp& w, int lane, const Operation& o, uint64_t address, int bytes) {
  const int slot = int((address - uint64_t(window_)) / kSlot);
  const uint64_t offset = (address - uint64_t(window_)) % kSlot;
  for (const auto& block : w.block->cluster->blocks) {
    if (block->slot != slot) continue;
    if (block.get() != w.block && block->live == 0)
      fail(w, lane, o, "late access: to shared memory of a block that has exited");
    if (block.get() != w.block && w.block->cluster->phase == 0)
      fail(w, lane, o,
           "early access: to shared memory of a block that may not have started, before the first "
           "cluster barrier");
    if (offset < kSharedBase ||
        offset + uint64_t(bytes) > kSharedBase + w.launch->grid.shared_bytes)
      fail(w, lane, o,
           format("out of bounds: %d bytes at %lld of the shared memory of a peer", bytes,
                  (long long)offset - kSharedBase));
    return {block->shared + (offset - kSharedBase), slot, offset};
  }
  fail(w, lane, o, "out of bounds: shared memory outside the cluster");
}

Place find(Warp& w, int lane, const Operation& o, uint64_t address, int bytes) {
  if (o.space == Space::param) {
    const int64_t at = int64_t(address);
    if (at < 0 || at + bytes > w.launch->kernel->param_bytes)
      fail(w, lane, o,
           format("out of bounds: %d bytes at %lld of the parameters", bytes, (long long)at));
    return {const_cast<uint8_t*>(w.launch->params) + at};
  }
  if (o.space == Space::shared) {
    uint8_t* const memory = shared_at(w, lane, o, address, bytes);
    return {memory, w.block->slot, uint32_t(address)};
  }
  if (o.space == Space::generic && in_window(address))
    return peer_place(w, lane, o, address, bytes);
  check_global(w, lane, o, address, bytes);
  return {reinterpret_cast<uint8_t*>(address)};
}

uint64_t address_of(Warp& w, const Operation& o, int lane) {
  const int32_t place = o.at[0];
  return o.narrow ? uint32_t(w.from<uint32_t>(place)[lane] + uint32_t(o.number))
                  : w.from<uint64_t>(place)[lane] + uint64_t(o.number);
}

// What this thread sees at an address of global memory.
void view(Warp& w, int lane, uint64_t address, uint8_t* to, int bytes) {
  std::memcpy(to, reinterpret_cast<const void*>(address), size_t(bytes));
  if (!w.launch->any_buffered) return;
  overlay(w.block->stores, address, to, bytes);
  if (w.buffered >> lane & 1) overlay(w.stores[lane], address, to, bytes);
}

// An element into a register that may be wider.
void extend(uint8_t* to, const uint8_t* from, const Operation& o, bool sign) {
  if (o.width == o.bytes) {
    std::memcpy(to, from, o.bytes);
    return;
  }
  std::memset(to, sign && from[o.bytes - 1] & 0x80 ? 0xFF : 0, o.width);
  std::memcpy(to, from, o.bytes);
}

void acquire(Warp& w, int lane, uint64_t address) {
  const auto found = w.launch->releases.find(address);
  if (found == w.launch->releases.end()) return;
  ClockJoin join;
  join.join(w.clocks[lane]);
  join.join(found->second);
  w.clocks[lane] = join.take();
}
void release(Warp& w, int lane, uint64_t address) {
  ClockJoin join;
  add_to(join, w, 1u << lane);
  w.launch->releases[address] = join.take();
}

// Places: the address, then one for each element. A relaxed vector may be torn between its
// elements: decode.py makes each an instruction of its own.
template <bool Signed>
Step load(Warp& w, const Operation& o, uint32_t mask) {
  const bool poll = is_strong(o.order) && o.order != Order::relaxed_part;
  if (o.space != Space::param && gives_way(w, poll)) return Step::stay;
  const int all = o.bytes * o.count;
  uint8_t words[16];
  for (; mask; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    const uint64_t address = address_of(w, o, lane);
    check_alignment(w, lane, o, address, all);
    const Place place = find(w, lane, o, address, all);
    if (o.space == Space::param) {
      std::memcpy(words, place.memory, size_t(all));
    } else if (place.slot >= 0) {
      watch_shared(w, lane, o, place.slot, place.offset, all, Access::read, is_strong(o.order));
      std::memcpy(words, place.memory, size_t(all));
    } else {
      if (options.fetches) {
        Sector& half = halves_[address / 16];
        (half.fetched ? half.loaded_after : half.loaded_before) = true;
      }
      if (o.order == Order::acquire) acquire(w, lane, address);
      watch_global(w, lane, o, address, all, Access::read, is_strong(o.order));
      view(w, lane, address, words, all);
    }
    for (int i = 0; i < o.count; ++i)
      if (o.at[i + 1] != kNone)
        extend(w.to<uint8_t>(o.at[i + 1]) + lane * o.width, words + i * o.bytes, o, Signed);
  }
  return Step::next;
}

void store_global(Warp& w, int lane, const Operation& o, uint64_t address, const uint8_t* words,
                  int bytes) {
  Launch& l = *w.launch;
  uint8_t before[16];
  view(w, lane, address, before, bytes);
  if (std::memcmp(before, words, size_t(bytes)) != 0) l.changed();
  if (o.order == Order::release) {
    fence(w, lane);
    release(w, lane, address);
  } else if (!l.releases.empty()) {
    l.releases.erase(address);
  }
  drop(w.block->stores, address, bytes);  // of stores to one place the later one stays
  if (o.order != Order::release && l.random.chance(options.delays)) {
    put(w.stores[lane], address, words, bytes);
    w.buffered |= 1u << lane, l.any_buffered = true;
    return;
  }
  drop(w.stores[lane], address, bytes);
  std::memcpy(reinterpret_cast<void*>(address), words, size_t(bytes));
}

Step store(Warp& w, const Operation& o, uint32_t mask) {
  if (gives_way(w, false)) return Step::stay;
  const int all = o.bytes * o.count;
  uint8_t words[16];
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const uint64_t address = address_of(w, o, lane);
    check_alignment(w, lane, o, address, all);
    const Place place = find(w, lane, o, address, all);
    for (int i = 0; i < o.count; ++i)
      std::memcpy(words + i * o.bytes, w.from<uint8_t>(o.at[i + 1]) + lane * o.width, o.bytes);
    if (place.slot >= 0) {
      watch_shared(w, lane, o, place.slot, place.offset, all, Access::write, is_strong(o.order));
      if (std::memcmp(place.memory, words, size_t(all)) != 0) w.launch->changed();
      std::memcpy(place.memory, words, size_t(all));
    } else {
      watch_global(w, lane, o, address, all, Access::write, is_strong(o.order));
      store_global(w, lane, o, address, words, all);
    }
  }
  if (o.order == Order::release && mask) ++w.epoch;
  return Step::next;
}

Step prefetch(Warp& w, const Operation& o, uint32_t mask) {  // 9.7.9.16
  each(mask, [&](int lane) {
    const uint64_t address = address_of(w, o, lane);
    check_global(w, lane, o, address, 1);
    if (options.fetches) halves_[address / 16].fetched = halves_[address / 16 + 1].fetched = true;
  });
  return Step::next;
}

Step generic_of_shared(Warp& w, const Operation& o, uint32_t mask) {  // 9.7.9.19
  const uint64_t* const from = w.from<uint64_t>(o.at[1]);
  uint64_t* const to = w.to<uint64_t>(o.at[0]);
  each(mask, [&](int i) {
    if (from[i] >> 32) fail(w, i, o, "cvta.shared of what is no shared address");
    to[i] = uint64_t(window_of(w.block->slot)) + from[i];
  });
  return Step::next;
}

Step map_to_rank(Warp& w, const Operation& o, uint32_t mask) {  // 9.7.9.23
  const uint64_t* const from = w.from<uint64_t>(o.at[1]);
  const uint32_t* const rank = w.from<uint32_t>(o.at[2]);
  uint64_t* const to = w.to<uint64_t>(o.at[0]);
  const uint64_t own = uint64_t(window_of(w.block->slot));
  each(mask, [&](int i) {
    if (from[i] < own || from[i] >= own + kSlot) fail(w, i, o, "misuse: mapa of a foreign address");
    if (rank[i] >= w.launch->grid.cluster)
      fail(w, i, o, format("misuse: mapa to rank %u of %u", rank[i], w.launch->grid.cluster));
    to[i] = from[i] - own + uint64_t(window_of(w.block->cluster->blocks[rank[i]]->slot));
  });
  return Step::next;
}

Step fence_all(Warp& w, const Operation&, uint32_t mask) {
  for (; mask; mask &= mask - 1) fence(w, std::countr_zero(mask));
  return Step::next;
}

}  // namespace

std::vector<Entry> memory_operations() {
  return {{"ld", load<false>},
          {"ld.signed", load<true>},
          {"st", store},
          {"prefetch", prefetch},
          {"cvta.shared.u64", generic_of_shared},
          {"mapa.u64", map_to_rank},
          {"membar.gl", fence_all}};
}

}  // namespace ptx
