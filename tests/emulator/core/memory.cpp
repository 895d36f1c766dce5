// memory.cpp - memory between blocks (flags, polled data), shared memory, asynchronous copies.
#include <string>

#include "machine.h"
#include "race.h"
#include "report.h"

namespace emu {
namespace {

// Memory that other threads change meanwhile: read once, here and now.
uint32_t read_now(const uint32_t* from) { return *static_cast<const volatile uint32_t*>(from); }

// True if the thread has found this value here before and saw nothing else since, or polls many
// places: it waits in vain.
bool found_again(const void* address, uint64_t value) {
  Polls& polls = current->polls;
  auto& seen = polls.seen[reinterpret_cast<uintptr_t>(address) / 4 * 0x9E3779B1u >> 16 & 7];
  const bool again = seen.address == address && seen.value == value;
  seen = {address, value};
  return again || ++polls.loads > 64;
}

void forget_polls() { current->polls = {}; }

void perform(const Copy& copy) {
  if (copy.inside) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  } else {
    std::memset(copy.to, 0, copy.bytes);
  }
}

}  // namespace

void* shared_memory() { return current->block->shared; }
uint32_t cluster_rank() { return current->block->rank; }

void* cluster_map(const void* mine, uint32_t rank, Site site) {
  const Block& block = *current->block;
  const char* const at = static_cast<const char*>(mine);
  if (rank >= block.cluster->blocks.size())
    machine->fail("misuse: cluster_map to rank " + std::to_string(rank) + " of " +
                      std::to_string(block.cluster->blocks.size()),
                  site);
  if (at < block.shared || at > block.shared + machine->shape.shared_bytes)
    machine->fail("misuse: cluster_map of memory that is not the block's shared memory", site);
  const Block& peer = *block.cluster->blocks[rank];
  if (peer.live == 0)
    machine->fail("late access: cluster_map to " + name_of(peer) +
                      ", which has exited (a cluster barrier before the exit is missing)",
                  site);
  return peer.shared + (at - block.shared);
}

uint32_t load_acquire(const uint32_t* from, Site site) {
  machine->may_yield("load_acquire", site);
  uint32_t value = read_now(from);
  if (found_again(from, value)) {
    machine->wait_in_vain("load_acquire", site);
    value = read_now(from);
    found_again(from, value);
  }
  race::atomic_read(from, 4, site);
  race::acquire(from);
  return value;
}

void store_release(uint32_t* to, uint32_t value, Site site) {
  machine->may_yield("store_release", site);
  race::atomic_write(to, 4, site);
  race::release(to);
  *static_cast<volatile uint32_t*>(to) = value;
  machine->progress();
  forget_polls();
}

uint4 load_relaxed(const uint4* from, Site site) {
  if (reinterpret_cast<uintptr_t>(from) % 16)
    machine->fail("misuse: load_relaxed of four words that are not 16-byte aligned", site);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(from);
  race::atomic_read(from, 16, site);
  uint32_t value[4];
  for (int i = 0; i < 4; ++i) {
    machine->may_yield("load_relaxed", site);
    value[i] = read_now(words + i);
  }
  const uint64_t mixed = (value[0] | uint64_t(value[1]) << 32) * 0x9E3779B97F4A7C15u ^
                         (value[2] | uint64_t(value[3]) << 32);
  if (found_again(from, mixed)) machine->wait_in_vain("load_relaxed", site);
  return {value[0], value[1], value[2], value[3]};
}

void store_relaxed(uint32_t* to, uint32_t value, Site site) {
  machine->may_yield("store_relaxed", site);
  race::atomic_write(to, 4, site);
  race::forget_release(to);
  *static_cast<volatile uint32_t*>(to) = value;
  machine->progress();
  forget_polls();
}

void spin(Site site) { machine->wait_in_vain("spin", site); }

void copy_async(void* to, const void* from, int bytes, bool inside, Site site) {
  const Block& block = *current->block;
  char* const at = static_cast<char*>(to);
  if (reinterpret_cast<uintptr_t>(to) % bytes ||
      (inside && reinterpret_cast<uintptr_t>(from) % bytes))
    machine->fail(
        "misuse: copy_async between places that are not " + std::to_string(bytes) + "-byte aligned",
        site);
  if (at < block.shared || at + bytes > block.shared + machine->shape.shared_bytes)
    machine->fail("misuse: copy_async to outside the block's shared memory", site);
  if (inside) race::read(from, bytes, site);
  race::begin_copy(to, bytes, site);
  std::memset(to, 0xFF, bytes);  // what a reader finds that does not wait
  current->copies.push_back({to, from, bytes, inside, current->copy_groups, site});
}

void copy_async_commit() { ++current->copy_groups; }

void copy_async_wait(int pending, Site site) {
  Thread& thread = *current;
  std::erase_if(thread.copies, [&](const Copy& copy) {
    if (int64_t(copy.group) >= int64_t(thread.copy_groups) - pending) return false;
    perform(copy);
    race::end_copy(copy.to, copy.bytes);
    return true;
  });
  machine->may_yield("copy_async_wait", site);
}

void may_copy(Thread& thread) {
  Random& random = machine->random();
  if (random.below(4)) return;
  perform(thread.copies[random.below(thread.copies.size())]);
}

}  // namespace emu
