// machine.cpp - the life of a launch: blocks start, threads take turns, blocks end.
#include "machine.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "race.h"
#include "report.h"
#include "watchdog.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emu {

Config config;
Statistics statistics;
Machine* machine = nullptr;
Thread* current = nullptr;

Error::~Error() = default;

namespace {

#ifdef EMULATOR_ADDRESS
constexpr bool poison_dead_blocks = true;  // the sanitizer finds late accesses and overruns
#else
constexpr bool poison_dead_blocks = false;
#endif

constexpr int nan_byte = 0xFF;
constexpr size_t canary_bytes = 64;

char* make_shared_memory(uint32_t bytes) {
  void* memory;
  const size_t canary = poison_dead_blocks ? 0 : canary_bytes;
  if (posix_memalign(&memory, 128, bytes + canary)) throw std::bad_alloc();
  std::memset(memory, nan_byte, bytes + canary);
  return static_cast<char*>(memory);
}

bool untouched(const char* memory, size_t bytes) {
  return std::all_of(memory, memory + bytes, [](char c) { return c == char(nan_byte); });
}

// Clusters in the order in which they start, last first. Nothing promises an order.
std::vector<uint32_t> start_order(uint64_t clusters, Schedule schedule, Random& random) {
  std::vector<uint32_t> order(clusters);
  std::iota(order.rbegin(), order.rend(), 0);
  if (schedule != Schedule::round_robin)
    for (size_t i = clusters; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

// How many blocks run at the same time. Without a cooperative launch nothing promises more than
// one cluster, so that random schedules also draw this number.
uint64_t most_blocks(const Shape& shape, const Config& config, Random& random) {
  if (shape.cooperative) return shape.blocks();
  uint64_t clusters = std::clamp<uint64_t>(config.resident_blocks / shape.cluster, 1, 16);
  if (config.schedule != Schedule::round_robin) clusters = 1 + random.below(clusters);
  return clusters * shape.cluster;
}

// A random word lies below it with this probability.
uint64_t threshold(double probability) {
  return probability >= 1 ? ~uint64_t(0) : uint64_t(std::max(probability, 0.) * 0x1p64);
}

}  // namespace

Machine::Machine(const Shape& shape, const std::function<void()>& body)
    : shape(shape),
      config_(config),
      body_(body),
      random_(config.seed),
      yield_threshold_(threshold(config.yield_probability)),
      ready_(config.schedule, random_),
      order_(start_order(shape.blocks() / shape.cluster, config.schedule, random_)),
      most_blocks_(most_blocks(shape, config, random_)) {
  in_vain_bound_ = 10000 + 1000 * std::min(most_blocks_, shape.blocks()) * shape.threads;
  describe_host_stack(host_);
}

Machine::~Machine() {
  for (auto& cluster : clusters_)
    for (auto& block : cluster->blocks) {
      for (Thread& thread : block->threads) give_stack(thread.stack);
      std::free(block->shared);
    }
}

void Machine::run() {
  race::begin(shape);
  while (error_.empty()) {
    start_blocks();
    Thread* next = ready_.pop(false);
    if (!next) {
      if (running_) error_ = deadlock_report(clusters_);
      break;
    }
    enter(*next);
    switch_context(host_, next->context);
    current = nullptr;
    if (finished_) finish_block(*std::exchange(finished_, nullptr));
  }
  statistics = {switches, race::accesses()};
  if (stuck_at_)
    error_ += "\n  it was at " + source_line(stuck_at_) + ", inside " + describe(*stuck_);
  race::end();
  if (!error_.empty()) throw Error(error_);
}

void Machine::start_blocks() {
  while (!order_.empty() && running_ + shape.cluster <= most_blocks_) {
    const uint64_t first = uint64_t(order_.back()) * shape.cluster;
    order_.pop_back();
    clusters_.push_back(std::make_unique<Cluster>());
    Cluster& cluster = *clusters_.back();
    cluster.live = shape.cluster;
    cluster.barrier.expected = shape.cluster * shape.threads;
    for (uint32_t rank = 0; rank < shape.cluster; ++rank) start_block(cluster, first + rank);
    running_ += shape.cluster;
  }
}

void Machine::start_block(Cluster& cluster, uint64_t number) {
  cluster.blocks.push_back(std::make_unique<Block>());
  Block& block = *cluster.blocks.back();
  block.index = shape.block_index(number);
  block.number = uint32_t(number);
  block.rank = uint32_t(cluster.blocks.size() - 1);
  block.cluster = &cluster;
  block.live = block.barriers[0].expected = shape.threads;
  block.shared = make_shared_memory(shape.shared_bytes);
  race::shared_memory_appears(block);
  block.warps.resize((shape.threads + 31) / 32);
  block.threads.resize(shape.threads);
  ready_.add(block);
  for (uint32_t rank = 0; rank < shape.threads; ++rank) {
    Thread& thread = block.threads[rank];
    thread.stack = take_stack();
    thread.block = &block;
    thread.index = dim3(rank, 0, 0);
    thread.id = uint32_t(number * shape.threads + rank);
    thread.rank = rank;
    block.warps[rank / 32].live |= 1u << thread.lane();
    prepare(thread.context, thread.stack, &Machine::entry);
    ready_.push(thread);
  }
}

void Machine::entry() {
  begin_fiber();
  std::string exception;  // told outside of the handler, which would never be left otherwise
  try {
    machine->body_();
  } catch (const std::exception& caught) {
    exception = std::string("exception in a kernel: ") + caught.what();
  }
  if (!exception.empty()) machine->fail(exception);
  machine->exit_thread();
}

void Machine::exit_thread() {
  Thread& thread = *current;
  Block& block = *thread.block;
  leave_barriers(thread);
  thread.exited = true;
  thread.doing = "exited";
  progress();
  if (--block.live == 0) finished_ = &block;
  give_way(true);
  std::abort();  // nobody switches to a thread that has exited
}

// Shared memory stays until the last block of the cluster ends, to see whether somebody writes
// into a block that has ended.
void Machine::finish_block(Block& block) {
  Cluster& cluster = *block.cluster;
  const uint32_t bytes = shape.shared_bytes;
  if (!poison_dead_blocks && !untouched(block.shared + bytes, canary_bytes))
    error_ = "overrun: " + name_of(block) + " wrote past the end of its shared memory";
  race::shared_memory_dies(block);
  if (poison_dead_blocks) {
    std::free(std::exchange(block.shared, nullptr));
  } else {
    std::memset(block.shared, nan_byte, bytes);
  }
  for (Thread& thread : block.threads) give_stack(std::exchange(thread.stack, {}));
  block.threads.clear();
  ready_.remove(block);
  --running_;
  if (--cluster.live) return;
  for (auto& each : cluster.blocks) {
    if (each->shared && !untouched(each->shared, bytes))
      error_ = "late write: " + name_of(*each) + " had exited when a block of its cluster wrote " +
               "into its shared memory (a cluster barrier before the exit is missing)";
    race::shared_memory_goes(*each);
    std::free(each->shared);
  }
  std::erase_if(clusters_, [&](const auto& each) { return each.get() == &cluster; });
}

void Machine::enter(Thread& thread) {
  ++switches;
  current = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
}

void Machine::give_way(bool ends) {
  Thread& self = *current;
  if (overdue_ && !ends)
    fail("endless: the launch has used up its CPU time (launch_seconds)" + census(clusters_));
  self.polls.loads = 0;
  if (!self.copies.empty() && !ordered()) may_copy(self);
  Thread* next = finished_ ? nullptr : ready_.pop(in_vain_ > 64);
  if (next == &self) return;
  if (next) enter(*next);
  switch_context(self.context, next ? next->context : host_, ends);
}

void Machine::yield(const char* doing, Site site) {
  current->doing = doing;
  current->site = site;
  ready_.push(*current);
  give_way();
}

void Machine::wait(const char* doing, Site site, const void* object) {
  current->doing = doing;
  current->site = site;
  current->waits_for = object;
  give_way();
}

void Machine::wake(Thread& thread) {
  thread.waits_for = nullptr;
  ready_.push(thread);
}

void Machine::take_turn(Thread* const* threads, size_t count) {
  uint32_t turns = threads[0]->turns;
  for (size_t i = 1; i < count; ++i) turns = std::min(turns, threads[i]->turns);
  for (size_t i = 0; i < count; ++i) threads[i]->turns = turns + 1;
  if (turns > 64) progress();
}

void Machine::wait_in_vain(const char* doing, Site site) {
  current->turns = 0;
  if (++in_vain_ > in_vain_bound_) {
    current->doing = doing;
    current->site = site;
    std::string message = livelock_report(clusters_);
    if (!order_.empty())
      message += "\n  " + std::to_string(order_.size() * shape.cluster) +
                 " blocks have not started: the launch is not cooperative and " +
                 std::to_string(most_blocks_) + " blocks run at the same time";
    fail(message);
  }
  yield(doing, site);
}

void Machine::fail(std::string message) {
  error_ = std::move(message);
  switch_context(current->context, host_, true);
  std::abort();
}

void Machine::fail(std::string message, Site site) {
  fail(std::move(message) + "\n  in " + name_of(*current) + " at " + source_line(site));
}

void Machine::stuck(const void* at) {
  stuck_ = current;
  stuck_at_ = race::last_access() ? race::last_access() : at;
  fail("raw spin: a thread ran for seconds without giving way; loops that wait need " +
       std::string("load_acquire, load_relaxed or spin()"));
}

void launch(unsigned x, unsigned y, unsigned z, int threads, int shared_bytes, int cluster,
            bool cooperative, const std::function<void()>& body) {
  const Shape shape{dim3(x, y, z), uint32_t(threads), uint32_t(shared_bytes), uint32_t(cluster),
                    cooperative};
  check_launch(shape);
  if (machine) throw Error("launch: a kernel is running");
  blockDim = dim3(shape.threads);
  gridDim = shape.grid;
  Machine here(shape, body);
  machine = &here;
  struct Leave {
    ~Leave() { machine = nullptr, current = nullptr; }
  } leave;
  Watchdog watchdog(config.watchdog_seconds, config.launch_seconds);
  here.run();
}

}  // namespace emu
