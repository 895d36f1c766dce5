// machine.h - a launch while it runs: threads, warps, blocks, clusters, and what makes them take
// turns. Exactly one thread runs at a time; it gives way only inside the calls of emulator.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../emulator.h"
#include "fiber.h"
#include "ready_queue.h"

namespace emu {

struct Block;
struct Cluster;

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool inside;
  uint32_t group;
  Site site;
};

// The last values that a thread found where it polls.
struct Polls {
  struct Seen {
    const void* address;
    uint64_t value;
  };
  Seen seen[8] = {};
  uint32_t loads = 0;  // since the thread last gave way
};

struct Thread {
  Context context;
  Stack stack;
  Block* block = nullptr;
  dim3 index;
  uint32_t id = 0;    // in the grid
  uint32_t rank = 0;  // in the block
  bool exited = false;
  const void* waits_for = nullptr;        // nullptr: can run
  const char* doing = "has not started";  // since the last switch
  Site site;

  void* box = nullptr;  // what it brings to a meeting of the warp, on its own stack
  uint32_t turns = 0;   // since it, or a thread that it met, waited in vain
  bool arrived_at_cluster = false;
  uint64_t cluster_phase = 0;
  uint32_t copy_groups = 0;  // committed
  std::vector<Copy> copies;  // under way
  Polls polls;

  unsigned lane() const { return rank % 32; }
};

struct Barrier {
  uint32_t expected = 0;
  std::vector<Thread*> arrived;
  Site site;  // of the first to arrive
  uint64_t phase = 0;
};

// Lanes of a warp that exchange something: the last one to arrive does it for all.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
  Site site;
  Thread* lanes[32];
};

struct Warp {
  uint32_t live = 0;
  std::vector<Meeting> meetings;
};

struct Block {
  dim3 index;
  uint32_t number = 0, rank = 0;  // in the grid, in the cluster
  uint32_t live = 0;              // threads
  Cluster* cluster = nullptr;
  char* shared = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[16];  // 0: __syncthreads
  std::vector<Thread*> ready;
};

struct Cluster {
  Barrier barrier;
  uint32_t live = 0;  // blocks
  std::vector<std::unique_ptr<Block>> blocks;
};

struct Shape {
  dim3 grid;
  uint32_t threads, shared_bytes, cluster;
  bool cooperative;

  uint64_t blocks() const { return uint64_t(grid.x) * grid.y * grid.z; }
  dim3 block_index(uint64_t number) const {
    return dim3(unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                unsigned(number / grid.x / grid.y));
  }
};

class Machine {
 public:
  Machine(const Shape& shape, const std::function<void()>& body);
  ~Machine();
  void run();  // throws Error

  // The current thread lets others run and goes on as soon as it is picked again, or only after
  // somebody wakes it.
  void yield(const char* doing, Site site);
  void wait(const char* doing, Site site, const void* object);
  void wake(Thread& thread);
  // Ends the launch.
  [[noreturn]] void fail(std::string message);
  [[noreturn]] void fail(std::string message, Site site);  // of the current thread
  [[noreturn]] void stuck(const void* at);                 // from the watchdog's signal

  // A switch now and then, where real threads could be overtaken.
  void may_yield(const char* doing, Site site) {
    if (yield_threshold_ && random_() < yield_threshold_) yield(doing, site);
  }
  bool ordered() const { return config_.schedule == Schedule::round_robin; }
  Random& random() { return random_; }

  // Livelock: the machine counts how often a thread waited in vain since anybody last got on.
  // Getting on is a store to memory between blocks, the end of a thread, or 64 turns in a row: a
  // turn is a barrier or a meeting none of whose threads has waited in vain since the last one.
  // Turns alone do not count: threads that poll together vote, or meet at a barrier, every round.
  void progress() { in_vain_ = 0; }
  void take_turn(Thread* const* threads, size_t count);
  void wait_in_vain(const char* doing, Site site);
  void end_overdue() { overdue_ = true; }  // from the watchdog's signal, at the next switch

  const Shape shape;
  uint64_t switches = 0;

 private:
  static void entry();
  void start_blocks();
  void start_block(Cluster& cluster, uint64_t number);
  void finish_block(Block& block);
  void exit_thread();
  void enter(Thread& thread);
  void give_way(bool ends = false);

  const Config config_;
  const std::function<void()>& body_;
  Context host_;
  Random random_;
  uint64_t yield_threshold_;
  ReadyQueue ready_;
  std::vector<std::unique_ptr<Cluster>> clusters_;  // that run now
  std::vector<uint32_t> order_;                     // of clusters still to be started, backwards
  uint64_t most_blocks_;                            // that run at the same time
  uint64_t running_ = 0;                            // blocks
  uint64_t in_vain_ = 0, in_vain_bound_ = 0;
  Block* finished_ = nullptr;
  const Thread* stuck_ = nullptr;
  const void* stuck_at_ = nullptr;  // an instruction
  volatile bool overdue_ = false;
  std::string error_;
};

extern Machine* machine;  // nullptr between launches
extern Thread* current;   // nullptr on the host's own stack

// Everybody of a barrier is there: see barrier.cpp.
void release(Barrier& barrier);
void leave_barriers(Thread& thread);  // a thread exits
// A thread has a moment to itself: a copy may arrive. See memory.cpp.
void may_copy(Thread& thread);

}  // namespace emu
