// driver.cpp calls the CPU engine once, without torch: driver IN OUT. IN says what to do and holds
// the tensors, OUT gets the results (emulated.py writes the one and reads the other).
//
// Results and scratch are NaN before the call, so that what is not written shows. (Accesses past an
// end are for the sanitizers of tests/sanitize: that code is the same.)
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/engine.h"

using namespace brnn;

namespace {

// These stand first in IN; emulated.py has them in the same order. what: 0 forward, 1 backward, 2
// draws a mask of T places from the seed B, where scale_x is the probability of dropping.
struct Head {
  int64_t what, dtype, cell, T, B, I, H, reverse, threads, stride_x, stride_h;
  double scale_x, scale_h;
};

using Block = std::unique_ptr<char, void (*)(void*)>;

// Gives memory that is NaN in every dtype, at the alignment that the engine's host promises.
Block poisoned(size_t bytes) {
  Block block(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), std::free);
  std::memset(block.get(), 0xff, bytes);
  return block;
}

class File {
 public:
  File(const char* path, const char* mode) : file_(std::fopen(path, mode)) {
    if (!file_) throw std::runtime_error("cannot open " + std::string(path));
  }
  ~File() { std::fclose(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void read(void* to, size_t bytes) const {
    if (std::fread(to, 1, bytes, file_) != bytes) throw std::runtime_error("IN ends too early");
  }
  void write(const void* from, size_t bytes) const {
    if (std::fwrite(from, 1, bytes, file_) != bytes) throw std::runtime_error("cannot write OUT");
  }

 private:
  std::FILE* const file_;
};

// Hands out the tensors of IN one after the other, and writes the results among them in the end.
class Tensors {
 public:
  explicit Tensors(const File& in) : in_(in) {}

  // Each has its size in bytes before it; of size 0 it is not there.
  template <class S>
  const S* given() {
    const int64_t bytes = size();
    if (!bytes) return nullptr;
    blocks_.push_back(poisoned(bytes));
    in_.read(blocks_.back().get(), bytes);
    return reinterpret_cast<const S*>(blocks_.back().get());
  }
  template <class S>
  S* result() {
    const int64_t bytes = size();
    if (!bytes) return nullptr;
    results_.push_back({poisoned(bytes), bytes});
    return reinterpret_cast<S*>(results_.back().block.get());
  }
  void write(const File& out) const {
    for (const Result& result : results_) out.write(result.block.get(), result.bytes);
  }

 private:
  struct Result {
    Block block;
    int64_t bytes;
  };
  int64_t size() const {
    int64_t bytes;
    in_.read(&bytes, sizeof bytes);
    return bytes;
  }

  const File& in_;
  std::vector<Block> blocks_;
  std::vector<Result> results_;
};

template <int kThreads>
void parallel_for(int64_t count, cpu::Body body, void* context) {
  std::vector<std::thread> others;
  for (int i = 1; i < kThreads; ++i)
    others.emplace_back([=] { body(context, count * i / kThreads, count * (i + 1) / kThreads); });
  body(context, 0, count / kThreads);
  for (std::thread& other : others) other.join();
}

cpu::Host host(int64_t threads) {
  switch (threads) {
    case 1: return {parallel_for<1>, 1};
    case 2: return {parallel_for<2>, 2};
    case 3: return {parallel_for<3>, 3};
    case 8: return {parallel_for<8>, 8};
  }
  throw std::runtime_error("threads: expected 1, 2, 3 or 8, got " + std::to_string(threads));
}

template <class S>
void fill(const Head& head, Tensors& tensors, Layer<S>& layer) {
  layer.T = head.T, layer.B = head.B, layer.I = head.I, layer.H = head.H;
  layer.reverse = head.reverse;
  layer.lengths = tensors.given<int64_t>(), layer.resets = tensors.given<uint8_t>();
  layer.mask_x = {tensors.given<uint8_t>(), head.stride_x, head.scale_x};
  layer.mask_h = {tensors.given<uint8_t>(), head.stride_h, head.scale_h};
  layer.x = tensors.given<S>(), layer.h0 = tensors.given<S>(), layer.c0 = tensors.given<S>();
  layer.weight_ih = tensors.given<S>(), layer.weight_hh = tensors.given<S>();
}

template <class S>
void forward(const Head& head, Tensors& tensors) {
  Forward<S> layer{};
  fill(head, tensors, layer);
  layer.bias_ih = tensors.given<S>(), layer.bias_hh = tensors.given<S>();
  layer.y = tensors.result<S>(), layer.h_n = tensors.result<S>(), layer.c_n = tensors.result<S>();
  layer.gates = tensors.result<S>(), layer.saved = tensors.result<S>();
  const auto& engine = cpu::isa().engine<S>();
  const Cell cell = static_cast<Cell>(head.cell);
  const cpu::Host threads = host(head.threads);
  const Block scratch = poisoned(engine.forward_scratch_bytes(cell, layer, threads.threads));
  engine.forward(cell, layer, threads, scratch.get());
}

template <class S>
void backward(const Head& head, Tensors& tensors) {
  Backward<S> layer{};
  fill(head, tensors, layer);
  layer.y = tensors.given<S>(), layer.gates = tensors.given<S>(), layer.saved = tensors.given<S>();
  layer.dy = tensors.given<S>(), layer.dh_n = tensors.given<S>(), layer.dc_n = tensors.given<S>();
  layer.dx = tensors.result<S>(), layer.dh0 = tensors.result<S>();
  layer.dc0 = tensors.result<S>();
  layer.dweight_ih = tensors.result<S>(), layer.dweight_hh = tensors.result<S>();
  layer.dbias_ih = tensors.result<S>(), layer.dbias_hh = tensors.result<S>();
  const auto& engine = cpu::isa().engine<S>();
  const Cell cell = static_cast<Cell>(head.cell);
  const cpu::Host threads = host(head.threads);
  const Block scratch = poisoned(engine.backward_scratch_bytes(cell, layer, threads.threads));
  engine.backward(cell, layer, threads, scratch.get());
}

template <class S>
void run(const Head& head, Tensors& tensors) {
  head.what == 1 ? backward<S>(head, tensors) : forward<S>(head, tensors);
}

void call(const char* in_path, const char* out_path) {
  const File in(in_path, "rb");
  Head head;
  in.read(&head, sizeof head);
  Tensors tensors(in);
  if (head.what == 2) {
    cpu::isa().sample_keep(tensors.result<uint8_t>(), head.T, static_cast<uint64_t>(head.B),
                           head.scale_x);
    return tensors.write(File(out_path, "wb"));
  }
  switch (static_cast<Dtype>(head.dtype)) {
    case Dtype::float32: run<float>(head, tensors); break;
    case Dtype::float64: run<double>(head, tensors); break;
    case Dtype::bfloat16: run<bfloat16>(head, tensors); break;
    default: throw std::runtime_error("dtype: expected one of the engine's");
  }
  tensors.write(File(out_path, "wb"));
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc == 3) call(argv[1], argv[2]);
  std::puts(cpu::isa().name);
} catch (const std::exception& error) {
  std::fprintf(stderr, "driver: %s\n", error.what());
  return 1;
}
