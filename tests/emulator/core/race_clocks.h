// race_clocks.h - vector clocks: which moments of other threads lie before a thread's present.
//
// Threads that leave a barrier share one base, so that a barrier of n threads costs one vector and
// a comparison of two moments costs one look into it.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace emu::race {

using Times = std::vector<uint32_t>;  // [threads of the grid] the last moment known of each
using Base = std::shared_ptr<const Times>;

class Clocks {
 public:
  Clocks(size_t threads, size_t clusters)
      : threads_(threads, {std::make_shared<const Times>(threads), 1}), clusters_(clusters) {}

  size_t threads() const { return threads_.size(); }
  uint32_t now(uint32_t thread) const { return threads_[thread].own; }
  // What `thread` knows of each of the others.
  const uint32_t* known(uint32_t thread) const { return threads_[thread].base->data(); }
  bool before(uint32_t other, uint32_t moment, uint32_t thread) const {
    return other == thread || known(thread)[other] >= moment;
  }

  void join(const std::vector<uint32_t>& threads);
  void release(uint32_t thread, const void* flag);
  void forget_release(const void* flag) { flags_.erase(flag); }
  void acquire(uint32_t thread, const void* flag);
  // A cluster's barrier, whose phases overlap: some leave one while others arrive at the next.
  void arrive(uint32_t thread, size_t cluster, uint64_t phase);
  void pass(uint32_t thread, size_t cluster, uint64_t phase);

 private:
  struct Present {
    Base base;
    uint32_t own;                    // moments begin with 1
    const Times* arrived = nullptr;  // base when it arrived at the cluster's barrier
  };
  struct Release {  // all that `thread` knew, and itself up to `moment`
    Base base;
    uint32_t thread, moment;
  };
  struct Phase {
    std::shared_ptr<Times> sum;
    const Times* last = nullptr;  // merged, the next one is often the same
    uint64_t number = ~uint64_t(0);
  };
  struct Cluster {
    Phase phases[2];
  };

  std::vector<Present> threads_;
  std::vector<Cluster> clusters_;
  std::unordered_map<const void*, Release> flags_;
};

}  // namespace emu::race
