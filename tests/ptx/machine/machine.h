// machine.h - a machine that executes PTX: warps of 32 lanes in lockstep where they agree, each
// lane with a place of its own where they do not. One thread of the host, an order that a seed
// repeats.
#pragma once

#include <bit>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "clocks.h"
#include "races.h"

namespace ptx {

constexpr int kWarp = 32;
constexpr uint32_t kAll = ~0u;          // every lane
constexpr uint32_t kSharedBase = 1024;  // of dynamic shared memory in the shared window
constexpr size_t kSlot = 256 * 1024;    // of the generic window, for the shared memory of a block

enum class Space : uint8_t { generic, global, shared, param };
// As PTX names them. l2: ld.global.cg, as weak as a plain load; relaxed_part: a further element of
// a relaxed vector.
enum class Order : uint8_t { weak, l2, relaxed, relaxed_part, acquire, release, is_volatile };
inline bool is_strong(Order order) { return order >= Order::relaxed; }

enum class Schedule { round_robin, random, block_ahead };

struct Options {
  uint64_t seed = 1;
  Schedule schedule = Schedule::round_robin;
  double yields = 0.02;              // probability of a switch at a memory access
  double delays = 0;                 // probability that a weak or relaxed store waits in a buffer
  double late_copies = 1;            // probability that an asynchronous copy waits for its wait
  bool races = true;                 // watch every access
  bool fetches = false;              // watch what is prefetched
  uint64_t launches = 0;             // since these were set: each has an order of its own
  int64_t most_steps = 100'000'000;  // of a launch: switches between warps
};
extern Options options;

// Sectors of 32 bytes that were prefetched since the last call of clear_fetches, how many of them
// were loaded afterwards, and how many had been loaded before.
struct Fetches {
  int64_t sectors = 0, loaded = 0, late = 0;
};
Fetches fetches();
void clear_fetches();

// Thrown by whatever is found. No std::exception, which host code might take for a failed launch.
struct Report {
  std::string text;
};

struct Warp;
struct Block;
struct Launch;
struct Operation;

enum class Step {
  next,     // the instruction is done
  jump,     // ... and has set the place of the next one
  stay,     // it is not; others run first
  regroup,  // lanes have places of their own now
};
using Handler = Step (*)(Warp&, const Operation&, uint32_t mask);

// An instruction, as decode.py gives it. Places count bytes in the registers of a warp, which hold
// all 32 lanes of a register together, one bit each of a predicate; negative ones in the constants.
constexpr int32_t kNone = INT32_MIN;
constexpr int kPlaces = 14;
struct Operation {
  Handler handler;
  int32_t guard;  // place of a predicate or kNone
  uint32_t flip;  // ~0 where the guard is negated
  int32_t line;   // of the PTX
  int32_t at[kPlaces];
  int64_t number;  // offset of an address, target of a branch
  Space space;
  Order order;
  uint8_t bytes, count, width;  // of an element in memory, elements, of a register
  bool narrow;                  // the address lies in a 32-bit register
  bool aligned;                 // all lanes of the warp execute it together
  const char* name;
};

struct Kernel {
  std::string name;
  std::vector<Operation> operations;
  std::vector<uint8_t> constants;
  std::map<int, std::string> sources;  // by line of the PTX, the last at or before it
  size_t register_bytes;
  int param_bytes, most_threads, registers;

  std::string where(int line) const;
};

struct Random {  // splitmix64
  uint64_t state = 1;
  uint64_t next() {
    uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
  }
  double unit() { return double(next() >> 11) * 0x1p-53; }
  bool chance(double p) { return p > 0 && unit() < p; }
  uint32_t below(uint32_t n) { return uint32_t((next() >> 32) * n >> 32); }
};

// Stores that not everybody sees yet, by aligned words of 8 bytes.
struct Pending {
  uint8_t bytes[8];
  uint8_t mask;
};
using StoreBuffer = std::unordered_map<uint64_t, Pending>;

struct Copy {
  int lane;
  uint32_t group;
  uint64_t to, from;  // to: offset in shared memory
  int bytes, source_bytes, line;
  bool arrived;
};

struct Warp {
  Launch* launch;
  Block* block;
  int index;  // in the block
  uint8_t* registers;

  // Every lane is ready, waits in an instruction that others must reach too, is held by a barrier
  // of the whole warp, or has exited. Its place is pc, while its group runs `at`.
  uint32_t ready = kAll, waiting = 0, held = 0, exited = 0;
  uint32_t pc[kWarp] = {}, member[kWarp] = {};
  uint32_t active = 0, at = 0;
  bool turns = false;  // the group was chosen by its turn and runs until it gives way
  int turn = 0;        // the lane whose turn it was
  bool gave_way = false;
  uint32_t gave = 0;   // lanes that have given way before their next access
  bool apart = false;  // lanes meet that have places of their own

  int ready_index = -1;
  int64_t vain = 0, vain_stamp = -1;  // polls since anything changed
  int64_t loops = 0;                  // branches backwards since others ran
  uint32_t in_cluster_barrier = 0;    // lanes that have arrived and not waited
  uint64_t cluster_phase = 0;

