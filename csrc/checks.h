// checks.h has every check of an op's arguments, so that they all speak in one wording: "argument:
// expected ..., got ...".
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/plan/plan.h"
#include "layer.h"

namespace brnn::checks {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;  // of a shape that lies elsewhere

template <class Expected, class Actual>
[[noreturn]] void fail(const char* argument, const Expected& expected, const Actual& actual) {
  std::ostringstream message;
  message << argument << ": expected " << expected << ", got " << actual;
  throw std::runtime_error(message.str());
}

// Gives torch's words for its last failure in this thread, or "": it tells them from 2.13 on
// (torch/csrc/stable/c/shim.h), and the symbol is weak because it is not there before.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
inline std::string torch_error() {
  const bool tells = torch_exception_get_what_without_backtrace != nullptr;
  return tells ? torch_exception_get_what_without_backtrace() : "";
}

// Tells whether these words of torch's are of memory that is not there. Those of an illegal access
// to memory are not.
inline bool of_memory(const std::string& words) {
  const auto has = [&](const char* phrase) { return words.find(phrase) != std::string::npos; };
  return has("out of memory") || has("allocate memory") || has("enough memory");
}

// The stable ABI knows no other exception than Python's RuntimeError; where there was no memory,
// ops.py makes a torch.OutOfMemoryError of it, which it knows by the argument's name.
[[noreturn]] inline void no_memory(const std::string& what, const std::string& got = "none") {
  fail("memory", "room for " + what, got);
}

// Throws where torch could not make `what`: for want of memory, or for another reason, which is not
// to be taken for it (who halves a batch must not go on with a device that is lost). Before 2.13
// torch does not say why; `silent` then says what is likely.
enum class Silent { memory, other };
[[noreturn]] inline void torch_failed(const std::string& what, Silent silent) {
  const std::string why = torch_error();
  if (why.empty() ? silent == Silent::memory : of_memory(why))
    no_memory(what, why.empty() ? "none" : why);
  throw std::runtime_error("torch could not make " + what + ": " +
                           (why.empty() ? "before 2.13 it does not say why" : why));
}

inline std::string text(Sizes shape) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << "]";
  return out.str();
}

inline Shape shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Shape(sizes.begin(), sizes.end());
}

constexpr ScalarType scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::bfloat16: return ScalarType::BFloat16;
    case Dtype::float16: return ScalarType::Half;
    case Dtype::float32: return ScalarType::Float;
    case Dtype::float64: return ScalarType::Double;
  }
  return ScalarType::Undefined;
}

inline std::string dtype_name(ScalarType type) {
  std::string name;
  for_each_dtype([&](auto s) {
    if (scalar_type(DtypeOf<decltype(s)>::id) == type) name = DtypeOf<decltype(s)>::name;
  });
  if (!name.empty()) return name;
  switch (type) {
    case ScalarType::Bool: return "bool";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Byte: return "uint8";
    default: return torch::headeronly::toString(type);
  }
}

inline std::string device_name(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  if (t.is_cuda()) return "cuda:" + std::to_string(t.get_device_index());
  if (t.device().type() == torch::headeronly::DeviceType::Meta) return "meta";
  return "device type " + std::to_string(static_cast<int>(t.device().type()));
}

// These refuse what a kernel would read through a null pointer: no tensor, or one whose memory was
// given back (sharding resizes a storage to nothing between two uses).
inline void check_defined(const char* argument, const Tensor& t) {
  if (!t.defined()) fail(argument, "a tensor", "None");
}
inline void check_memory(const char* argument, const Tensor& t) {
  if ((t.is_cpu() || t.is_cuda()) && t.numel() > 0 && t.const_data_ptr() == nullptr)
    fail(argument, "a tensor with memory", "one whose memory was freed");
}

inline bool has_shape(const Tensor& t, Sizes expected) {
  const Sizes sizes = t.sizes();
  return std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end());
}

inline void check_shape(const char* argument, const Tensor& t, Sizes expected,
                        const char* letters) {
  if (!has_shape(t, expected))
    fail(argument, "shape " + text(expected) + " (" + letters + ")", text(shape_of(t)));
}

inline void check_dtype(const char* argument, const Tensor& t, ScalarType expected,
                        const char* why) {
  if (t.scalar_type() != expected)
    fail(argument, "dtype " + dtype_name(expected) + why, dtype_name(t.scalar_type()));
}

