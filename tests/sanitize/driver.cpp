// driver.cpp - runs the CPU engine without torch on buffers of exactly the promised sizes, so that
// the address and undefined-behaviour sanitizers see every access past an end. Prints the largest
// difference between instruction sets; the parity tests say whether the numbers are right.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/engine.h"

using namespace brnn;
using brnn::Cell;

namespace {

template <class S>
S make(double v) {
  if constexpr (sizeof(S) == 2) {
    const float f = float(v);
    uint32_t w;
    std::memcpy(&w, &f, 4);
    return S{uint16_t(w >> 16)};
  } else {
    return S(v);
  }
}
template <class S>
double value(S s) {
  if constexpr (sizeof(S) == 2) {
    const uint32_t w = uint32_t(s.bits) << 16;
    float f;
    std::memcpy(&f, &w, 4);
    return f;
  } else {
    return s;
  }
}

std::mt19937 generator(1);

// A heap block of exactly n elements: nothing behind it is ours.
template <class S>
struct Buffer {
  int64_t n;
  std::unique_ptr<S[]> data;
  explicit Buffer(int64_t n, bool random = true) : n(n), data(new S[n]) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < n; ++i) data[i] = make<S>(random ? 0.5 * normal(generator) : NAN);
  }
  S* get() const { return data.get(); }
};

struct Sizes {
  int64_t T, B, I, H;
};

// Real threads: a race in the engine is for the thread sanitizer to see.
const cpu::Host kHost = {[](int64_t count, cpu::Body body, void* context) {
                           const int64_t half = count / 2;
                           std::thread other([=] { body(context, half, count); });
                           if (half) body(context, 0, half);
                           other.join();
                         },
                         3};

struct Problem {
  Cell cell;
  Sizes size;
  int masks;              // sets: 0 none, 1 tied, G untied
  bool reverse, lengths;  // with lengths resets too
};

// A layer with random numbers, and where its results go.
template <class S>
struct Tensors {
  const Problem& p;
  const CellTraits is = traits(p.cell);
  const int64_t T = p.size.T, B = p.size.B, I = p.size.I, H = p.size.H, G = is.gates;
  Buffer<S> x{T * B * I}, h0{B * H}, c0{B * H}, w{G * H * I}, u{G * H * H}, b{G * H}, b2{G * H};
  Buffer<S> y{T * B * H, false}, h_n{B * H, false}, c_n{B * H, false};
  Buffer<S> gates{T * B * G * H, false}, saved{is.has_saved ? T * B * H : 0, false};
  Buffer<S> dy{T * B * H}, dh_n{B * H}, dc_n{B * H};
  Buffer<S> dx{T * B * I, false}, dh0{B * H, false}, dc0{B * H, false};
  Buffer<S> dw{G * H * I, false}, du{G * H * H, false}, db{G * H, false}, db2{G * H, false};
  std::unique_ptr<uint8_t[]> keep_x{new uint8_t[p.masks * B * I]};
  std::unique_ptr<uint8_t[]> keep_h{new uint8_t[p.masks * B * H]};
  std::unique_ptr<int64_t[]> lengths{new int64_t[B]};
  std::unique_ptr<uint8_t[]> resets{new uint8_t[T * B]};

  explicit Tensors(const Problem& problem) : p(problem) {
    for (int64_t i = 0; i < p.masks * B * I; ++i) keep_x[i] = generator() % 2;
    for (int64_t i = 0; i < p.masks * B * H; ++i) keep_h[i] = generator() % 2;
    for (int64_t i = 0; i < B; ++i) lengths[i] = generator() % (T + 1);
    for (int64_t i = 0; i < T * B; ++i) resets[i] = generator() % 3 == 0;
  }

  void fill(Layer<S>& layer) const {
    layer.T = T, layer.B = B, layer.I = I, layer.H = H;
    layer.reverse = p.reverse, layer.lengths = p.lengths ? lengths.get() : nullptr;
    layer.resets = p.lengths ? resets.get() : nullptr;
    if (p.masks) {
      layer.mask_x = {keep_x.get(), p.masks > 1 ? B * I : 0, 2.0};
      layer.mask_h = {keep_h.get(), p.masks > 1 ? B * H : 0, 2.0};
    }
    layer.x = x.get(), layer.h0 = h0.get(), layer.c0 = is.has_c ? c0.get() : nullptr;
    layer.weight_ih = w.get(), layer.weight_hh = u.get();
  }
  Forward<S> forward() const {
    Forward<S> f{};
    fill(f);
    f.bias_ih = b.get(), f.bias_hh = b2.get();
    f.y = y.get(), f.h_n = h_n.get(), f.c_n = is.has_c ? c_n.get() : nullptr;
    f.gates = gates.get(), f.saved = is.has_saved ? saved.get() : nullptr;
    return f;
  }
  Backward<S> backward() const {
    Backward<S> g{};
    fill(g);
    g.y = y.get(), g.gates = gates.get(), g.saved = is.has_saved ? saved.get() : nullptr;
    g.dy = dy.get(), g.dh_n = dh_n.get(), g.dc_n = is.has_c ? dc_n.get() : nullptr;
    g.dx = dx.get(), g.dh0 = dh0.get(), g.dc0 = is.has_c ? dc0.get() : nullptr;
    g.dweight_ih = dw.get(), g.dweight_hh = du.get();
    g.dbias_ih = db.get(), g.dbias_hh = db2.get();
    return g;
  }

