// ops.cpp - schemas of torch.ops.bayesrnn and their dispatch to a backend. Nothing is computed
// here: layer_call.h turns tensors into a plain struct and hands it over.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <tuple>

#include "cpu/torch_host.h"
#include "cuda/plan/devices.h"
#include "cuda/plan/plan.h"
#include "layer_call.h"
#ifdef BRNN_CUDA
#include "cuda/torch_host.h"
#endif

namespace brnn {
namespace {

// The text of a `str` argument, once. Not std::string in the signatures of ops: what torch 2.10 to
// 2.13 makes of that leaks a string a call (pytorch issue 191340).
std::string taken(StringHandle handle) {
  const char* characters;
  size_t length;
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &characters));
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  const std::string text(characters, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm(
    Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
    OptionalTensor bias_hh, OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths,
    double scale_x, double scale_h, bool reverse, bool save, bool allow_tf32, StringHandle engine) {
  const auto r = forward<Backend>(
      Cell::lstm, {x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, keep_x, keep_h, lengths},
      {scale_x, scale_h, reverse, save, {}, {}, allow_tf32, taken(engine)});
  return {r.y, r.h_n, *r.c_n, r.gates, r.saved};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward(
    OptionalTensor dy, OptionalTensor dh_n, OptionalTensor dc_n, Tensor x, Tensor h0, Tensor c0,
    Tensor weight_ih, Tensor weight_hh, OptionalTensor keep_x, OptionalTensor keep_h,
    OptionalTensor lengths, Tensor y, Tensor gates, Tensor cells, double scale_x, double scale_h,
    bool reverse, bool bias, bool need_dx, bool allow_tf32, StringHandle engine) {
  const auto r = backward<Backend>(
      Cell::lstm, {x, h0, c0, weight_ih, weight_hh, {}, {}, keep_x, keep_h, lengths},
      {dy, dh_n, dc_n, y, gates, cells},
      {scale_x, scale_h, reverse, true, bias, need_dx, allow_tf32, taken(engine)});
  return {r.dx, r.dh0, *r.dc0, r.dweight_ih, r.dweight_hh, r.dbias_ih, r.dbias_hh};
}

Cell gru_cell(bool reset_after) { return reset_after ? Cell::gru : Cell::gru_reset_before; }

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> gru(Tensor x, Tensor h0, Tensor weight_ih,
                                               Tensor weight_hh, OptionalTensor bias_ih,
                                               OptionalTensor bias_hh, OptionalTensor keep_x,
                                               OptionalTensor keep_h, OptionalTensor lengths,
                                               double scale_x, double scale_h, bool reverse,
                                               bool reset_after, bool save, bool allow_tf32,
                                               StringHandle engine) {
  const auto r =
      forward<Backend>(gru_cell(reset_after),
                       {x, h0, {}, weight_ih, weight_hh, bias_ih, bias_hh, keep_x, keep_h, lengths},
                       {scale_x, scale_h, reverse, save, {}, {}, allow_tf32, taken(engine)});
  return {r.y, r.h_n, r.gates, r.saved};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_backward(
    OptionalTensor dy, OptionalTensor dh_n, Tensor x, Tensor h0, Tensor weight_ih, Tensor weight_hh,
    OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths, Tensor y, Tensor gates,
    Tensor hidden_n, double scale_x, double scale_h, bool reverse, bool reset_after, bool bias,
    bool need_dx, bool allow_tf32, StringHandle engine) {
  const auto r = backward<Backend>(
      gru_cell(reset_after), {x, h0, {}, weight_ih, weight_hh, {}, {}, keep_x, keep_h, lengths},
      {dy, dh_n, {}, y, gates, hidden_n},
      {scale_x, scale_h, reverse, true, bias, need_dx, allow_tf32, taken(engine)});
  return {r.dx, r.dh0, r.dweight_ih, r.dweight_hh, r.dbias_ih, r.dbias_hh};
}

// For engines outside this library (the reference): the same checks. Returns G.
int64_t check_layer_op(StringHandle cell, Tensor x, Tensor h0, OptionalTensor c0, Tensor weight_ih,
                       Tensor weight_hh, OptionalTensor bias_ih, OptionalTensor bias_hh,
                       OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths) {
  const Cell which = checks::cell_of(taken(cell));
  check_layer(which, {x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, keep_x, keep_h, lengths});
  return gates_of(which);
}

// A mask of that shape from the random numbers of a seed: bool.
Tensor sampled(const checks::Shape& shape, const Tensor& like, int64_t seed, double p) {
  const Tensor keep =
      allocated(shape, [&] { return torch::stable::new_empty(like, shape, ScalarType::Bool); });
  cpu::isa().sample_keep(static_cast<uint8_t*>(keep.mutable_data_ptr()), keep.numel(),
                         static_cast<uint64_t>(seed), p);
  return keep;
}

// A mask of `count` places: bool [count].
Tensor sample_keep(Tensor seed, int64_t count, double p) {
  checks::check_seeds("seed", seed, 1);
  checks::check_count("count", count);
  checks::check_probability("p", p);
  return sampled({count}, seed, *read<int64_t>(seed), p);
}

// Both masks of a layer, bool [sets, B, I] and [sets, B, H], each as sample_keep draws it; what is
// not dropped from (p = 0) has no mask: empty.
std::tuple<Tensor, Tensor> sample_layer_keep(Tensor seeds, int64_t sets, int64_t B, int64_t I,
                                             int64_t H, double p_x, double p_h) {
  checks::check_seeds("seeds", seeds, 2);
  checks::check_count("sets", sets);
  checks::check_count("B", B);
  checks::check_count("I", I);
  checks::check_count("H", H);
  checks::check_probability("p_x", p_x);
  checks::check_probability("p_h", p_h);
  const auto draw = [&](int64_t index, int64_t size, double p) {
    const int64_t seed = read<int64_t>(seeds)[index * seeds.stride(0)];
    return sampled(p == 0 ? checks::Shape{0} : checks::Shape{sets, B, size}, seeds, seed, p);
  };
  return {draw(0, I, p_x), draw(1, H, p_h)};
}

// JSON for bayesrnn_cuda.plan: what the CPU engine would do.
std::string cpu_plan(StringHandle cell, int64_t T, int64_t B, int64_t I, int64_t H,
                     StringHandle dtype) {
  const std::string type = taken(dtype);
  const cpu::Isa& isa = cpu::isa();
  const Cell which = checks::cell_of(taken(cell));
  const int threads = cpu::host(cpu::forward_flop(T, B, I, H, gates_of(which))).threads;
  std::ostringstream out;
  const auto describe = [&](auto s) {
    using S = decltype(s);
    Forward<S> forward{};
    forward.T = T, forward.B = B, forward.I = I, forward.H = H;
    Backward<S> backward{};
    backward.T = T, backward.B = B, backward.I = I, backward.H = H;
    S dx;
    backward.dx = &dx;
    const auto& run = isa.engine<S>();
    out << "{\"instruction_set\": \"" << isa.name << "\", \"microkernel\": \"" << run.narrow.rows
        << " rows x " << run.narrow.vectors;
    if (run.wide.vectors > run.narrow.vectors)
      out << " or " << run.wide.rows << " x " << run.wide.vectors;
    out << " vectors of " << run.lanes << "\", \"threads\": " << threads
        << ", \"scratch_bytes_forward\": " << run.forward_scratch_bytes(which, forward, threads)
        << ", \"scratch_bytes_backward\": " << run.backward_scratch_bytes(which, backward, threads)
        << "}";
  };
  if (type == "float64")
    describe(double{});
  else if (type == "bfloat16")
    describe(bfloat16{});
  else if (type == "float32")
    describe(float{});
  else
    checks::fail("dtype", "float32, float64 or bfloat16", "'" + type + "'");
  return out.str();
}

// The GPU of that name; "" is the one of this machine that is current.
const cuda::Device& device_of(const std::string& gpu) {
  if (gpu.empty()) {
#ifdef BRNN_CUDA
    return cuda::device(torch::stable::accelerator::getCurrentDeviceIndex());
#else
    checks::fail("gpu", "a name, in a build without CUDA", "''");
#endif
  }
  const cuda::Device* known = cuda::known_device(gpu);
  if (!known) checks::fail("gpu", "one of " + cuda::known_device_names(), "'" + gpu + "'");
  return *known;
}

// JSON for bayesrnn_cuda.plan: what the CUDA engines would do, on a GPU that need not be here.
std::string cuda_plan(StringHandle cell, int64_t T, int64_t B, int64_t I, int64_t H,
                      StringHandle dtype, StringHandle gpu, bool allow_tf32, bool untied, bool save,
                      StringHandle engine) {
  const Cell which = checks::cell_of(taken(cell));
  const auto precision = checks::precision_of(taken(dtype), allow_tf32);
  const cuda::Problem problem{which, T, B, I, H, precision, untied, save};
  return cuda::describe(cuda::plan(problem, device_of(taken(gpu)), taken(engine)));
}

// JSON for bayesrnn_cuda.info.
std::string build_info() {
  return std::string("{\"cpu_instruction_set\": \"") + cpu::isa().name + "\"}";
}

// "8.0;9.0a"; empty in a build without CUDA. Apart from build_info, which fails where the
// instruction set that a user named does not exist: this is asked at import.
std::string cuda_architectures() { return BRNN_CUDA_ARCHITECTURES; }

}  // namespace
}  // namespace brnn

// Functional ops: nothing is mutated, forward returns what backward needs (empty where save is
// false), backward is an op. Shapes stand in layer.h; results that are not wanted are empty.
STABLE_TORCH_LIBRARY(bayesrnn, m) {
  m.def(
      "lstm(Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, float scale_x=1.0, "
      "float scale_h=1.0, bool reverse=False, bool save=True, bool allow_tf32=False, "
      "str engine=\"auto\") -> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)");
  m.def(
      "lstm_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor h0, Tensor c0, "
      "Tensor weight_ih, Tensor weight_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, "
      "Tensor y, Tensor gates, Tensor cells, float scale_x=1.0, float scale_h=1.0, "
      "bool reverse=False, bool bias=True, bool need_dx=True, bool allow_tf32=False, "
      "str engine=\"auto\") -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dweight_ih, "
      "Tensor dweight_hh, Tensor dbias_ih, Tensor dbias_hh)");
  m.def(
      "gru(Tensor x, Tensor h0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, float scale_x=1.0, "
      "float scale_h=1.0, bool reverse=False, bool reset_after=True, bool save=True, "
      "bool allow_tf32=False, str engine=\"auto\") -> "
      "(Tensor y, Tensor h_n, Tensor gates, Tensor hidden_n)");
  m.def(
      "gru_backward(Tensor? dy, Tensor? dh_n, Tensor x, Tensor h0, Tensor weight_ih, "
      "Tensor weight_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, Tensor y, Tensor gates, "
      "Tensor hidden_n, float scale_x=1.0, float scale_h=1.0, bool reverse=False, "
      "bool reset_after=True, bool bias=True, bool need_dx=True, bool allow_tf32=False, "
      "str engine=\"auto\") -> (Tensor dx, Tensor dh0, Tensor dweight_ih, Tensor dweight_hh, "
      "Tensor dbias_ih, Tensor dbias_hh)");
  m.def(
      "check_layer(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths) -> int");
  m.def("sample_keep(Tensor seed, SymInt count, float p) -> Tensor");
  m.def(
      "sample_layer_keep(Tensor seeds, SymInt sets, SymInt B, SymInt I, SymInt H, float p_x, "
      "float p_h) -> (Tensor keep_x, Tensor keep_h)");
  m.def("cpu_plan(str cell, int T, int B, int I, int H, str dtype) -> str");
  m.def(
      "cuda_plan(str cell, int T, int B, int I, int H, str dtype, str gpu, bool allow_tf32=False, "
      "bool untied=True, bool save=True, str engine=\"auto\") -> str");
  m.def("known_gpus() -> str");
  m.def("build_info() -> str");
  m.def("cuda_architectures() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(bayesrnn, CPU, m) {
  m.impl("sample_keep", TORCH_BOX(&brnn::sample_keep));
  m.impl("sample_layer_keep", TORCH_BOX(&brnn::sample_layer_keep));
  m.impl("lstm", TORCH_BOX(&brnn::lstm<brnn::cpu::Backend>));
  m.impl("lstm_backward", TORCH_BOX(&brnn::lstm_backward<brnn::cpu::Backend>));
  m.impl("gru", TORCH_BOX(&brnn::gru<brnn::cpu::Backend>));
  m.impl("gru_backward", TORCH_BOX(&brnn::gru_backward<brnn::cpu::Backend>));
}

#ifdef BRNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(bayesrnn, CUDA, m) {
  m.impl("lstm", TORCH_BOX(&brnn::lstm<brnn::cuda::Backend>));
  m.impl("lstm_backward", TORCH_BOX(&brnn::lstm_backward<brnn::cuda::Backend>));
  m.impl("gru", TORCH_BOX(&brnn::gru<brnn::cuda::Backend>));
  m.impl("gru_backward", TORCH_BOX(&brnn::gru_backward<brnn::cuda::Backend>));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(bayesrnn, CompositeExplicitAutograd, m) {
  m.impl("check_layer", TORCH_BOX(&brnn::check_layer_op));
  m.impl("cpu_plan", TORCH_BOX(&brnn::cpu_plan));
  m.impl("cuda_plan", TORCH_BOX(&brnn::cuda_plan));
  m.impl("known_gpus", TORCH_BOX(&brnn::cuda::known_device_names));
  m.impl("build_info", TORCH_BOX(&brnn::build_info));
  m.impl("cuda_architectures", TORCH_BOX(&brnn::cuda_architectures));
}
