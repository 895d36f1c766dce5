// plan.cpp tries every engine that could run a layer and takes the one with the least modelled
// time.
#include "plan.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "cost.h"
#include "shared_layout.h"

namespace brnn::cuda {

namespace {

constexpr int kReservedShared = 1024;   // of each block that runs on a multiprocessor
constexpr int kMostThreads = 1536;      // of a multiprocessor, the least of 8.0 to 12.0
constexpr int64_t kMostBlocks = 65535;  // along y

// Stages of the exchange of a grid have about so many bytes at most, and a longer layer takes
// several launches. Those of all steps would be as large as y forward, as `gates` backward.
constexpr int64_t kStageBytes = int64_t{128} << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::string text(int64_t value) { return std::to_string(value); }

std::string decimal(double microseconds) {
  char digits[32];
  std::snprintf(digits, sizeof digits, microseconds < 10 ? "%.2f" : "%.0f", microseconds);
  return digits;
}

std::string kilobytes(int64_t bytes) { return text(ceil_div(bytes, 1024)) + " KB"; }

// An Obstacle says why an engine cannot run a layer: what it needs and what is there.
struct Obstacle {
  std::string needs, has;
};

// An Attempt is one pass of one engine: how it would run, or why it cannot.
struct Attempt {
  std::optional<Recurrence> recurrence;
  Obstacle obstacle;

  Attempt(const Recurrence& found) : recurrence(found) {}
  Attempt(std::string needs, std::string has) : obstacle{std::move(needs), std::move(has)} {}
};

// Sizes are what all engines derive from a problem.
struct Sizes {
  const Problem& problem;
  const Device& device;
  Pass pass;
  CellTraits cell;
  int gates, bytes;  // bytes of a number
  int64_t batch_tiles, chunks;

  Sizes(const Problem& p, const Device& d, Pass pass)
      : problem(p),
        device(d),
        pass(pass),
        cell(traits(p.cell)),
        gates(cell.gates),
        bytes(bytes_of(p.precision)),
        batch_tiles(ceil_div(p.B, kTileSequences)),
        chunks(ceil_div(p.H, units_of_chunk(bytes))) {}

  bool untied() const { return problem.untied_h && gates > 1; }
  int blocks(const Tiling& t) const { return unit_blocks(t, problem.H, bytes); }
  int shared(Engine engine, const Tiling& t, int64_t tiles) const {
    const int all_chunks = published_chunks(t, blocks(t), bytes);
    return shared_bytes(engine, pass, t, cell, untied(), int(tiles), all_chunks);
  }
};

// Tells how many blocks a multiprocessor runs at the same time.
int resident_blocks(const Sizes& s, const Tiling& t, int shared) {
  const int by_registers =
      s.device.registers_per_block / (t.threads() * registers(s.pass, t, s.gates, s.untied()));
  const int by_shared =
      (s.device.shared_bytes_per_block + kReservedShared) / (shared + kReservedShared);
  return std::max(1, std::min({by_registers, by_shared, kMostThreads / t.threads()}));
}

// Tells how many steps a launch runs: about as many in each, as few launches as stages allow.
int steps_of_launch(const Sizes& s, const Recurrence& r) {
  const int64_t T = s.problem.T;
  if (r.engine != Engine::grid) return int(T);
  const int64_t chunks = published_chunks(r.tiling, r.blocks_x, s.bytes);
  const int64_t planes = s.pass == Pass::forward ? 1 : s.gates;
  const int64_t stage = planes * r.blocks_y * r.batch_tiles * chunks * kChunkBytes;
  const int64_t asked = grid_steps(), wanted = asked ? asked : kStageBytes / stage;
  const int64_t most = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, T));
  return int(ceil_div(T, std::max<int64_t>(1, ceil_div(T, most))));
}

// A Spread says how a recurrence spreads: batch tiles of a block, blocks over the batch, and what
// the busiest multiprocessor does in a step: rounds through the exchange, batch tiles one after the
// other.
struct Spread {
  int64_t batch_tiles, blocks_y, rounds, tiles;
};

