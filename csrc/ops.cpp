// ops.cpp - schemas of torch.ops.bayesrnn and their dispatch to a backend. Nothing is computed
// here: arguments are checked, results and scratch allocated, a plain struct filled and handed
// over.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <tuple>

#include "checks.h"
#include "cpu/engine.h"

namespace brnn {
namespace {

using checks::OptionalTensor;
using checks::ScalarType;
using torch::stable::Tensor;

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
OptionalTensor dense(const OptionalTensor& t) { return t ? OptionalTensor(dense(*t)) : t; }

template <class S>
const S* read(const Tensor& t) {
  return static_cast<const S*>(t.const_data_ptr());
}
template <class S>
const S* read(const OptionalTensor& t) {
  return t ? read<S>(*t) : nullptr;
}
// nullptr for a result that is not wanted, which is an empty tensor.
template <class S>
S* write(const Tensor& t) {
  return t.numel() ? static_cast<S*>(t.mutable_data_ptr()) : nullptr;
}
template <class S>
S* write(const OptionalTensor& t) {
  return t ? write<S>(*t) : nullptr;
}

Tensor result(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, shape);
}
Tensor zeros(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_zeros(like, shape);
}

Mask mask_of(const OptionalTensor& keep, double scale) {
  if (!keep) return {nullptr, 0, scale};
  const bool untied = keep->size(0) > 1;
  return {read<uint8_t>(*keep), untied ? keep->size(1) * keep->size(2) : 0, scale};
}

// The arguments that forward and backward share, dense. Keeps copies alive while an engine runs.
struct Inputs {
  Tensor x, h0;
  OptionalTensor c0;
  Tensor weight_ih, weight_hh;
  OptionalTensor keep_x, keep_h, lengths;

  Inputs(const Tensor& x, const Tensor& h0, const OptionalTensor& c0, const Tensor& weight_ih,
         const Tensor& weight_hh, const OptionalTensor& keep_x, const OptionalTensor& keep_h,
         const OptionalTensor& lengths)
      : x(dense(x)),
        h0(dense(h0)),
        c0(dense(c0)),
        weight_ih(dense(weight_ih)),
        weight_hh(dense(weight_hh)),
        keep_x(dense(keep_x)),
        keep_h(dense(keep_h)),
        lengths(dense(lengths)) {}

  template <class S>
  void fill(Layer<S>& layer, double scale_x, double scale_h, bool reverse) const {
    layer.T = x.size(0), layer.B = x.size(1), layer.I = x.size(2), layer.H = h0.size(1);
    layer.reverse = reverse;
    layer.lengths = read<int64_t>(lengths);
    layer.mask_x = mask_of(keep_x, scale_x);
    layer.mask_h = mask_of(keep_h, scale_h);
    layer.x = read<S>(x);
    layer.h0 = read<S>(h0), layer.c0 = read<S>(c0);
    layer.weight_ih = read<S>(weight_ih), layer.weight_hh = read<S>(weight_hh);
  }
};

// Torch's threads, as many as the work is worth: below about 2 MFLOP each, waking them costs more
// than they bring, and far more beside another busy process.
cpu::Host host(double flop) {
  const auto alone = [](int64_t count, cpu::Body body, void* context) { body(context, 0, count); };
  const auto together = [](int64_t count, cpu::Body body, void* context) {
    torch::stable::parallel_for(0, count, 1,
                                [&](int64_t begin, int64_t end) { body(context, begin, end); });
  };
  const double worth = 1 + flop / 2e6, there = torch::stable::get_num_threads();
  const int threads = static_cast<int>(worth < there ? worth : there);
  return {threads > 1 ? cpu::ParallelFor(together) : cpu::ParallelFor(alone), threads};
}

// Products of a layer forward; backward makes twice as many.
double forward_flop(double T, double B, double I, double H, double G) {
  return 2 * T * B * G * H * (I + H);
}

// Memory for the time of one call. Not a tensor: torch aligns by posix_memalign, and blocks that
// glibc (before 2.38) got so and took back do not serve the next call of the same size; a training
// loop grew by gigabytes.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : block_(std::malloc(bytes + kAlignment)) {
    if (!block_) checks::fail("memory", std::to_string(bytes) + " bytes of scratch", "none");
  }
  ~Scratch() { std::free(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* get() const {
    const auto address = reinterpret_cast<uintptr_t>(block_);
    return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  static constexpr size_t kAlignment = 64;
  void* block_;
};

// use(S{}) for the storage type of x.
template <class Use>
void with_storage_type(const Tensor& x, const Use& use) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return use(float{});
    case ScalarType::Double: return use(double{});
    case ScalarType::BFloat16: return use(bfloat16{});
    default: checks::fail("x", "a dtype with a fused engine", checks::dtype_name(x.scalar_type()));
  }
}

