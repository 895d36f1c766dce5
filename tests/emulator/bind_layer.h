// bind_layer.h - how a binding takes a layer from layer.py and what it runs it with: poisoned
// scratch memory, and products as plain loops.
#pragma once

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "cuda/stepwise/elementwise.cuh"

namespace brnn::testing {

// Sizes, flags and addresses by the names of layer.h; None is nullptr. The race detector watches
// the tensors while this lives.
class Fields {
 public:
  explicit Fields(py::dict fields) : fields_(std::move(fields)) {}
  Fields(const Fields&) = delete;
  ~Fields() {
    for (const void* memory : watched_) emu::unwatch(memory);
  }

  int64_t number(const char* name) const { return fields_[name].cast<int64_t>(); }
  template <class T>
  void tensor(const char* name, int64_t count, T*& to) const {
    const py::object value = fields_[name];
    to = value.is_none() ? nullptr : reinterpret_cast<T*>(value.cast<uintptr_t>());
    if (!to || !count) return;
    emu::watch(to, count * sizeof(T), name);
    watched_.push_back(to);
  }
  Mask mask(const char* keep, int64_t count, const char* gate_stride, const char* scale) const {
    Mask mask;
    mask.gate_stride = number(gate_stride);
    mask.scale = fields_[scale].cast<double>();
    tensor(keep, count, mask.keep);
    return mask;
  }

 private:
  py::dict fields_;
  mutable std::vector<const void*> watched_;
};

// Counts of numbers in the tensors of a layer.
struct Counts {
  int64_t G, TBH, BH;

  template <class S>
  Counts(const Fields& f, const Layer<S>& l)
      : G(f.number("G")), TBH(l.T * l.B * l.H), BH(l.B * l.H) {}
};

template <class S>
void read_layer(const Fields& f, Layer<S>& l) {
  l.T = f.number("T"), l.B = f.number("B"), l.I = f.number("I"), l.H = f.number("H");
  l.reverse = f.number("reverse");
  const Counts n(f, l);
  f.tensor("lengths", l.B, l.lengths);
  const int64_t gates_x = f.number("gate_stride_x") ? n.G : 1;
  const int64_t gates_h = f.number("gate_stride_h") ? n.G : 1;
  l.mask_x = f.mask("keep_x", gates_x * l.B * l.I, "gate_stride_x", "scale_x");
  l.mask_h = f.mask("keep_h", gates_h * n.BH, "gate_stride_h", "scale_h");
  f.tensor("x", l.T * l.B * l.I, l.x);
  f.tensor("h0", n.BH, l.h0);
  f.tensor("c0", n.BH, l.c0);
  f.tensor("weight_ih", n.G * l.H * l.I, l.weight_ih);
  f.tensor("weight_hh", n.G * l.H * l.H, l.weight_hh);
}

template <class S>
Forward<S> forward_layer(const Fields& f) {
  Forward<S> l{};
  read_layer(f, l);
  const Counts n(f, l);
  f.tensor("bias_ih", n.G * l.H, l.bias_ih);
  f.tensor("bias_hh", n.G * l.H, l.bias_hh);
  f.tensor("y", n.TBH, l.y);
  f.tensor("h_n", n.BH, l.h_n);
  f.tensor("c_n", n.BH, l.c_n);
  f.tensor("gates", n.G * n.TBH, l.gates);
  f.tensor("saved", n.TBH, l.saved);
  return l;
}

template <class S>
Backward<S> backward_layer(const Fields& f) {
  Backward<S> l{};
  read_layer(f, l);
  const Counts n(f, l);
  f.tensor("y", n.TBH, l.y);
  f.tensor("gates", n.G * n.TBH, l.gates);
  f.tensor("saved", n.TBH, l.saved);
  f.tensor("dy", n.TBH, l.dy);
  f.tensor("dh_n", n.BH, l.dh_n);
  f.tensor("dc_n", n.BH, l.dc_n);
  f.tensor("dx", l.T * l.B * l.I, l.dx);
  f.tensor("dh0", n.BH, l.dh0);
  f.tensor("dc0", n.BH, l.dc0);
  f.tensor("dweight_ih", n.G * l.H * l.I, l.dweight_ih);
  f.tensor("dweight_hh", n.G * l.H * l.H, l.dweight_hh);
  f.tensor("dbias_ih", n.G * l.H, l.dbias_ih);
  f.tensor("dbias_hh", n.G * l.H, l.dbias_hh);
  return l;
}

inline Cell cell_of(const std::string& name) {
  if (name == "lstm") return Cell::lstm;
  if (name == "gru") return Cell::gru;
  if (name == "gru_reset_before") return Cell::gru_reset_before;
  throw std::invalid_argument("cell " + name);
}

// f called with a number of the storage type of that name.
template <class F>
auto with_type(const std::string& name, const F& f) {
  if (name == "bfloat16") return f(bfloat16{});
  if (name == "float16") return f(float16{});
  if (name == "float32") return f(float{});
  if (name == "float64") return f(double{});
  throw std::invalid_argument("dtype " + name);
}

// Memory of which every number is NaN, with an end that must stay so.
class Block {
 public:
  explicit Block(size_t bytes, const std::string& name = "scratch")
      : bytes_(bytes), memory_(new unsigned char[bytes + 2 * kGuard]) {
    std::memset(memory_.get(), 0xFF, bytes + 2 * kGuard);
    if (bytes) emu::watch(data(), bytes, name);
  }
  ~Block() {
    if (bytes_) emu::unwatch(data());
  }
  void* data() const {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_.get()) + kGuard - 1) /
                                   kGuard * kGuard);
  }
  void check() const {
    const auto* end = static_cast<const unsigned char*>(data()) + bytes_;
    for (size_t i = 0; i < kGuard; ++i)
      if (end[i] != 0xFF) throw std::runtime_error("a write past the end of scratch memory");
  }

 private:
  static constexpr size_t kGuard = 256;
  size_t bytes_;
  std::unique_ptr<unsigned char[]> memory_;
};

// ---- products

template <class S>
void multiply_as(const cuda::Product& p) {
  using cuda::elementwise::Compute;
  const auto at = [](const cuda::Matrix& m, int64_t batch, int64_t row, int64_t column) {
    return static_cast<S*>(const_cast<void*>(m.data)) + batch * m.batch_stride +
           row * m.row_stride + column * m.column_stride;
  };
  for (int64_t i = 0; i < p.batch; ++i)
    for (int64_t m = 0; m < p.M; ++m)
      for (int64_t n = 0; n < p.N; ++n) {
        S* to = at(p.c, i, m, n);
        Compute<S> sum = p.accumulate ? cuda::elementwise::wide(*to) : Compute<S>(0);
        for (int64_t k = 0; k < p.K; ++k)
          sum += cuda::elementwise::wide(*at(p.a, i, m, k)) *
                 cuda::elementwise::wide(*at(p.b, i, k, n));
        *to = cuda::elementwise::narrow<S>(sum);
      }
}

// context: an int64_t that counts the products, or nullptr.
inline void multiply(void* context, const cuda::Product& p) {
  if (p.c.column_stride != 1) throw std::invalid_argument("c: expected dense rows");
  if (context) ++*static_cast<int64_t*>(context);
  switch (p.type) {
    case cuda::Type::bfloat16: return multiply_as<bfloat16>(p);
    case cuda::Type::float16: return multiply_as<float16>(p);
    case cuda::Type::float32: return multiply_as<float>(p);
    case cuda::Type::float64: return multiply_as<double>(p);
  }
}

}  // namespace brnn::testing