Attempt fill_in(const Sizes& s, Engine engine, const Tiling& t, const Spread& spread) {
  Recurrence r{};
  r.engine = engine, r.tiling = t;
  r.batch_tiles = int(spread.batch_tiles);
  r.blocks_x = s.blocks(t), r.blocks_y = int(spread.blocks_y);
  r.threads = t.threads();
  r.registers = std::min(kMostRegisters, registers(s.pass, t, s.gates, s.untied()));
  r.steps = steps_of_launch(s, r);
  r.shared_bytes = s.shared(engine, t, spread.batch_tiles);
  const int64_t busy = std::min<int64_t>(r.blocks_x * spread.blocks_y, s.device.multiprocessors);
  const double work = cost::work(engine, s.pass, t, s.cell, s.untied(), s.device, busy);
  r.microseconds = double(spread.rounds) * traits(engine).latency + double(spread.tiles) * work +
                   traits(engine).start / double(r.steps);
  if (r.shared_bytes > s.device.shared_bytes_per_block)
    return {kilobytes(r.shared_bytes) + " of shared memory for " + text(spread.batch_tiles) +
                " batch tiles a block",
            kilobytes(s.device.shared_bytes_per_block)};
  if (r.registers * r.threads > s.device.registers_per_block)
    return {text(r.registers * r.threads) + " registers", text(s.device.registers_per_block)};
  return r;
}

// ---- the engines, each with one tiling that covers k

Attempt try_block(const Sizes& s, const Tiling& t) {
  const int64_t tiles = ceil_div(s.batch_tiles, s.device.multiprocessors);
  const int64_t rounds = ceil_div(tiles, resident_blocks(s, t, s.shared(Engine::block, t, 1)));
  Attempt attempt = fill_in(s, Engine::block, t, {1, s.batch_tiles, rounds, tiles});
  if (auto& r = attempt.recurrence) {
    r->fused_input = s.pass == Pass::forward && t.chunks <= kFusedChunks &&
                     s.problem.I <= kFusedChunks * units_of_chunk(s.bytes);
    if (r->fused_input)
      r->registers =
          std::min(kMostRegisters, registers(s.pass, t, s.gates, s.untied(), kFusedChunks));
  }
  return attempt;
}

Attempt try_cluster(const Sizes& s, const Tiling& t) {
  if (s.device.major < 9)
    return {"compute capability of at least 9.0",
            text(s.device.major) + "." + text(s.device.minor)};
  const int64_t at_once = int64_t(s.device.multiprocessors * cost::kClusterShare) / s.blocks(t);
  const int64_t tiles = ceil_div(s.batch_tiles, std::max<int64_t>(1, at_once));
  const int64_t rounds = ceil_div(tiles, resident_blocks(s, t, s.shared(Engine::cluster, t, 1)));
  return fill_in(s, Engine::cluster, t, {1, s.batch_tiles, rounds, tiles});
}

// All blocks run at the same time, `together` of them on a multiprocessor.
Attempt try_grid(const Sizes& s, Engine engine, const Tiling& t, int together) {
  const int64_t blocks_x = s.blocks(t), most = int64_t(together) * s.device.multiprocessors;
  if (blocks_x > most) return {text(blocks_x) + " multiprocessors", text(s.device.multiprocessors)};
  const int64_t groups = std::min(most / blocks_x, s.batch_tiles);
  const int64_t tiles = ceil_div(s.batch_tiles, groups);
  const int64_t blocks_y = ceil_div(s.batch_tiles, tiles);
  if (tiles > 1 && !t.looped) return {"at most 1 batch tile a block", text(tiles)};
  const int64_t busiest = ceil_div(blocks_x * blocks_y, s.device.multiprocessors);
  return fill_in(s, engine, t, {tiles, blocks_y, 1, busiest * tiles});
}

Attempt try_grid(const Sizes& s, Engine engine, const Tiling& t) {
  if (!s.device.cooperative_launch) return {"cooperative launch", "a device without it"};
  if (blocks_per_multiprocessor(s.pass, t, s.gates, s.untied()) > 1) {
    const Attempt two = try_grid(s, engine, t, 2);
    if (two.recurrence && resident_blocks(s, t, two.recurrence->shared_bytes) > 1) return two;
  }
  return try_grid(s, engine, t, 1);
}

Attempt try_tiling(const Sizes& s, Engine engine, const Tiling& t) {
  switch (engine) {
    case Engine::block: return try_block(s, t);
    case Engine::cluster: return try_cluster(s, t);
    default: return try_grid(s, engine, t);
  }
}

