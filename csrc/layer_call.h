// layer_call.h leads from the tensors of an op to the plain structs of layer.h and back, once for
// every backend: it checks, makes dense copies, allocates results and passes pointers. Then the
// backend runs.
//
// A Backend (cpu/torch_host.h, cuda/torch_host.h) has
//   static constexpr uintptr_t alignment;                  of every tensor that it reads
//   template <class S> static constexpr bool has;          whether it has storage type S
//   static void check(const Tensor& x, const Options&);    whether it can run this
//   Backend(Cell, const Tensor& x, const Options&);        for the time of one call: device guard
//   template <class S> void run(const Forward<S>&) const;  and the same for Backward<S>
//   static void draw(const Tensor& seeds, const Draw&, const Draw&);  both masks of a layer
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>
#include <vector>

#include "checks.h"
#include "layer.h"
#include "masks.h"

namespace brnn {

using checks::OptionalTensor;
using checks::ScalarType;
using torch::stable::Tensor;

// Options are what an op says beside its tensors.
struct Options {
  double scale_x, scale_h;
  bool reverse;
  bool save;           // save what backward needs; always true in backward
  bool bias, need_dx;  // backward only: which gradients are wanted
  bool allow_tf32;     // float32 may round operands of products to 10 bits; of CUDA only
  std::string engine;
};

// c0 exists where the cell has a c, biases for forward only.
struct LayerTensors {
  Tensor x, h0;
  OptionalTensor c0;
  Tensor weight_ih, weight_hh;
  OptionalTensor bias_ih, bias_hh, keep_x, keep_h, lengths, resets;
};

// Backward takes these beside them. cells.h says what `saved` is.
struct BackwardTensors {
  OptionalTensor dy, dh_n, dc_n;
  Tensor y, gates;
  OptionalTensor saved;
};

struct ForwardResults {
  Tensor y, h_n;
  OptionalTensor c_n;
  Tensor gates, saved;
};

struct BackwardResults {
  Tensor dx, dh0;
  OptionalTensor dc0;
  Tensor dweight_ih, dweight_hh, dbias_ih, dbias_hh;
};

// Returns make(), which allocates a tensor of that shape.
template <class Make>
Tensor allocated(const checks::Shape& shape, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    checks::torch_failed("a tensor of shape " + checks::text(shape), checks::Silent::memory);
  }
}

// Returns t itself, or a copy where it is strided or begins off the backend's alignment, as a slice
// may.
template <class Backend>
Tensor dense(const Tensor& t) {
  const auto copy = [&](const auto& make) {
    return allocated(checks::shape_of(t), [&] { return make(t); });
  };
  if (!t.is_contiguous()) return copy([](const Tensor& t) { return torch::stable::contiguous(t); });
  const auto address = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const bool aligned = address % Backend::alignment == 0;
  return aligned ? t : copy([](const Tensor& t) { return torch::stable::clone(t); });
}
template <class Backend>
OptionalTensor dense(const OptionalTensor& t) {
  return t ? OptionalTensor(dense<Backend>(*t)) : t;
}
template <class Backend>
LayerTensors dense(const LayerTensors& t) {
  const auto copy = [](const auto& tensor) { return dense<Backend>(tensor); };
  return {.x = copy(t.x),
          .h0 = copy(t.h0),
          .c0 = copy(t.c0),
          .weight_ih = copy(t.weight_ih),
          .weight_hh = copy(t.weight_hh),
          .bias_ih = copy(t.bias_ih),
          .bias_hh = copy(t.bias_hh),
          .keep_x = copy(t.keep_x),
          .keep_h = copy(t.keep_h),
          .lengths = copy(t.lengths),
          .resets = copy(t.resets)};
}
template <class Backend>
BackwardTensors dense(const BackwardTensors& t) {
  const auto copy = [](const auto& tensor) { return dense<Backend>(tensor); };
  return {.dy = copy(t.dy),
          .dh_n = copy(t.dh_n),
          .dc_n = copy(t.dc_n),
          .y = copy(t.y),
          .gates = copy(t.gates),
          .saved = copy(t.saved)};
}

