// phases.cpp keeps the times of phases, each thread's in a cache line of its own.
#include "phases.h"

#include <atomic>
#include <chrono>

namespace brnn::cpu {

namespace {

constexpr int kPhases = static_cast<int>(Phase::count);
constexpr int kThreads = 64;  // threads beyond so many share one

struct alignas(64) Counters {
  std::atomic<int64_t> spent[kPhases];
};
Counters counters[kThreads];

Counters& own_counters() {
  static std::atomic<int> threads;
  thread_local const int index = threads++ % kThreads;
  return counters[index];
}

}  // namespace

bool times_phases = false;

int64_t nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

void add_phase(Phase phase, int64_t nanoseconds) {
  own_counters().spent[static_cast<int>(phase)].fetch_add(nanoseconds, std::memory_order_relaxed);
}

int64_t take_phase(Phase phase) {
  int64_t sum = 0;
  for (Counters& counter : counters) sum += counter.spent[static_cast<int>(phase)].exchange(0);
  return sum;
}

}  // namespace brnn::cpu