Attempt too_wide(const Sizes& s, Engine engine) {
  int64_t most = 0;
  for (const Tiling& t : tilings(engine, s.pass, s.bytes))
    most = std::max<int64_t>(most, t.most_chunks());
  if (!most) return {"a forward pass", "backward"};
  return {
      "H of at most " + text(most * units_of_chunk(s.bytes)) + " in " + name(s.problem.precision),
      "H = " + text(s.problem.H)};
}

// Returns the fastest tiling, or the obstacle of the first that can loop over the batch.
Attempt try_tilings(const Sizes& s, Engine engine) {
  Attempt best = too_wide(s, engine);
  bool obstacle_settled = false;
  for (const Tiling& t : tilings(engine, s.pass, s.bytes)) {
    if (t.most_chunks() < s.chunks || (t.ahead && t.ahead != backward_ahead())) continue;
    const Attempt attempt = try_tiling(s, engine, t);
    if (attempt.recurrence) {
      if (!best.recurrence || attempt.recurrence->microseconds < best.recurrence->microseconds)
        best = attempt;
    } else if (!best.recurrence && !obstacle_settled) {
      best = attempt;
      obstacle_settled = t.looped;
    }
  }
  return best;
}

Attempt try_persistent(const Sizes& s, Engine engine) {
  const Problem& p = s.problem;
  const Device& d = s.device;
  if (s.cell.persistent == Persistent::none) return {"a cell with one product a step", s.cell.name};
  if (s.cell.persistent == Persistent::bfloat16 && p.precision != Precision::bfloat16)
    return {std::string("bfloat16 for ") + s.cell.name, name(p.precision)};
  if (p.precision == Precision::float32 || p.precision == Precision::float64)
    return {"bfloat16, float16 or tf32", name(p.precision)};
  if (d.major < 8)
    return {"compute capability of at least 8.0", text(d.major) + "." + text(d.minor)};
  if (p.B < 1) return {"a batch of at least 1", "0"};
  if (s.batch_tiles > kMostBlocks)
    return {"B of at most " + text(kMostBlocks * kTileSequences), "B = " + text(p.B)};
  return try_tilings(s, engine);
}

Recurrence stepwise(const Sizes& s) {
  Recurrence r{};
  r.engine = Engine::stepwise;
  r.microseconds = cost::stepwise_step(s.problem, s.gates, s.device);
  return r;
}

// ---- the choice

std::string head(const Recurrence& r, const Device& device) {
  const std::string time = decimal(r.microseconds) + " us a step (model)";
  const std::string engine = traits(r.engine).name;
  if (!traits(r.engine).persistent) return engine + ": " + time;
  return engine + ": " + text(r.blocks_x) + " x " + text(r.blocks_y) + " blocks on " +
         text(device.multiprocessors) + " multiprocessors, " + time;
}

Recurrence choose(const Sizes& s) {
  const Recurrence slow = stepwise(s);
  std::optional<Recurrence> best;
  for (const EngineTraits& engine : kEngines) {
    if (!engine.persistent) continue;
    const Attempt attempt = try_persistent(s, engine.id);
    if (attempt.recurrence && (!best || attempt.recurrence->microseconds < best->microseconds))
      best = attempt.recurrence;
  }
  if (!best) {
    Recurrence r = slow;
    const Obstacle obstacle = try_persistent(s, Engine::grid).obstacle;
    r.reason = head(r, s.device) + "; grid needs " + obstacle.needs + ", got " + obstacle.has;
    return r;
  }
  const bool persistent = best->microseconds < slow.microseconds;
  Recurrence r = persistent ? *best : slow;
  const Recurrence& other = persistent ? slow : *best;
  r.reason = head(r, s.device) + "; " + traits(other.engine).name + " would take " +
             decimal(other.microseconds);
  return r;
}

// Returns the engine that was asked for, or throws its obstacle.
Recurrence obey(const Sizes& s, Engine engine, const std::string& wanted) {
  Attempt attempt = traits(engine).persistent ? try_persistent(s, engine) : Attempt(stepwise(s));
  if (!attempt.recurrence)
    throw std::runtime_error("engine: expected " + attempt.obstacle.needs + " for '" + wanted +
                             "', got '" + wanted + "' with " + attempt.obstacle.has);
  attempt.recurrence->named = true;
  attempt.recurrence->reason = head(*attempt.recurrence, s.device) + "; asked for by name";
  return *attempt.recurrence;
}