template <class S>
const S* read(const Tensor& t) {
  return static_cast<const S*>(t.const_data_ptr());
}
template <class S>
const S* read(const OptionalTensor& t) {
  return t ? read<S>(*t) : nullptr;
}
// Returns nullptr for a result that is not wanted, which is an empty tensor.
template <class S>
S* write(const Tensor& t) {
  return t.numel() ? static_cast<S*>(t.mutable_data_ptr()) : nullptr;
}
template <class S>
S* write(const OptionalTensor& t) {
  return t ? write<S>(*t) : nullptr;
}

// Returns a tensor on the device of `like`, of a dtype as torch's C functions number them. It comes
// from one of them, because torch::stable::new_empty looks for its op by name at every call.
inline Tensor uninitialized(const Tensor& like, const checks::Shape& shape, int32_t dtype) {
  checks::Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;)  // unsigned, since what is too large is torch's to say
    strides[i - 1] = static_cast<int64_t>(static_cast<uint64_t>(strides[i]) *
                                          static_cast<uint64_t>(std::max<int64_t>(shape[i], 1)));
  const auto device = like.device();
  return allocated(shape, [&] {
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(shape.size()), shape.data(), strides.data(), dtype,
        static_cast<int32_t>(device.type()), device.index(), &handle));
    return Tensor(handle);
  });
}
inline Tensor result(const Tensor& like, std::vector<int64_t> shape) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return uninitialized(like, shape, dtype);
}
inline Tensor zeros(const Tensor& like, std::vector<int64_t> shape) {
  return allocated(shape, [&] { return torch::stable::new_zeros(like, shape); });
}

inline Mask mask_of(const OptionalTensor& keep, double scale) {
  if (!keep) return {.scale = scale};
  const bool untied = keep->size(0) > 1;
  return {.keep = read<uint8_t>(*keep),
          .gate_stride = untied ? keep->size(1) * keep->size(2) : 0,
          .scale = scale};
}

template <class S>
void fill(Layer<S>& layer, const LayerTensors& t, const Options& options) {
  layer.T = t.x.size(0), layer.B = t.x.size(1), layer.I = t.x.size(2), layer.H = t.h0.size(1);
  layer.reverse = options.reverse;
  layer.lengths = read<int64_t>(t.lengths);
  layer.resets = read<uint8_t>(t.resets);
  layer.mask_x = mask_of(t.keep_x, options.scale_x);
  layer.mask_h = mask_of(t.keep_h, options.scale_h);
  layer.x = read<S>(t.x);
  layer.h0 = read<S>(t.h0), layer.c0 = read<S>(t.c0);
  layer.weight_ih = read<S>(t.weight_ih), layer.weight_hh = read<S>(t.weight_hh);
}

// Calls use(S{}) for the storage type of x, which the backend has: Backend::check has seen to that.
template <class Backend, class Use>
void with_storage_type(const Tensor& x, const Use& use) {
  for_each_dtype([&](auto s) {
    if constexpr (Backend::template has<decltype(s)>)
      if (x.scalar_type() == checks::scalar_type(DtypeOf<decltype(s)>::id)) use(s);
  });
}

inline void check_layer(Cell cell, const LayerTensors& t) {
  checks::check_layer(traits(cell).gates, t.x, t.h0, t.c0, t.weight_ih, t.weight_hh, t.bias_ih,
                      t.bias_hh, t.keep_x, t.keep_h, t.lengths, t.resets);
}

