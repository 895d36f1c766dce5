// ready_queue.h - threads that can run, and which of them is next under each schedule.
#pragma once

#include <cstdint>
#include <vector>

#include "../emulator.h"

namespace emu {

struct Thread;
struct Block;

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t operator()() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t n) { return (*this)() % n; }

 private:
  uint64_t state_;
};

class ReadyQueue {
 public:
  ReadyQueue(Schedule schedule, Random& random) : schedule_(schedule), random_(random) {}

  void add(Block& block);
  void remove(Block& block);
  void push(Thread& thread);
  // nullptr: nobody can run. `starving`: the favourite block waits in vain, take another one.
  Thread* pop(bool starving);

 private:
  Thread* take(std::vector<Thread*>& threads);
  Thread* from_favourite(bool starving);

  const Schedule schedule_;
  Random& random_;
  std::vector<Thread*> threads_;  // round robin: a ring from head_; random: in any order
  size_t head_ = 0, count_ = 0;
  std::vector<Block*> favourites_;  // block priority: most favoured first
  uint32_t pops_ = 0;
};

}  // namespace emu