std::string describe(const Recurrence& r) {
  std::ostringstream out;
  out << "{\"engine\": \"" << traits(r.engine).name << "\", \"reason\": \"" << r.reason
      << "\", \"microseconds_per_step\": " << decimal(r.microseconds);
  if (traits(r.engine).persistent)
    out << ", \"blocks\": [" << r.blocks_x << ", " << r.blocks_y << "], \"threads\": " << r.threads
        << ", \"registers\": " << r.registers << ", \"shared_bytes\": " << r.shared_bytes
        << ", \"steps\": " << r.steps << ", \"batch_tiles\": " << r.batch_tiles
        << ", \"chunks\": " << r.tiling.chunks << ", \"k_warps\": " << r.tiling.k_warps
        << ", \"unit_tiles\": " << r.tiling.unit_tiles << std::boolalpha
        << ", \"looped\": " << r.tiling.looped << ", \"fused_input\": " << r.fused_input;
  out << "}";
  return out.str();
}

}  // namespace

int backward_ahead() {
  const char* const asked = std::getenv("BAYESRNN_BACKWARD_AHEAD");
  if (!asked) return kBackwardAhead;
  for (const Tiling& t : kGridBackward)
    if (t.ahead && std::to_string(t.ahead) == asked) return t.ahead;
  throw std::runtime_error("BAYESRNN_BACKWARD_AHEAD: expected 3 or 6, got '" + std::string(asked) +
                           "'");
}

int64_t grid_steps() {
  const char* const asked = std::getenv("BAYESRNN_GRID_STEPS");
  if (!asked) return 0;
  int64_t steps = 0;
  const char* const end = asked + std::strlen(asked);
  const auto [read, error] = std::from_chars(asked, end, steps);
  if (error != std::errc{} || read != end || steps < 1)
    throw std::runtime_error("BAYESRNN_GRID_STEPS: expected at least 1, got '" +
                             std::string(asked) + "'");
  return steps;
}

std::optional<Engine> engine_of(const std::string& wanted) {
  if (wanted == "auto") return {};
  for (const EngineTraits& engine : kEngines)
    if (wanted == engine.name) return engine.id;
  throw std::runtime_error("engine: expected one of " + engine_names() + ", got '" + wanted + "'");
}

std::string engine_names() {
  std::string names = "auto";
  for (const EngineTraits& engine : kEngines) names += std::string(", ") + engine.name;
  return names;
}

const char* name(Precision precision) {
  if (precision == Precision::tf32) return "tf32";
  const char* found = nullptr;
  for_each_dtype([&](auto s) {
    using D = DtypeOf<decltype(s)>;
    if (precision_of(D::id, false) == precision) found = D::name;
  });
  return found;
}

Plan plan(const Problem& problem, const Device& device, const std::string& wanted) {
  const std::optional<Engine> engine = engine_of(wanted);
  const Sizes forward(problem, device, Pass::forward), backward(problem, device, Pass::backward);
  Plan plan{};
  plan.precision = problem.precision;
  plan.tensor_cores = device.major >= 8 && problem.precision != Precision::float32 &&
                      problem.precision != Precision::float64;
  plan.forward = engine ? obey(forward, *engine, wanted) : choose(forward);
  const auto without_backward = [&](Engine e) {
    return tilings(e, Pass::backward, backward.bytes).empty() ||
           (!problem.save && !try_persistent(backward, e).recurrence);
  };
  const bool free = !engine || (traits(*engine).persistent && without_backward(*engine));
  plan.backward = free ? choose(backward) : obey(backward, *engine, wanted);
  return plan;
}

std::string describe(const Plan& plan) {
  std::ostringstream out;
  out << "{\"precision\": \"" << name(plan.precision) << "\", \"tensor_cores\": " << std::boolalpha
      << plan.tensor_cores << ", \"forward\": " << describe(plan.forward)
      << ", \"backward\": " << describe(plan.backward) << "}";
  return out.str();
}

}  // namespace brnn::cuda