  // One after another.
  std::vector<double> results() const {
    std::vector<double> all;
    const auto add = [&](const Buffer<S>& r) {
      for (int64_t i = 0; i < r.n; ++i) all.push_back(value(r.data[i]));
    };
    for (const Buffer<S>* r : {&y, &h_n, &dx, &dh0, &dw, &du, &db, &db2}) add(*r);
    if (is.has_c) add(c_n), add(dc0);
    return all;
  }
};

// NaN wherever the engine reads before it writes.
auto scratch(size_t bytes) {
  std::unique_ptr<char, void (*)(void*)> memory(
      static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), std::free);
  std::memset(memory.get(), 0xff, bytes);
  return memory;
}

// All results of forward and backward.
template <class S>
std::vector<double> run(const cpu::Isa& isa, const Problem& p) {
  generator.seed(7);
  const Tensors<S> tensors(p);
  const auto& engine = isa.engine<S>();
  const Forward<S> f = tensors.forward();
  engine.forward(p.cell, f, kHost,
                 scratch(engine.forward_scratch_bytes(p.cell, f, kHost.threads)).get());
  const Backward<S> g = tensors.backward();
  engine.backward(p.cell, g, kHost,
                  scratch(engine.backward_scratch_bytes(p.cell, g, kHost.threads)).get());
  return tensors.results();
}

// Those that are linked, as -DISAS names them; the first is what the others are compared with.
const cpu::Isa* const kIsas[] = {ISAS};

// Two engines multiply bfloat16 as it is: h, r * h and the gradients of the gates are rounded once
// more than where operands are widened. Wrong results differ by 1.
double allowed(const cpu::Isa* isa, bool halves, double tolerance) {
  const std::string name = isa->name;
  return halves && (name == "avx512_bf16" || name == "amx") ? 2.5 * tolerance : tolerance;
}

template <class S>
bool agrees(const Problem& p, double tolerance) {
  const std::vector<double> expected = run<S>(*kIsas[0], p);
  double largest = 1, worst = 0;
  for (const double e : expected) largest = std::fmax(largest, std::fabs(e));
  const cpu::Engine<S>* last = &kIsas[0]->engine<S>();
  for (const cpu::Isa* isa : kIsas) {
    if (!isa->supported() || &isa->engine<S>() == last) continue;  // shared with a lesser one
    last = &isa->engine<S>();
    const std::vector<double> actual = run<S>(*isa, p);
    for (size_t i = 0; i < actual.size(); ++i) {
      const double difference = std::fabs(actual[i] - expected[i]);
      const double off = difference / largest * tolerance / allowed(isa, sizeof(S) == 2, tolerance);
      worst = std::isnan(difference) ? INFINITY : std::fmax(worst, off);
    }
  }
  for (const double e : expected)
    if (std::isnan(e)) worst = INFINITY;
  if (worst > tolerance)
    std::printf("cell %d T %d B %d I %d H %d masks %d reverse %d lengths %d: %g\n", int(p.cell),
                int(p.size.T), int(p.size.B), int(p.size.I), int(p.size.H), p.masks, p.reverse,
                p.lengths, worst);
  return worst <= tolerance;
}

// Masks into blocks of exactly their size, the same from every instruction set.
bool masks_agree(int64_t count, double p) {
  const auto sample = [&](const cpu::Isa& isa) {
    std::unique_ptr<uint8_t[]> keep(new uint8_t[count]);
    isa.sample_keep(keep.get(), count, 0x123456789ABCDEF, p);
    return std::vector<uint8_t>(keep.get(), keep.get() + count);
  };
  bool agree = true;
  const std::vector<uint8_t> expected = sample(*kIsas[0]);
  for (const cpu::Isa* isa : kIsas) agree &= !isa->supported() || sample(*isa) == expected;
  return agree;
}

}  // namespace

int main() {
  int runs = 0, failures = 0;
  for (const int64_t count : {0, 1, 63, 64, 65, 1000})
    for (const double p : {0.0, 0.3, 1.0}) failures += !masks_agree(count, p), ++runs;
  for (const Cell cell : {Cell::lstm, Cell::gru, Cell::gru_reset_before, Cell::rnn})
    for (const Sizes size : {Sizes{1, 1, 1, 1}, {3, 13, 7, 9}, {4, 13, 33, 17}, {2, 7, 241, 250}})
      for (const int masks : {0, 1, traits(cell).gates})
        for (const bool lengths : {false, true}) {
          const Problem p{cell, size, masks, lengths, lengths};
          failures += !agrees<float>(p, 1e-5);
          failures += !agrees<double>(p, 1e-13);
          failures += !agrees<bfloat16>(p, 2e-2);
          runs += 3;
        }
  // T * B beyond one chunk of the backward pass; weights that the threads share by units; sequences
  // enough for more parts than threads.
  failures += !agrees<float>({Cell::lstm, {40, 33, 5, 19}, 4, false, true}, 1e-5), ++runs;
  for (const Sizes size : {Sizes{3, 4, 9, 400}, {2, 190, 3, 20}})
    for (const Cell cell : {Cell::lstm, Cell::gru_reset_before}) {
      const Problem p{cell, size, traits(cell).gates, false, true};
      failures += !agrees<float>(p, 1e-5);
      failures += !agrees<bfloat16>(p, 2e-2);
      runs += 2;
    }
  std::printf("%d runs, %d failures\n", runs, failures);
  return failures != 0;
}