struct ForwardResults {
  Tensor y, h_n;
  OptionalTensor c_n;
  Tensor gates, kept;
};

ForwardResults forward(cpu::Cell cell, int64_t G, const Tensor& x, const Tensor& h0,
                       const OptionalTensor& c0, const Tensor& weight_ih, const Tensor& weight_hh,
                       const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                       const OptionalTensor& keep_x, const OptionalTensor& keep_h,
                       const OptionalTensor& lengths, double scale_x, double scale_h, bool reverse,
                       bool save, const std::string& engine) {
  checks::check_layer(G, x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, keep_x, keep_h,
                      lengths);
  checks::check_cpu_engine(x, engine);
  const Inputs inputs(x, h0, c0, weight_ih, weight_hh, keep_x, keep_h, lengths);
  const OptionalTensor bias_i = dense(bias_ih), bias_h = dense(bias_hh);
  const int64_t T = x.size(0), B = x.size(1), H = h0.size(1);
  const int64_t saved = save ? T : 0;
  ForwardResults r{result(x, {T, B, H}), result(x, {B, H}),
                   c0 ? OptionalTensor(result(x, {B, H})) : std::nullopt,
                   result(x, {saved, B, G * H}),
                   result(x, {cell == cpu::Cell::gru_reset_before ? 0 : saved, B, H})};
  if (B == 0) return r;
  with_storage_type(x, [&](auto s) {
    using S = decltype(s);
    Forward<S> layer{};
    inputs.fill(layer, scale_x, scale_h, reverse);
    layer.bias_ih = read<S>(bias_i), layer.bias_hh = read<S>(bias_h);
    layer.y = write<S>(r.y), layer.h_n = write<S>(r.h_n), layer.c_n = write<S>(r.c_n);
    layer.gates = write<S>(r.gates), layer.kept = write<S>(r.kept);
    const auto& run = cpu::isa().engine<S>();
    const cpu::Host threads = host(forward_flop(T, B, x.size(2), H, G));
    const Scratch memory(run.forward_scratch_bytes(cell, layer, threads.threads));
    run.forward(cell, layer, threads, memory.get());
  });
  return r;
}

struct BackwardResults {
  Tensor dx, dh0;
  OptionalTensor dc0;
  Tensor dweight_ih, dweight_hh, dbias_ih, dbias_hh;
};

