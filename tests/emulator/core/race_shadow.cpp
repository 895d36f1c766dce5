// race_shadow.cpp - pages of cells, and lists of reads where one entry is not enough.
#include "race_shadow.h"

#include <algorithm>

#include "report.h"

namespace emu::race {

std::string Where::text() const {
  if (bits_ & tag) return source_line(std::bit_cast<Site>(bits_ & ~tag));
  return source_line(reinterpret_cast<const void*>(bits_));
}

Cell* Shadow::find(uintptr_t number) {
  std::unique_ptr<Cell[]>& page = pages_[number];
  if (!page) page.reset(new Cell[page_cells]());
  return page.get();
}

void Shadow::clear(const void* memory, size_t bytes) {
  if (bytes && !pages_.empty())
    each(memory, bytes, [&](Cell& cell) {
      forget_reads(cell);
      cell = {};
    });
}

void Shadow::add_read(Cell& cell, uint32_t thread, uint32_t moment, Where where) {
  const uint32_t group = thread / 32, bit = 1u << thread % 32;
  Reads& first = cell.reads;
  if (first.mask == 0 || (first.group == group && first.moment == moment)) {
    first = {where, group, moment, first.mask | bit};
    return;
  }
  if (first.group == group) first.mask &= ~bit;  // the thread's earlier read tells nothing more
  if (!cell.more) {
    if (first.mask == 0) {
      first = {where, group, moment, bit};
      return;
    }
    if (spare_.empty()) {
      spare_.push_back(uint32_t(more_.size()));
      more_.emplace_back();
    }
    cell.more = spare_.back();
    spare_.pop_back();
  }
  std::vector<Reads>& more = more_[cell.more];
  Reads* same = nullptr;
  for (Reads& reads : more) {
    if (reads.group != group) continue;
    if (reads.moment == moment) {
      same = &reads;
    } else {
      reads.mask &= ~bit;
    }
  }
  if (same) {
    same->mask |= bit;
    same->where = where;
  } else {
    std::erase_if(more, [](const Reads& reads) { return reads.mask == 0; });
    more.push_back({where, group, moment, bit});
  }
}

void Shadow::forget_reads(Cell& cell) {
  cell.reads.mask = 0;
  if (!cell.more) return;
  more_[cell.more].clear();
  spare_.push_back(cell.more);
  cell.more = 0;
}

}  // namespace emu::race
