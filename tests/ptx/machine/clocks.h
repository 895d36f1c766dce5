// clocks.h - vector clocks: for each thread, the last of its epochs that happened before. Parts are
// shared between all threads that have passed the same barrier.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace ptx {

// The threads of one block.
using ClockPart = std::vector<uint32_t>;

struct Clock {
  std::vector<std::pair<int, std::shared_ptr<const ClockPart>>> blocks;  // by id, ascending

  uint32_t seen(int block, int thread) const;
};

// Collects what several threads have seen.
class ClockJoin {
 public:
  void join(const std::shared_ptr<const Clock>& clock);
  void see(int block, int threads, int thread, uint32_t epoch);
  // The collected clock; the next one begins empty.
  std::shared_ptr<const Clock> take();

 private:
  struct Entry {
    int block;
    std::shared_ptr<const ClockPart> shared;  // or, once it differs from all:
    std::shared_ptr<ClockPart> own;
  };
  Entry& entry(int block);

  std::vector<Entry> entries_;
  std::shared_ptr<const Clock> last_;  // joined already
};

}  // namespace ptx
