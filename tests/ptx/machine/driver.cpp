// driver.cpp - what Python calls, by ctypes: a layer through the product's own host code on memory
// that the caller names, and single kernels.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "apply.h"
#include "cuda_runtime.h"
#include "product.h"

namespace brnn::cuda {
namespace {

// ---- the library that makes the products of float32 and float64

template <class S>
double wide(S v) {
  if constexpr (std::is_same_v<S, bfloat16>) return ptx::from_bfloat16(v.bits);
  if constexpr (std::is_same_v<S, float16>) return ptx::from_float16(v.bits);
  if constexpr (std::is_arithmetic_v<S>) return v;
}
template <class S>
S narrow(double v) {
  if constexpr (std::is_same_v<S, bfloat16>) return {ptx::to_bfloat16(float(v))};
  if constexpr (std::is_same_v<S, float16>) return {ptx::to_float16(float(v))};
  if constexpr (std::is_arithmetic_v<S>) return S(v);
}

template <class S>
void multiply_as(const Gemm& p) {
  const auto at = [](const Matrix& m, int64_t b, int64_t r, int64_t c) {
    return static_cast<S*>(const_cast<void*>(m.data)) + b * m.batch_stride + r * m.row_stride +
           c * m.column_stride;
  };
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t m = 0; m < p.M; ++m)
      for (int64_t n = 0; n < p.N; ++n) {
        double sum = p.accumulate ? wide(*at(p.c, b, m, n)) : 0;
        for (int64_t k = 0; k < p.K; ++k) sum += wide(*at(p.a, b, m, k)) * wide(*at(p.b, b, k, n));
        *at(p.c, b, m, n) = narrow<S>(sum);
      }
}
void multiply(void*, const Gemm& p) {
  if (ptx::runtime().dry) return;
  switch (p.dtype) {
    case Dtype::bfloat16: return multiply_as<bfloat16>(p);
    case Dtype::float16: return multiply_as<float16>(p);
    case Dtype::float32: return multiply_as<float>(p);
    case Dtype::float64: return multiply_as<double>(p);
  }
}

// ---- a layer; layer.py has the same two structures

struct Call {
  int64_t cell, precision;  // as enum Cell, enum Precision
  int64_t T, B, I, H, reverse, gate_stride_x, gate_stride_h, save;
  double scale_x, scale_h;
  void *lengths, *resets, *keep_x, *keep_h;
  void *x, *h0, *c0, *weight_ih, *weight_hh, *bias_ih, *bias_hh;
  void *y, *h_n, *c_n, *gates, *saved;
  void *dy, *dh_n, *dc_n;
  void *dx, *dh0, *dc0, *dweight_ih, *dweight_hh, *dbias_ih, *dbias_hh;
};
// How the recurrence is cut; chunks 0: as the plan wants it.
struct How {
  const char* engine;
  int64_t multiprocessors, chunks, k_warps, unit_tiles, looped, groups, fused;
};

template <class S>
void read_layer(const Call& c, Layer<S>& l) {
  l.T = c.T, l.B = c.B, l.I = c.I, l.H = c.H, l.reverse = c.reverse;
  l.lengths = static_cast<int64_t*>(c.lengths);
  l.resets = static_cast<uint8_t*>(c.resets);
  l.mask_x = {static_cast<uint8_t*>(c.keep_x), c.gate_stride_x, c.scale_x};
  l.mask_h = {static_cast<uint8_t*>(c.keep_h), c.gate_stride_h, c.scale_h};
  l.x = static_cast<S*>(c.x), l.h0 = static_cast<S*>(c.h0), l.c0 = static_cast<S*>(c.c0);
  l.weight_ih = static_cast<S*>(c.weight_ih), l.weight_hh = static_cast<S*>(c.weight_hh);
}

Plan plan_of(const Call& c, const How& how, Pass pass) {
  ptx::DeviceLimits& limits = ptx::runtime().device;
  if (how.multiprocessors) limits.multiprocessors = int(how.multiprocessors);
  const Device device{limits.name,         limits.major,  limits.minor, limits.multiprocessors,
                      limits.shared_optin, kRegisterFile, true};
  const bool untied = c.keep_h && c.gate_stride_h;
  Plan p = plan({Cell(c.cell), c.T, c.B, c.I, c.H, Precision(c.precision), untied, bool(c.save)},
                device, how.engine);
  if (!how.chunks) return p;
  const int bytes = c.precision == int(Precision::tf32) ? 4 : 2;
  Recurrence& r = pass == Pass::forward ? p.forward : p.backward;
  r.tiling = {int(how.chunks), int(how.k_warps), int(how.unit_tiles), how.looped != 0};
  for (const Tiling& t : tilings(r.engine, pass, bytes)) {
    Tiling asked = r.tiling;
    asked.ahead = t.ahead;
    if (t == asked && t.ahead == backward_ahead()) r.tiling = t;
  }
  const int tiles = int((c.B + kTileSequences - 1) / kTileSequences);
  r.batch_tiles = r.tiling.looped ? int((tiles + how.groups - 1) / how.groups) : 1;
  r.blocks_x = unit_blocks(r.tiling, c.H, bytes);
  r.blocks_y = (tiles + r.batch_tiles - 1) / r.batch_tiles;
  r.threads = r.tiling.threads();
  const int chunks = published_chunks(r.tiling, r.blocks_x, bytes);
  r.shared_bytes =
      shared_bytes(r.engine, pass, r.tiling, traits(Cell(c.cell)), untied, r.batch_tiles, chunks);
  r.fused_input = how.fused;
  return p;
}

size_t scratch_bytes = 0;  // of the last layer

struct Scratch {
  explicit Scratch(size_t bytes) {
    scratch_bytes = bytes;
    if (ptx::runtime().dry) return;
    memory = std::aligned_alloc(512, (bytes + 1023) / 512 * 512);
    // NaN in every type, but not 0xFF, which the stages of a grid must be given, nor 0, as its
    // flags.
    std::fill_n(static_cast<uint16_t*>(memory), (bytes + 1) / 2, uint16_t{0x7FFF});
    ptx::add_memory(memory, bytes, "scratch");
  }
  ~Scratch() {
    ptx::remove_memory(memory);
    std::free(memory);
  }
  void* memory = nullptr;
};

std::string planned;
const Host kHost{nullptr, nullptr, multiply};

template <class S>
Forward<S> forward_of(const Call& c) {
  Forward<S> l{};
  read_layer(c, l);
  l.bias_ih = static_cast<S*>(c.bias_ih), l.bias_hh = static_cast<S*>(c.bias_hh);
  l.y = static_cast<S*>(c.y), l.h_n = static_cast<S*>(c.h_n), l.c_n = static_cast<S*>(c.c_n);
  l.gates = static_cast<S*>(c.gates), l.saved = static_cast<S*>(c.saved);
  return l;
}
template <class S>
Backward<S> backward_of(const Call& c) {
  Backward<S> l{};
  read_layer(c, l);
  l.y = static_cast<S*>(c.y), l.gates = static_cast<S*>(c.gates);
  l.saved = static_cast<S*>(c.saved);
  l.dy = static_cast<S*>(c.dy), l.dh_n = static_cast<S*>(c.dh_n), l.dc_n = static_cast<S*>(c.dc_n);
  l.dx = static_cast<S*>(c.dx), l.dh0 = static_cast<S*>(c.dh0), l.dc0 = static_cast<S*>(c.dc0);
  l.dweight_ih = static_cast<S*>(c.dweight_ih), l.dweight_hh = static_cast<S*>(c.dweight_hh);
  l.dbias_ih = static_cast<S*>(c.dbias_ih), l.dbias_hh = static_cast<S*>(c.dbias_hh);
  return l;
}

template <class S>
void forward_as(const Call& c, const How& how) {
  const Forward<S> l = forward_of<S>(c);
  const Plan plan = plan_of(c, how, Pass::forward);
  planned = describe(plan);
  const Scratch scratch(forward_scratch_bytes(plan, Cell(c.cell), l));
  forward(plan, Cell(c.cell), l, kHost, scratch.memory);
}
template <class S>
void backward_as(const Call& c, const How& how) {
  const Backward<S> l = backward_of<S>(c);
  const Plan plan = plan_of(c, how, Pass::backward);
  planned = describe(plan);
  const Scratch scratch(backward_scratch_bytes(plan, Cell(c.cell), l));
  backward(plan, Cell(c.cell), l, kHost, scratch.memory);
}

void run_call(const Call& c, const How& how, bool backward) {
  const auto call = [&]<class S>(S) { backward ? backward_as<S>(c, how) : forward_as<S>(c, how); };
  switch (Precision(c.precision)) {
    case Precision::bfloat16: return call(bfloat16{});
    case Precision::float16: return call(float16{});
    case Precision::tf32:
    case Precision::float32: return call(float{});
    case Precision::float64: return call(double{});
  }
}

// The products over all time steps alone: the input part, or the gradients from dz.
template <class S>
void products_as(const Call& c, bool gradients, const void* dz) {
  const Cell cell = Cell(c.cell);
  if (!gradients)
    return gate_gemm::input_part(cell, forward_of<S>(c), static_cast<S*>(c.gates), nullptr);
  const Backward<S> l = backward_of<S>(c);
  gate_gemm::input_gradient(cell, l, static_cast<const S*>(dz), nullptr);
  const Scratch scratch(gate_gemm::weight_gradients_scratch_bytes(cell, l));
  gate_gemm::weight_gradients(cell, l, static_cast<const S*>(dz), scratch.memory, nullptr);
}
void run_products_of(const Call& c, bool gradients, const void* dz) {
  switch (Precision(c.precision)) {
    case Precision::bfloat16: return products_as<bfloat16>(c, gradients, dz);
    case Precision::float16: return products_as<float16>(c, gradients, dz);
    case Precision::tf32: return products_as<float>(c, gradients, dz);
    default: throw std::invalid_argument("precision: expected one with tensor cores");
  }
}

// ---- for ctypes

std::string problem;

// 0, 1 where the host code throws, 2 with a report.
template <class F>
int guarded(const F& f) {
  try {
    f();
    return 0;
  } catch (const ptx::Report& report) {
    problem = report.text;
    return 2;
  } catch (const std::exception& error) {
    problem = error.what();
    return 1;
  }
}

const std::vector<ptx::Entry>& operations() {
  static const auto all = [] {
    std::vector<ptx::Entry> list;
    for (const auto& part :
         {ptx::arithmetic_operations(), ptx::conversion_operations(), ptx::memory_operations(),
          ptx::copy_operations(), ptx::lane_operations(), ptx::barrier_operations(),
          ptx::control_operations()})
      list.insert(list.end(), part.begin(), part.end());
    return list;
  }();
  return all;
}

}  // namespace

