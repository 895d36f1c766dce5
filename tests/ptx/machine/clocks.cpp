#include "clocks.h"

#include <algorithm>

namespace ptx {

uint32_t Clock::seen(int block, int thread) const {
  const auto at =
      std::ranges::lower_bound(blocks, block, {}, [](const auto& b) { return b.first; });
  return at != blocks.end() && at->first == block ? (*at->second)[size_t(thread)] : 0;
}

ClockJoin::Entry& ClockJoin::entry(int block) {
  const auto at = std::ranges::lower_bound(entries_, block, {}, &Entry::block);
  if (at != entries_.end() && at->block == block) return *at;
  return *entries_.insert(at, {block, nullptr, nullptr});
}

void ClockJoin::join(const std::shared_ptr<const Clock>& clock) {
  if (!clock || clock == last_) return;
  last_ = clock;
  for (const auto& [block, part] : clock->blocks) {
    Entry& e = entry(block);
    if (!e.shared && !e.own) {
      e.shared = part;
    } else if (e.shared != part) {
      if (!e.own) e.own = std::make_shared<ClockPart>(*e.shared), e.shared = nullptr;
      for (size_t i = 0; i < part->size(); ++i) (*e.own)[i] = std::max((*e.own)[i], (*part)[i]);
    }
  }
}

void ClockJoin::see(int block, int threads, int thread, uint32_t epoch) {
  Entry& e = entry(block);
  if (!e.own) {
    e.own = e.shared ? std::make_shared<ClockPart>(*e.shared)
                     : std::make_shared<ClockPart>(size_t(threads), 0u);
    e.shared = nullptr;
  }
  uint32_t& seen = (*e.own)[size_t(thread)];
  seen = std::max(seen, epoch);
}

std::shared_ptr<const Clock> ClockJoin::take() {
  auto clock = std::make_shared<Clock>();
  clock->blocks.reserve(entries_.size());
  for (Entry& e : entries_) clock->blocks.emplace_back(e.block, e.own ? e.own : e.shared);
  entries_.clear();
  last_ = nullptr;
  return clock;
}

}  // namespace ptx