template <class Backend>
ForwardResults forward(Cell cell, const LayerTensors& given, const Options& options) {
  check_layer(cell, given);
  Backend::check(given.x, options);
  const Tensor& x = given.x;
  const CellTraits is = traits(cell);
  const int64_t T = x.size(0), B = x.size(1), H = given.h0.size(1), GH = is.gates * H;
  const int64_t steps = options.save ? T : 0;
  const int64_t saved = is.has_saved ? steps : 0;
  const Backend backend(cell, x, options);
  ForwardResults r{.y = result(x, {T, B, H}),
                   .h_n = result(x, {B, H}),
                   .c_n = is.has_c ? OptionalTensor(result(x, {B, H})) : std::nullopt,
                   .gates = result(x, {steps, B, GH}),
                   .saved = result(x, {saved, B, H})};
  if (B == 0) return r;
  const LayerTensors t = dense<Backend>(given);
  with_storage_type<Backend>(x, [&](auto s) {
    using S = decltype(s);
    Forward<S> layer{};
    fill(layer, t, options);
    layer.bias_ih = read<S>(t.bias_ih), layer.bias_hh = read<S>(t.bias_hh);
    layer.y = write<S>(r.y), layer.h_n = write<S>(r.h_n), layer.c_n = write<S>(r.c_n);
    layer.gates = write<S>(r.gates), layer.saved = write<S>(r.saved);
    backend.run(layer);
  });
  return r;
}

inline void check_backward(Cell cell, const LayerTensors& t, const BackwardTensors& given) {
  check_layer(cell, t);
  const int64_t T = t.x.size(0), B = t.x.size(1), H = t.h0.size(1);
  const CellTraits is = traits(cell);
  checks::check_tensor("dy", given.dy, t.x, {T, B, H}, "T, B, H");
  checks::check_tensor("dh_n", given.dh_n, t.x, {B, H}, "B, H");
  checks::check_tensor("dc_n", given.dc_n, t.x, {B, H}, "B, H");
  checks::check_tensor("y", given.y, t.x, {T, B, H}, "T, B, H");
  checks::check_tensor("gates", given.gates, t.x, {T, B, is.gates * H}, "T, B, G*H");
  const int64_t saved = is.has_saved ? T : 0;
  checks::check_tensor(is.saved_name, given.saved, t.x, {saved, B, H}, "T, B, H");
}

template <class Backend>
BackwardResults backward(Cell cell, const LayerTensors& given, const BackwardTensors& given_back,
                         const Options& options) {
  check_backward(cell, given, given_back);
  Backend::check(given.x, options);
  const Tensor& x = given.x;
  const int64_t T = x.size(0), B = x.size(1), I = x.size(2), H = given.h0.size(1);
  const CellTraits is = traits(cell);
  const int64_t GH = is.gates * H, bias_rows = options.bias ? GH : 0;
  const Backend backend(cell, x, options);
  const auto make = B == 0 ? zeros : result;  // no sequence, no gradient
  BackwardResults r{.dx = options.need_dx ? make(x, {T, B, I}) : make(x, {0}),
                    .dh0 = make(x, {B, H}),
                    .dc0 = is.has_c ? OptionalTensor(make(x, {B, H})) : std::nullopt,
                    .dweight_ih = make(x, {GH, I}),
                    .dweight_hh = make(x, {GH, H}),
                    .dbias_ih = make(x, {bias_rows}),
                    .dbias_hh = make(x, {bias_rows})};
  if (B == 0) return r;
  const LayerTensors t = dense<Backend>(given);
  const BackwardTensors b = dense<Backend>(given_back);
  with_storage_type<Backend>(x, [&](auto s) {
    using S = decltype(s);
    Backward<S> layer{};
    fill(layer, t, options);
    layer.y = read<S>(b.y), layer.gates = read<S>(b.gates), layer.saved = read<S>(b.saved);
    layer.dy = read<S>(b.dy), layer.dh_n = read<S>(b.dh_n), layer.dc_n = read<S>(b.dc_n);
    layer.dx = write<S>(r.dx), layer.dh0 = write<S>(r.dh0), layer.dc0 = write<S>(r.dc0);
    layer.dweight_ih = write<S>(r.dweight_ih), layer.dweight_hh = write<S>(r.dweight_hh);
    layer.dbias_ih = write<S>(r.dbias_ih), layer.dbias_hh = write<S>(r.dbias_hh);
    backend.run(layer);
  });
  return r;
}

}  // namespace brnn