extern "C" {

const char* problem_text() { return problem.c_str(); }
const char* operation_name(int64_t i) {
  return size_t(i) < operations().size() ? operations()[size_t(i)].name : nullptr;
}

void set_loader(bool (*loader)(const char*)) { ptx::runtime().loader = loader; }
void forget_kernels() { ptx::runtime().kernels.clear(); }

// `code`: kFields numbers for each operation, as decode.py packs them.
void define_kernel(const char* name, const int64_t* code, int64_t count, const uint8_t* constants,
                   int64_t constant_bytes, int64_t register_bytes, int64_t param_bytes,
                   int64_t most_threads, int64_t registers, const int64_t* lines,
                   const char** sources, int64_t source_count) {
  constexpr int kFields = 11 + ptx::kPlaces;
  ptx::Kernel& k = ptx::runtime().kernels[name];
  k.name = name;
  k.operations.clear();
  k.operations.reserve(size_t(count));
  for (int64_t i = 0; i < count; ++i, code += kFields) {
    const ptx::Entry& entry = operations().at(size_t(code[0]));
    ptx::Operation o{};
    o.handler = entry.handler, o.name = entry.name;
    o.guard = int32_t(code[1]), o.flip = code[2] ? ~0u : 0u, o.line = int32_t(code[3]);
    o.number = code[4];
    o.space = ptx::Space(code[5]), o.order = ptx::Order(code[6]);
    o.bytes = uint8_t(code[7]), o.count = uint8_t(code[8]), o.width = uint8_t(code[9]);
    o.narrow = code[10] != 0;
    const std::string_view operation = entry.name;
    o.aligned = operation == "bar.sync" || operation.find(".aligned") != operation.npos;
    for (int place = 0; place < ptx::kPlaces; ++place) o.at[place] = int32_t(code[11 + place]);
    k.operations.push_back(o);
  }
  k.constants.assign(constants, constants + constant_bytes);
  k.register_bytes = size_t(register_bytes), k.param_bytes = int(param_bytes);
  k.most_threads = int(most_threads), k.registers = int(registers);
  k.sources.clear();
  for (int64_t i = 0; i < source_count; ++i) k.sources[int(lines[i])] = sources[i];
}

int set_device(const char* name, int refuses_cooperation, int nothing_fits, int fills_nothing,
               int dry) {
  const ptx::DeviceLimits* limits = ptx::device_limits(name);
  if (!limits) return 1;
  ptx::Runtime& r = ptx::runtime();
  r.device = *limits, r.dry = dry;
  r.refuses_cooperation = {refuses_cooperation}, r.nothing_fits = nothing_fits;
  r.fills_nothing = {fills_nothing};
  return 0;
}
void configure(uint64_t seed, int schedule, double yields, double delays, double late_copies,
               int races, int fetches, int64_t most_steps) {
  ptx::options = {
      seed,      ptx::Schedule(schedule), yields, delays, late_copies, races != 0, fetches != 0, 0,
      most_steps};
  ptx::clear_fetches();
}
// [3]: see Fetches.
void fetches(int64_t* to) {
  const ptx::Fetches f = ptx::fetches();
  to[0] = f.sectors, to[1] = f.loaded, to[2] = f.late;
}
void add_memory(const void* begin, size_t bytes, const char* name) {
  ptx::add_memory(begin, bytes, name);
}
void clear_memory() { ptx::clear_memory(); }

int run_layer(const Call* c, const How* how, int backward) {
  return guarded([&] { run_call(*c, *how, backward); });
}
int run_products(const Call* c, int gradients, const void* dz) {
  return guarded([&] { run_products_of(*c, gradients, dz); });
}
int run_masks(const Draw* first, const Draw* second) {
  return guarded([&] { masks::sample({*first, *second}, nullptr); });
}
int run_kernel(const char* name, const void* params, const ptx::GridSize* grid) {
  return guarded([&] {
    std::string why;
    if (ptx::launch_kernel(name, params, *grid, why)) throw std::runtime_error("launch: " + why);
  });
}
const char* last_plan() { return planned.c_str(); }
uint64_t last_scratch() { return scratch_bytes; }
// Names of the kernels that were launched since the last call.
const char* launched() {
  static std::string text;
  text.clear();
  for (const auto& name : ptx::runtime().launched) text += name + "\n";
  ptx::runtime().launched.clear();
  return text.c_str();
}
}

}  // namespace brnn::cuda