  uint32_t epoch = 1;  // of every access until the next release, barrier or meeting
  std::shared_ptr<const Clock> clocks[kWarp];
  StoreBuffer stores[kWarp];
  uint32_t buffered = 0;  // lanes that have stores
  std::vector<Copy> copies;
  uint32_t group[kWarp] = {};

  template <class T>
  T* to(int32_t place) {
    return reinterpret_cast<T*>(registers + place);
  }
  template <class T>
  const T* from(int32_t place) const;
  const Operation& operation() const;
  int thread(int lane) const { return index * kWarp + lane; }
};

struct Barrier {
  int arrived = 0, expected = 0, line = 0;
  std::vector<Warp*> warps;
  ClockJoin clock;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  int live = 0, arrived = 0;  // threads
  uint64_t phase = 0;
  std::vector<Warp*> warps;  // that wait
  ClockJoin clock;
  std::shared_ptr<const Clock> passed;
};

struct Block {
  Cluster* cluster;
  uint32_t index[3], rank;
  int id;  // of all blocks of the launch
  int slot, live;
  uint8_t* shared;
  std::vector<std::unique_ptr<Warp>> warps;
  std::map<uint32_t, Barrier> barriers;
  StoreBuffer stores;
  std::vector<ShadowLine> shadow;
  std::vector<PeerAccess> peers;  // by other blocks, on its shared memory
  ClockJoin end;
  int64_t order;  // block_ahead: who goes first
};

struct GridSize {
  uint32_t x, y, z, threads, shared_bytes, cluster;
  bool cooperative;
};

struct Launch {
  const Kernel* kernel;
  const uint8_t* params;
  GridSize grid;
  Random random;
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<Warp*> ready;
  size_t cursor = 0;
  std::vector<int> free_slots;
  std::vector<uint8_t*> free_registers;
  size_t waiting_blocks = 0;  // that have not started
  int64_t steps = 0, budget = 0, stamp = 0;
  bool any_buffered = false;
  std::unordered_map<uint64_t, std::shared_ptr<const Clock>> releases;  // by address
  GlobalShadow shadow;

  void changed() { ++stamp; }
};

template <class T>
inline const T* Warp::from(int32_t place) const {
  const uint8_t* base =
      place >= 0 ? registers + place : launch->kernel->constants.data() - 1 - int64_t(place);
  return reinterpret_cast<const T*>(base);
}
inline const Operation& Warp::operation() const { return launch->kernel->operations[at]; }

// ---- what instructions call

// The body of an instruction for each lane of a mask.
template <class F>
inline void each(uint32_t mask, F f) {
  if (mask == kAll) {
#pragma GCC ivdep
    for (int i = 0; i < kWarp; ++i) f(i);
  } else {
    for (; mask; mask &= mask - 1) f(std::countr_zero(mask));
  }
}

[[noreturn]] void fail(const Warp& w, int lane, const Operation& o, const std::string& what);
std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
std::string thread_name(const Warp& w, int lane);

// Whether others run before an access: at random, and always before a poll, which may wait for
// them.
bool gives_way(Warp& w, bool poll);
// Lanes that must meet: once all have come, `work` is done for all of them together. `members`:
// who must come, by lane; nullptr: the whole warp.
Step meet(Warp& w, const Operation& o, uint32_t mask, const uint32_t* members, Handler work);
// Nobody may wait for lanes that have exited.
void check_exits(Warp& w);

void make_ready(Warp& w);
Step hold(Warp& w);    // a whole warp waits for a barrier
void let_go(Warp& w);  // ... that has come
void save_places(Warp& w, uint32_t lanes, uint32_t at);

// ---- memory

uint8_t* shared_at(Warp& w, int lane, const Operation& o, uint64_t address, int bytes);
void check_global(Warp& w, int lane, const Operation& o, uint64_t address, int bytes);
void check_alignment(const Warp& w, int lane, const Operation& o, uint64_t address, int bytes);
std::string memory_name(uint64_t address);
void add_memory(const void* begin, size_t bytes, const char* name);
void remove_memory(const void* begin);
bool in_memory(const void* begin, size_t bytes);
void clear_memory();
void reserve_window(size_t slots);
uint8_t* window_of(int slot);

void flush(StoreBuffer& buffer);
void merge(StoreBuffer& from, StoreBuffer& to);
void fence(Warp& w, int lane);
void buffers_to_block(Warp& w, uint32_t lanes);
void some_stores_arrive(Launch& l, double probability);
void finish_copies(Warp& w, uint32_t lanes, int pending);
void copies_arrive(Warp& w);  // before their wait

// ---- order

// What lanes have seen and done.
void add_to(ClockJoin& join, const Warp& w, uint32_t lanes);
void advance(Cluster& cluster);  // its barrier, if everybody has come

// ---- running

Step run(Warp& w);  // stay: it gives way; regroup: nobody of it can run
void exit_lanes(Warp& w, uint32_t lanes);
void run_grid(const Kernel& kernel, const void* params, const GridSize& grid);

struct Entry {
  const char* name;
  Handler handler;
};
std::vector<Entry> arithmetic_operations();
std::vector<Entry> conversion_operations();
std::vector<Entry> memory_operations();
std::vector<Entry> copy_operations();
std::vector<Entry> lane_operations();
std::vector<Entry> barrier_operations();
std::vector<Entry> control_operations();

}  // namespace ptx
