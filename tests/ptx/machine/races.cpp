#include "races.h"

#include "machine.h"

namespace ptx {

ShadowLine& GlobalShadow::line(uint64_t address) {
  const uint64_t number = address / 1024;
  if (number != last_number_) {
    auto& page = pages_[number];
    if (!page) page = std::make_unique<Page>();
    last_number_ = number, last_ = page.get();
  }
  return (*last_)[address % 1024 / 16];
}

namespace {

struct Watch {
  Warp& w;
  int lane;
  const Operation& o;
  uint64_t address;  // for the report
  int slot;          // of shared memory, -1: global
  Access how;
  bool strong;

  bool before(int block, int thread, uint32_t epoch) const {
    if (block == w.block->id && thread == w.thread(lane)) return true;
    const Clock* clock = w.clocks[lane].get();
    return clock && clock->seen(block, thread) >= epoch;
  }
  std::string place(int offset) const {
    if (slot < 0) return memory_name(address + uint64_t(offset));
    return format("shared memory of block %d + %lld bytes", block_of_slot(),
                  (long long)address - int(kSharedBase) + offset);
  }
  int block_of_slot() const {
    for (const auto& block : w.block->cluster->blocks)
      if (block->slot == slot) return block->id;
    return -1;
  }
  [[noreturn]] void race(int offset, const char* other, int block, int thread, int line) const {
    fail(w, lane, o,
         format("data race on %s: a %s, not ordered after the %s by block %d thread %d at PTX line "
                "%d, %s",
                place(offset).c_str(), how == Access::read ? "read" : "write", other, block, thread,
                line, w.launch->kernel->where(line).c_str()));
  }

  void look(ShadowCell& cell, int offset) const {
    const auto& last = cell.write;
    if (last.copying)
      fail(w, lane, o,
           format("data race on %s: a %s while the asynchronous copy by block %d thread %d at PTX "
                  "line %d, %s, is under way",
                  place(offset).c_str(), how == Access::read ? "read" : "write", last.block,
                  last.thread, last.line, w.launch->kernel->where(last.line).c_str()));
    if (last.block >= 0 && !(strong && last.strong) && !before(last.block, last.thread, last.epoch))
      race(offset, "write", last.block, last.thread, last.line);
    if (how == Access::read) return note_read(cell);
    for (const auto& read : cell.reads)
      if (!(strong && read.strong))
        for (uint32_t lanes = read.lanes; lanes; lanes &= lanes - 1) {
          const int thread = read.warp * kWarp + std::countr_zero(lanes);
          if (!before(read.block, thread, read.epoch))
            race(offset, "read", read.block, thread, read.line);
        }
    cell.reads.clear();
    cell.write = {w.block->id, w.epoch, w.thread(lane), o.line, strong, how == Access::copy};
  }

  void note_read(ShadowCell& cell) const {
    const uint32_t bit = 1u << lane;
    for (size_t i = 0; i < cell.reads.size(); ++i) {
      auto& read = cell.reads[i];
      if (read.block != w.block->id || read.warp != w.index || read.strong != strong) continue;
      if (read.epoch == w.epoch) {
        read.lanes |= bit;
        return;
      }
      read.lanes &= ~bit;  // the later read says as much
      if (!read.lanes) read = cell.reads.back(), cell.reads.pop_back(), --i;
    }
    cell.reads.push_back({w.block->id, w.epoch, bit, w.index, o.line, strong});
  }
};

void look(const Watch& watch, ShadowLine& line, uint64_t in_line, int bytes) {
  if (bytes == 16 && !line.parts) return watch.look(line.whole, 0);
  if (!line.parts) {
    line.parts = std::make_unique<std::array<ShadowCell, 8>>();
    line.parts->fill(line.whole);
  }
  for (uint64_t i = in_line / 2; i < (in_line + uint64_t(bytes) + 1) / 2; ++i)
    watch.look((*line.parts)[i], int(i * 2 - in_line));
}

}  // namespace

void watch_global(Warp& w, int lane, const Operation& o, uint64_t address, int bytes, Access how,
                  bool strong) {
  if (!options.races) return;
  look({w, lane, o, address, -1, how, strong}, w.launch->shadow.line(address), address % 16, bytes);
}

void watch_shared(Warp& w, int lane, const Operation& o, int slot, uint64_t offset, int bytes,
                  Access how, bool strong) {
  if (!options.races) return;
  for (const auto& block : w.block->cluster->blocks) {
    if (block->slot != slot) continue;
    if (block.get() != w.block)
      block->peers.push_back({w.block->id, w.thread(lane), o.line, w.epoch});
    look({w, lane, o, offset, slot, how, strong}, block->shadow[(offset - kSharedBase) / 16],
         offset % 16, bytes);
  }
}

void watch_arrival(Warp& w, int lane, const Operation& o, uint64_t offset, int bytes) {
  if (!options.races) return;
  ShadowLine& line = w.block->shadow[(offset - kSharedBase) / 16];
  const Watch watch{w, lane, o, offset, w.block->slot, Access::write, false};
  const auto end = [&](ShadowCell& cell) {
    if (cell.write.copying)
      cell.write.copying = false, cell.write.epoch = w.epoch;
    else
      watch.look(cell, 0);
  };
  if (!line.parts) return end(line.whole);
  for (uint64_t i = offset % 16 / 2; i < (offset % 16 + uint64_t(bytes)) / 2; ++i)
    end((*line.parts)[i]);
}

}  // namespace ptx
