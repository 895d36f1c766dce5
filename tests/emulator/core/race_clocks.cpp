// race_clocks.cpp - joins, releases and acquires.
#include "race_clocks.h"

#include <algorithm>

namespace emu::race {
namespace {

void merge(Times& sum, const Times& other) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] = std::max(sum[i], other[i]);
}

}  // namespace

void Clocks::join(const std::vector<uint32_t>& threads) {
  auto sum = std::make_shared<Times>(*threads_[threads[0]].base);
  const Times* last = threads_[threads[0]].base.get();
  for (uint32_t thread : threads) {
    const Present& present = threads_[thread];
    if (present.base.get() != last) merge(*sum, *(last = present.base.get()));
  }
  for (uint32_t thread : threads) (*sum)[thread] = threads_[thread].own++;
  for (uint32_t thread : threads) threads_[thread].base = sum;
}

void Clocks::release(uint32_t thread, const void* flag) {
  Present& present = threads_[thread];
  flags_[flag] = {present.base, thread, present.own++};
}

void Clocks::acquire(uint32_t thread, const void* flag) {
  const auto found = flags_.find(flag);
  if (found == flags_.end()) return;
  const Release& release = found->second;
  if (before(release.thread, release.moment, thread)) return;
  auto sum = std::make_shared<Times>(*threads_[thread].base);
  merge(*sum, *release.base);
  (*sum)[release.thread] = std::max((*sum)[release.thread], release.moment);
  threads_[thread].base = sum;
}

void Clocks::arrive(uint32_t thread, size_t cluster, uint64_t number) {
  Phase& phase = clusters_[cluster].phases[number % 2];
  Present& present = threads_[thread];
  if (phase.number != number) {
    phase = {std::make_shared<Times>(*present.base), present.base.get(), number};
  } else if (phase.last != present.base.get()) {
    merge(*phase.sum, *(phase.last = present.base.get()));
  }
  (*phase.sum)[thread] = present.own++;
  present.arrived = present.base.get();
}

void Clocks::pass(uint32_t thread, size_t cluster, uint64_t number) {
  const Phase& phase = clusters_[cluster].phases[number % 2];
  Present& present = threads_[thread];
  if (present.base.get() == present.arrived) {  // it has learned nothing since it arrived
    present.base = phase.sum;
    return;
  }
  auto sum = std::make_shared<Times>(*present.base);
  merge(*sum, *phase.sum);
  present.base = sum;
}

}  // namespace emu::race