inline void check_device(const char* argument, const Tensor& t, const Tensor& x) {
  const bool same = t.is_cpu() ? x.is_cpu() : t.device() == x.device();  // a CPU's index: none, 0
  if (!same) fail(argument, "device " + device_name(x) + " as x", device_name(t));
}

// This checks a floating-point tensor of a layer: device, dtype and shape.
inline void check_tensor(const char* argument, const Tensor& t, const Tensor& x, Sizes expected,
                         const char* letters) {
  check_defined(argument, t);
  check_device(argument, t, x);
  check_dtype(argument, t, x.scalar_type(), " as x");
  check_shape(argument, t, expected, letters);
  check_memory(argument, t);
}

inline void check_tensor(const char* argument, const OptionalTensor& t, const Tensor& x,
                         Sizes expected, const char* letters) {
  if (t) check_tensor(argument, *t, x, expected, letters);
}

inline void check_keep(const char* argument, const OptionalTensor& keep, const Tensor& x, int64_t G,
                       int64_t K, const char* letters) {
  if (!keep) return;
  check_device(argument, *keep, x);
  check_dtype(argument, *keep, ScalarType::Bool, "");
  const int64_t untied[] = {G, x.size(1), K}, tied[] = {1, x.size(1), K};
  if (!has_shape(*keep, untied) && !has_shape(*keep, tied)) {
    const std::string either = G > 1 ? text(untied) + " or " : "";
    fail(argument, "shape " + either + text(tied) + " (" + letters + ")", text(shape_of(*keep)));
  }
  check_memory(argument, *keep);
}

inline void check_lengths(const OptionalTensor& lengths, const Tensor& x) {
  if (!lengths) return;
  check_device("lengths", *lengths, x);
  check_dtype("lengths", *lengths, ScalarType::Long, "");
  check_shape("lengths", *lengths, {x.size(1)}, "B");
  check_memory("lengths", *lengths);
  if (!lengths->is_cpu()) return;  // reading them elsewhere would wait for the device
  const auto* data = static_cast<const int64_t*>(lengths->const_data_ptr());
  for (int64_t b = 0; b < x.size(1); ++b) {
    const int64_t length = data[b * lengths->stride(0)];
    if (length < 0 || length > x.size(0))
      fail("lengths", "values from 0 to " + std::to_string(x.size(0)) + " (T)", length);
  }
}

inline void check_resets(const OptionalTensor& resets, const Tensor& x) {
  if (!resets) return;
  check_device("resets", *resets, x);
  check_dtype("resets", *resets, ScalarType::Bool, "");
  check_shape("resets", *resets, {x.size(0), x.size(1)}, "T, B");
  check_memory("resets", *resets);
}

// These check the arguments of ops that draw masks.
inline void check_seeds(const char* name, const Tensor& seeds, int64_t count) {
  check_dtype(name, seeds, ScalarType::Long, "");
  check_shape(name, seeds, {count}, "one a mask");
  check_memory(name, seeds);
}
inline void check_count(const char* name, int64_t count) {
  if (count < 0) fail(name, "at least 0", count);
}
inline void check_probability(const char* name, double p) {
  if (!(p >= 0 && p <= 1)) fail(name, "a probability of dropping in [0, 1]", p);
}

inline Cell cell_of(const std::string& name) {
  std::optional<Cell> found;
  std::string names;
  for_each_cell([&]<template <class> class CellOf>() {
    constexpr CellTraits kCell = traits_of<CellOf>();
    if (name == kCell.name) found = kCell.id;
    names += (names.empty() ? "" : ", ") + std::string(kCell.name);
  });
  if (!found) fail("cell", "one of " + names, "'" + name + "'");
  return *found;
}

// Lists the storage types that a device has, "float32, float64 or bfloat16", `last` before the
// last.
inline std::string dtype_names(bool on_cpu, const char* last = " or ") {
  std::vector<std::string> names;
  for_each_dtype([&](auto s) {
    if (!on_cpu || DtypeOf<decltype(s)>::on_cpu) names.push_back(DtypeOf<decltype(s)>::name);
  });
  std::string list = names[0];
  for (size_t i = 1; i < names.size(); ++i) list += (i + 1 < names.size() ? ", " : last) + names[i];
  return list;
}

