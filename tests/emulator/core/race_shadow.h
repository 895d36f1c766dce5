// race_shadow.h - what the race detector knows of every two bytes of memory: the last write and
// the reads since then.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../emulator.h"

namespace emu::race {

// Where code stands: an instruction, or the place that called a primitive.
class Where {
 public:
  Where() = default;
  explicit Where(const void* instruction) : bits_(reinterpret_cast<uintptr_t>(instruction)) {}
  explicit Where(Site site) : bits_(std::bit_cast<uintptr_t>(site) | tag) {}
  std::string text() const;

 private:
  static constexpr uintptr_t tag = uintptr_t(1) << 63;  // addresses of programs do not have it
  uintptr_t bits_;
};

// Reads by some of 32 neighbouring threads, all at the same moment of their own.
struct Reads {
  Where where;  // of the last one
  uint32_t group, moment, mask;
};

struct Cell {
  // Moments of a write that no thread can have seen.
  static constexpr uint32_t copying = ~0u;    // an asynchronous copy is under way
  static constexpr uint32_t dead = ~0u - 1;   // shared memory of a block that has exited
  static constexpr uint32_t fresh = ~0u - 2;  // of a block of which the others know nothing yet
  static constexpr uint32_t special = fresh;  // from here on

  Where write_where;
  uint32_t writer, write_moment;  // moment 0: never written
  Reads reads;                    // mask 0: never read since
  uint32_t more : 31;             // reads of other groups: place in Shadow::more(), 0: none
  uint32_t atomic : 1;            // the write
};
static_assert(std::is_trivially_copyable_v<Cell> && sizeof(Cell) <= 48);

class Shadow {
 public:
  static constexpr uintptr_t cell_bytes = 2;

  // Calls f(cell) for every cell of the bytes.
  template <class F>
  void each(const void* memory, size_t bytes, const F& f) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory) / cell_bytes;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes - 1) / cell_bytes + 1;
    for (uintptr_t i = begin; i < end;) {
      Cell* page = page_of(i / page_cells);
      const uintptr_t stop = std::min(end, (i / page_cells + 1) * page_cells);
      for (; i < stop; ++i) f(page[i % page_cells]);
    }
  }
  // As if the bytes had never been touched.
  void clear(const void* memory, size_t bytes);

  void add_read(Cell& cell, uint32_t thread, uint32_t moment, Where where);
  void forget_reads(Cell& cell);
  const std::vector<Reads>& more(const Cell& cell) const { return more_[cell.more]; }

 private:
  static constexpr uintptr_t page_cells = 512;
  static constexpr size_t recent_pages = 256;

  Cell* page_of(uintptr_t number) {
    Recent& recent = recent_[number % recent_pages];
    if (recent.number != number) recent = {number, find(number)};
    return recent.cells;
  }
  Cell* find(uintptr_t number);

  struct Recent {
    uintptr_t number = ~uintptr_t(0);
    Cell* cells = nullptr;
  };
  Recent recent_[recent_pages];
  std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages_;
  std::vector<std::vector<Reads>> more_{1};
  std::vector<uint32_t> spare_;  // of more_
};

}  // namespace emu::race