BackwardResults backward(cpu::Cell cell, int64_t G, const OptionalTensor& dy,
                         const OptionalTensor& dh_n, const OptionalTensor& dc_n, const Tensor& x,
                         const Tensor& h0, const OptionalTensor& c0, const Tensor& weight_ih,
                         const Tensor& weight_hh, const OptionalTensor& keep_x,
                         const OptionalTensor& keep_h, const OptionalTensor& lengths,
                         const Tensor& y, const Tensor& gates, const Tensor& kept, double scale_x,
                         double scale_h, bool reverse, bool bias, bool need_dx,
                         const std::string& engine) {
  checks::check_layer(G, x, h0, c0, weight_ih, weight_hh, {}, {}, keep_x, keep_h, lengths);
  checks::check_cpu_engine(x, engine);
  const int64_t T = x.size(0), B = x.size(1), I = x.size(2), H = h0.size(1);
  const int64_t kept_steps = cell == cpu::Cell::gru_reset_before ? 0 : T;
  checks::check_tensor("dy", dy, x, {T, B, H}, "T, B, H");
  checks::check_tensor("dh_n", dh_n, x, {B, H}, "B, H");
  checks::check_tensor("dc_n", dc_n, x, {B, H}, "B, H");
  checks::check_tensor("y", y, x, {T, B, H}, "T, B, H");
  checks::check_tensor("gates", gates, x, {T, B, G * H}, "T, B, G*H");
  checks::check_tensor(c0 ? "cells" : "hidden_n", kept, x, {kept_steps, B, H}, "T, B, H");
  const Inputs inputs(x, h0, c0, weight_ih, weight_hh, keep_x, keep_h, lengths);
  const OptionalTensor dy_ = dense(dy), dh_n_ = dense(dh_n), dc_n_ = dense(dc_n);
  const Tensor y_ = dense(y), gates_ = dense(gates), kept_ = dense(kept);
  const int64_t bias_rows = bias ? G * H : 0;
  const auto make = B == 0 ? zeros : result;  // no sequence, no gradient
  BackwardResults r{need_dx ? make(x, {T, B, I}) : make(x, {0}),
                    make(x, {B, H}),
                    c0 ? OptionalTensor(make(x, {B, H})) : std::nullopt,
                    make(x, {G * H, I}),
                    make(x, {G * H, H}),
                    make(x, {bias_rows}),
                    make(x, {bias_rows})};
  if (B == 0) return r;
  with_storage_type(x, [&](auto s) {
    using S = decltype(s);
    Backward<S> layer{};
    inputs.fill(layer, scale_x, scale_h, reverse);
    layer.y = read<S>(y_), layer.gates = read<S>(gates_), layer.kept = read<S>(kept_);
    layer.dy = read<S>(dy_), layer.dh_n = read<S>(dh_n_), layer.dc_n = read<S>(dc_n_);
    layer.dx = write<S>(r.dx), layer.dh0 = write<S>(r.dh0), layer.dc0 = write<S>(r.dc0);
    layer.dweight_ih = write<S>(r.dweight_ih), layer.dweight_hh = write<S>(r.dweight_hh);
    layer.dbias_ih = write<S>(r.dbias_ih), layer.dbias_hh = write<S>(r.dbias_hh);
    const auto& run = cpu::isa().engine<S>();
    const cpu::Host threads = host(2 * forward_flop(T, B, I, H, G));
    const Scratch memory(run.backward_scratch_bytes(cell, layer, threads.threads));
    run.backward(cell, layer, threads, memory.get());
  });
  return r;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cpu(
    Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
    OptionalTensor bias_hh, OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths,
    double scale_x, double scale_h, bool reverse, bool save, std::string engine) {
  const auto r = forward(cpu::Cell::lstm, 4, x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh,
                         keep_x, keep_h, lengths, scale_x, scale_h, reverse, save, engine);
  return {r.y, r.h_n, *r.c_n, r.gates, r.kept};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward_cpu(
    OptionalTensor dy, OptionalTensor dh_n, OptionalTensor dc_n, Tensor x, Tensor h0, Tensor c0,
    Tensor weight_ih, Tensor weight_hh, OptionalTensor keep_x, OptionalTensor keep_h,
    OptionalTensor lengths, Tensor y, Tensor gates, Tensor cells, double scale_x, double scale_h,
    bool reverse, bool bias, bool need_dx, std::string engine) {
  const auto r =
      backward(cpu::Cell::lstm, 4, dy, dh_n, dc_n, x, h0, c0, weight_ih, weight_hh, keep_x, keep_h,
               lengths, y, gates, cells, scale_x, scale_h, reverse, bias, need_dx, engine);
  return {r.dx, r.dh0, *r.dc0, r.dweight_ih, r.dweight_hh, r.dbias_ih, r.dbias_hh};
}

cpu::Cell gru_cell(bool reset_after) {
  return reset_after ? cpu::Cell::gru : cpu::Cell::gru_reset_before;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gru_cpu(
    Tensor x, Tensor h0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
    OptionalTensor bias_hh, OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths,
    double scale_x, double scale_h, bool reverse, bool reset_after, bool save, std::string engine) {
  const auto r = forward(gru_cell(reset_after), 3, x, h0, {}, weight_ih, weight_hh, bias_ih,
                         bias_hh, keep_x, keep_h, lengths, scale_x, scale_h, reverse, save, engine);
  return {r.y, r.h_n, r.gates, r.kept};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_backward_cpu(
    OptionalTensor dy, OptionalTensor dh_n, Tensor x, Tensor h0, Tensor weight_ih, Tensor weight_hh,
    OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths, Tensor y, Tensor gates,
    Tensor hidden_n, double scale_x, double scale_h, bool reverse, bool reset_after, bool bias,
    bool need_dx, std::string engine) {
  const auto r = backward(gru_cell(reset_after), 3, dy, dh_n, {}, x, h0, {}, weight_ih, weight_hh,
                          keep_x, keep_h, lengths, y, gates, hidden_n, scale_x, scale_h, reverse,
                          bias, need_dx, engine);
  return {r.dx, r.dh0, r.dweight_ih, r.dweight_hh, r.dbias_ih, r.dbias_hh};
}

// For engines outside this library (the reference): the same checks. Returns G.
int64_t check_layer(std::string cell, Tensor x, Tensor h0, OptionalTensor c0, Tensor weight_ih,
                    Tensor weight_hh, OptionalTensor bias_ih, OptionalTensor bias_hh,
                    OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths) {
  const int64_t G = checks::gates_of(cell);
  checks::check_layer(G, x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, keep_x, keep_h,
                      lengths);
  return G;
}

// JSON for bayesrnn_cuda.plan: what the CPU engine would do.
std::string cpu_plan(std::string cell, int64_t T, int64_t B, int64_t I, int64_t H,
                     std::string dtype) {
  const cpu::Isa& isa = cpu::isa();
  const int64_t G = checks::gates_of(cell);
  const int threads = host(forward_flop(T, B, I, H, G)).threads;
  const cpu::Cell which = G == 4 ? cpu::Cell::lstm : cpu::Cell::gru;
  std::ostringstream out;
  const auto describe = [&](auto s, int lane_bytes) {
    using S = decltype(s);
    Forward<S> forward{};
    forward.T = T, forward.B = B, forward.I = I, forward.H = H;
    Backward<S> backward{};
    backward.T = T, backward.B = B, backward.I = I, backward.H = H;
    S dx;
    backward.dx = &dx;
    const auto& run = isa.engine<S>();
    out << "{\"instruction_set\": \"" << isa.name << "\", \"microkernel\": \"" << isa.rows
        << " rows x 2 vectors of " << isa.vector_bytes / lane_bytes
        << "\", \"threads\": " << (threads < B ? threads : B)
        << ", \"scratch_bytes_forward\": " << run.forward_scratch_bytes(which, forward, threads)
        << ", \"scratch_bytes_backward\": " << run.backward_scratch_bytes(which, backward, threads)
        << "}";
  };
  if (dtype == "float64")
    describe(double{}, 8);
  else if (dtype == "bfloat16")
    describe(bfloat16{}, 4);
  else if (dtype == "float32")
    describe(float{}, 4);
  else
    checks::fail("dtype", "float32, float64 or bfloat16", "'" + dtype + "'");
  return out.str();
}

// JSON for bayesrnn_cuda.info.
std::string build_info() {
  return std::string("{\"cpu_instruction_set\": \"") + cpu::isa().name + "\"}";
}

}  // namespace
}  // namespace brnn

// Functional ops: nothing is mutated, forward returns what backward needs (empty where save is
// false), backward is an op. Shapes stand in layer.h; results that are not wanted are empty.
STABLE_TORCH_LIBRARY(bayesrnn, m) {
  m.def(
      "lstm(Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, float scale_x=1.0, "
      "float scale_h=1.0, bool reverse=False, bool save=True, str engine=\"auto\") -> "
      "(Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)");
  m.def(
      "lstm_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor h0, Tensor c0, "
      "Tensor weight_ih, Tensor weight_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, "
      "Tensor y, Tensor gates, Tensor cells, float scale_x=1.0, float scale_h=1.0, "
      "bool reverse=False, bool bias=True, bool need_dx=True, str engine=\"auto\") -> "
      "(Tensor dx, Tensor dh0, Tensor dc0, Tensor dweight_ih, Tensor dweight_hh, "
      "Tensor dbias_ih, Tensor dbias_hh)");
  m.def(
      "gru(Tensor x, Tensor h0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, float scale_x=1.0, "
      "float scale_h=1.0, bool reverse=False, bool reset_after=True, bool save=True, "
      "str engine=\"auto\") -> (Tensor y, Tensor h_n, Tensor gates, Tensor hidden_n)");
  m.def(
      "gru_backward(Tensor? dy, Tensor? dh_n, Tensor x, Tensor h0, Tensor weight_ih, "
      "Tensor weight_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, Tensor y, Tensor gates, "
      "Tensor hidden_n, float scale_x=1.0, float scale_h=1.0, bool reverse=False, "
      "bool reset_after=True, bool bias=True, bool need_dx=True, str engine=\"auto\") -> "
      "(Tensor dx, Tensor dh0, Tensor dweight_ih, Tensor dweight_hh, Tensor dbias_ih, "
      "Tensor dbias_hh)");
  m.def(
      "check_layer(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths) -> int");
  m.def("cpu_plan(str cell, int T, int B, int I, int H, str dtype) -> str");
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(bayesrnn, CPU, m) {
  m.impl("lstm", TORCH_BOX(&brnn::lstm_cpu));
  m.impl("lstm_backward", TORCH_BOX(&brnn::lstm_backward_cpu));
  m.impl("gru", TORCH_BOX(&brnn::gru_cpu));
  m.impl("gru_backward", TORCH_BOX(&brnn::gru_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(bayesrnn, CompositeExplicitAutograd, m) {
  m.impl("check_layer", TORCH_BOX(&brnn::check_layer));
  m.impl("cpu_plan", TORCH_BOX(&brnn::cpu_plan));
  m.impl("build_info", TORCH_BOX(&brnn::build_info));
}