// Calls use(S{}) for the storage type of that name, one that the device has.
template <class Use>
void with_dtype(const std::string& name, bool on_cpu, const Use& use) {
  bool found = false;
  for_each_dtype([&](auto s) {
    using S = decltype(s);
    if (name == DtypeOf<S>::name && (!on_cpu || DtypeOf<S>::on_cpu)) use(s), found = true;
  });
  if (!found) fail("dtype", dtype_names(on_cpu), "'" + name + "'");
}

// These check the sizes that a plan is asked for, and that a kernel can count its rows, which are
// pairs of a time step and a sequence.
inline void check_size(const char* name, int64_t size) {
  if (size < 1) fail(name, "at least 1", size);
}
inline void check_sizes(int64_t T, int64_t B, int64_t I, int64_t H) {
  check_size("T", T), check_size("B", B), check_size("I", I), check_size("H", H);
}
inline void check_cuda_rows(const char* name, int64_t T, int64_t B) {
  constexpr int64_t kRows = int64_t{1} << 29;  // 32 bits, less a few that loaders use
  if (B > 0 && T > (kRows - 1) / B)
    fail(name, "T * B below 2^29 on CUDA", std::to_string(T) + " * " + std::to_string(B));
}

// This checks what every layer takes, whatever engine runs it. c0 is there where the cell has a c.
inline void check_layer(int64_t G, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                        const Tensor& weight_ih, const Tensor& weight_hh,
                        const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                        const OptionalTensor& keep_x, const OptionalTensor& keep_h,
                        const OptionalTensor& lengths, const OptionalTensor& resets) {
  check_defined("x", x);
  check_defined("h0", h0);
  if (x.dim() != 3) fail("x", "3 dimensions (T, B, I)", text(shape_of(x)));
  if (x.size(0) < 1) fail("x", "a sequence of at least 1 step (T, B, I)", text(shape_of(x)));
  if (x.size(2) < 1) fail("x", "an input size of at least 1 (T, B, I)", text(shape_of(x)));
  if (h0.dim() != 2) fail("h0", "2 dimensions (B, H)", text(shape_of(h0)));
  check_memory("x", x);
  const int64_t B = x.size(1), I = x.size(2), H = h0.size(1);
  if (H < 1) fail("h0", "a hidden size of at least 1 (B, H)", text(shape_of(h0)));
  check_tensor("h0", h0, x, {B, H}, "B, H");
  check_tensor("c0", c0, x, {B, H}, "B, H");
  check_tensor("weight_ih", weight_ih, x, {G * H, I}, "G*H, I");
  check_tensor("weight_hh", weight_hh, x, {G * H, H}, "G*H, H");
  if (bias_ih.has_value() != bias_hh.has_value())
    fail(bias_ih ? "bias_hh" : "bias_ih", "both biases or neither", "None");
  check_tensor("bias_ih", bias_ih, x, {G * H}, "G*H");
  check_tensor("bias_hh", bias_hh, x, {G * H}, "G*H");
  check_keep("keep_x", keep_x, x, G, I, "G or 1, B, I");
  check_keep("keep_h", keep_h, x, G, H, "G or 1, B, H");
  check_lengths(lengths, x);
  check_resets(resets, x);
}

// This checks that a device has x's storage type.
inline void check_storage(const Tensor& x, bool on_cpu) {
  bool found = false;
  for_each_dtype([&](auto s) {
    using D = DtypeOf<decltype(s)>;
    if (x.scalar_type() == scalar_type(D::id)) found = !on_cpu || D::on_cpu;
  });
  const char* const where = on_cpu ? " on the CPU" : " on CUDA";
  if (!found) fail("x", "dtype " + dtype_names(on_cpu) + where, dtype_name(x.scalar_type()));
}

// This checks what the CPU engine can run.
inline void check_cpu_engine(const Tensor& x, const std::string& engine) {
  if (engine != "auto" && engine != "cpu")
    fail("engine", "auto or cpu for x on the CPU", "'" + engine + "'");
  check_storage(x, true);
}

// This checks what the CUDA engines can run.
inline void check_cuda_engine(const Tensor& x, const std::string& engine) {
  cuda::engine_of(engine);
  check_storage(x, false);
  check_cuda_rows("x", x.size(0), x.size(1));
}

}  // namespace brnn::checks
