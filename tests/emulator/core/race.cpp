// race.cpp - checks every access against the last write and the reads before it.
#include "race.h"

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "machine.h"
#include "report.h"

#ifdef EMULATOR_RACE
#include "race_access.h"
#include "race_clocks.h"
#include "race_shadow.h"
#endif

namespace emu {
namespace {

struct Watched {
  size_t bytes;
  std::string name;
};
std::map<const char*, Watched> watched_memory;

}  // namespace

void watch(const void* memory, size_t bytes, const std::string& name) {
  watched_memory[static_cast<const char*>(memory)] = {bytes, name};
}
void unwatch(const void* memory) { watched_memory.erase(static_cast<const char*>(memory)); }

#ifdef EMULATOR_RACE
namespace race {
namespace {

constexpr uint64_t most_threads = 32768;  // a clock has an entry for each

struct Detector {
  Detector(size_t threads, size_t clusters, uint32_t block_threads)
      : clocks(threads, clusters), block_threads(block_threads) {}

  bool same_block(uint32_t a, uint32_t b) const { return a / block_threads == b / block_threads; }

  Clocks clocks;
  Shadow shadow;
  const uint32_t block_threads;
  std::vector<const Block*> blocks;  // whose shared memory exists
  std::vector<uint32_t> joining;
  uint64_t accesses = 0;
  const void* last_access = nullptr;
};
std::optional<Detector> detector;

std::string place(const char* address) {
  for (const Block* block : detector->blocks)
    if (address >= block->shared && address < block->shared + machine->shape.shared_bytes)
      return "shared memory of " + name_of(*block) + " + " +
             std::to_string(address - block->shared) + " bytes";
  auto above = watched_memory.upper_bound(address);
  if (above != watched_memory.begin()) {
    const auto& [begin, watched] = *--above;
    if (address < begin + watched.bytes)
      return watched.name + " + " + std::to_string(address - begin) + " bytes";
  }
  return "global memory";
}

std::string name_of(uint32_t thread) {
  const uint32_t threads = detector->block_threads;
  const dim3 block = machine->shape.block_index(thread / threads);
  std::string text = "block " + std::to_string(block.x);
  if (machine->shape.grid.y > 1 || machine->shape.grid.z > 1)
    text = "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ", " +
           std::to_string(block.z) + ")";
  return text + " thread " + std::to_string(thread % threads);
}

// Two accesses that nothing orders.
[[noreturn]] void report(const void* memory, const char* what, Where where, const char* before,
                         Where before_where, uint32_t other) {
  const std::string text = "data race on " + place(static_cast<const char*>(memory)) + ": " + what +
                           " at " + where.text() + " by " + name_of(current->id) +
                           ", not ordered after " + before + " at " + before_where.text() + " by " +
                           name_of(other);
  machine->fail(text);
}

[[noreturn]] void report_special(const void* memory, const char* what, Where where,
                                 const Cell& cell) {
  const std::string text = std::string(what) + " of " + place(static_cast<const char*>(memory)) +
                           " at " + where.text() + " by " + name_of(current->id);
  if (cell.write_moment == Cell::dead)
    machine->fail("late access: " + text + ", but that block has exited");
  if (cell.write_moment == Cell::fresh)
    machine->fail("early access: " + text + ", but nothing says that this block has started");
  machine->fail("data race: " + text + ", while an asynchronous copy at " +
                cell.write_where.text() + " by " + name_of(cell.writer) +
                " is under way (copy_async_wait or a barrier is missing)");
}

void check_write(const Cell& cell, const void* memory, const char* what, Where where) {
  const uint32_t self = current->id;
  if (cell.write_moment >= Cell::special) {
    const bool known =
        detector->same_block(self, cell.writer) || detector->clocks.before(cell.writer, 1, self);
    if (cell.write_moment == Cell::fresh && known) return;
    report_special(memory, what, where, cell);
  }
  if (!detector->clocks.before(cell.writer, cell.write_moment, self))
    report(memory, what, where, "the write", cell.write_where, cell.writer);
}

void check_reads(const Reads& reads, const void* memory, Where where) {
  const uint32_t self = current->id;
  for (uint32_t rest = reads.mask; rest; rest &= rest - 1) {
    const uint32_t other = reads.group * 32 + std::countr_zero(rest);
    if (!detector->clocks.before(other, reads.moment, self))
      report(memory, "write", where, "the read", reads.where, other);
  }
}

void write(Cell& cell, const void* memory, Where where, bool atomic) {
  const uint32_t self = current->id, now = detector->clocks.now(self);
  const bool unread = cell.reads.mask == 0 && !cell.more;
  if (cell.writer == self && cell.write_moment == now && unread && cell.atomic == atomic) return;
  if (cell.write_moment && !(atomic && cell.atomic)) check_write(cell, memory, "write", where);
  if (!unread) {
    check_reads(cell.reads, memory, where);
    if (cell.more)
      for (const Reads& reads : detector->shadow.more(cell)) check_reads(reads, memory, where);
    detector->shadow.forget_reads(cell);
  }
  cell.write_where = where;
  cell.writer = self;
  cell.write_moment = now;
  cell.atomic = atomic;
}

void read(Cell& cell, const void* memory, Where where) {
  const uint32_t self = current->id, now = detector->clocks.now(self);
  const Reads& reads = cell.reads;
  if (reads.group == self / 32 && reads.moment == now && reads.mask >> self % 32 & 1) return;
  if (cell.write_moment) check_write(cell, memory, "read", where);
  detector->shadow.add_read(cell, self, now, where);
}

// Stacks are private, and the indices belong to the emulator.
bool is_private(const void* memory) {
  const char* const at = static_cast<const char*>(memory);
  const Stack& stack = current->stack;
  const auto inside = [&](const dim3& index) {
    return at >= reinterpret_cast<const char*>(&index) &&
           at < reinterpret_cast<const char*>(&index + 1);
  };
  return (at >= stack.base && at < stack.base + stack.bytes) || inside(threadIdx) ||
         inside(blockIdx) || inside(blockDim) || inside(gridDim);
}

size_t number_of(const Cluster& cluster) {
  return cluster.blocks[0]->number / machine->shape.cluster;
}

void mark(const Block& block, uint32_t moment) {
  if (!machine->shape.shared_bytes) return;
  const uint32_t first = block.number * detector->block_threads;
  detector->shadow.each(block.shared, machine->shape.shared_bytes, [&](Cell& cell) {
    detector->shadow.forget_reads(cell);
    cell.writer = first;
    cell.write_moment = moment;
    cell.atomic = 0;
  });
}

}  // namespace

void begin(const Shape& shape) {
  const uint64_t threads = shape.blocks() * shape.threads;
  if (threads > most_threads)
    throw Error("race detector: at most " + std::to_string(most_threads) + " threads, got " +
                std::to_string(threads));
  detector.emplace(threads, shape.blocks() / shape.cluster, shape.threads);
}
void end() { detector.reset(); }
uint64_t accesses() { return detector->accesses; }
const void* last_access() { return detector->last_access; }

void shared_memory_appears(const Block& block) {
  detector->blocks.push_back(&block);
  if (machine->shape.cluster > 1) {
    mark(block, Cell::fresh);
  } else {
    detector->shadow.clear(block.shared, machine->shape.shared_bytes);
  }
}
void shared_memory_dies(const Block& block) {
  if (machine->shape.cluster > 1) mark(block, Cell::dead);
}
void shared_memory_goes(const Block& block) { std::erase(detector->blocks, &block); }

void join(Thread* const* threads, size_t count) {
  detector->joining.clear();
  for (size_t i = 0; i < count; ++i) detector->joining.push_back(threads[i]->id);
  if (count) detector->clocks.join(detector->joining);
}
void release(const void* flag) { detector->clocks.release(current->id, flag); }
void forget_release(const void* flag) { detector->clocks.forget_release(flag); }
void acquire(const void* flag) { detector->clocks.acquire(current->id, flag); }
void arrive(const Cluster& cluster) {
  detector->clocks.arrive(current->id, number_of(cluster), current->cluster_phase);
}
void pass(const Cluster& cluster, uint64_t phase) {
  detector->clocks.pass(current->id, number_of(cluster), phase);
}

void access(const void* memory, size_t bytes, bool writes, const void* instruction) {
  if (!current || !detector || !bytes || is_private(memory)) return;
  ++detector->accesses;
  detector->last_access = instruction;
  const Where where(instruction);
  detector->shadow.each(memory, bytes, [&](Cell& cell) {
    if (writes) {
      write(cell, memory, where, false);
    } else {
      read(cell, memory, where);
    }
  });
}

void read(const void* memory, size_t bytes, Site site) {
  detector->shadow.each(memory, bytes, [&](Cell& cell) { read(cell, memory, Where(site)); });
}
void atomic_read(const void* memory, size_t bytes, Site site) {
  detector->shadow.each(memory, bytes, [&](Cell& cell) {
    if (cell.write_moment && !cell.atomic) check_write(cell, memory, "atomic read", Where(site));
  });
}
void atomic_write(const void* memory, size_t bytes, Site site) {
  detector->shadow.each(memory, bytes, [&](Cell& cell) { write(cell, memory, Where(site), true); });
}
void begin_copy(void* to, size_t bytes, Site site) {
  detector->shadow.each(to, bytes, [&](Cell& cell) {
    write(cell, to, Where(site), false);
    cell.write_moment = Cell::copying;
  });
}
void end_copy(void* to, size_t bytes) {
  const uint32_t now = detector->clocks.now(current->id);
  detector->shadow.each(to, bytes, [&](Cell& cell) { cell.write_moment = now; });
}

}  // namespace race
#endif

}  // namespace emu
