// ops.cpp declares the schemas of torch.ops.bayesrnn and dispatches them to a backend. Nothing is
// computed here: layer_call.h turns tensors into a plain struct and hands it over.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <numeric>
#include <sstream>
#include <tuple>
#include <vector>

#include "cpu/phases.h"
#include "cpu/torch_host.h"
#include "cuda/plan/devices.h"
#include "cuda/plan/plan.h"
#include "layer_call.h"
#ifdef BRNN_CUDA
#include "cuda/torch_host.h"
#endif

namespace brnn {
namespace {

// Takes the text of a `str` argument, once. Signatures of ops have no std::string: what torch 2.10
// to 2.13 makes of that leaks a string a call (https://github.com/pytorch/pytorch/issues/191340).
std::string taken(StringHandle handle) {
  const char* characters;
  size_t length;
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &characters));
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  const std::string text(characters, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}

// ---- the op pairs of the layers, NAME and NAME_backward

// A pair is of a cell, or of two with the same tensors between which a flag of the ops chooses.
struct OpPair {
  const char* name;
  Cell cell;
  const char* flag = nullptr;  // where it is false: `otherwise`
  Cell otherwise = cell;

  // These tell what both cells have, or either.
  constexpr bool has_c() const { return traits(cell).has_c; }
  constexpr bool has_saved() const { return traits(cell).has_saved; }
  constexpr bool has_flag() const { return flag; }
  Cell of() const { return cell; }
  Cell of(bool flag) const { return flag ? cell : otherwise; }
};

constexpr OpPair kOpPairs[] = {
    {"lstm", Cell::lstm},
    {"gru", Cell::gru, "reset_after", Cell::gru_reset_before},
    {"rnn", Cell::rnn},
};

// Calls use.operator()<i>() for every pair.
template <class Use>
void for_each_op_pair(const Use& use) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    (use.template operator()<i>(), ...);
  }(std::make_index_sequence<std::size(kOpPairs)>());
}

// Some holds the arguments and results that some pairs have and others not: a pack of one or none.
template <class... T>
struct Some {};
template <bool Has, class T>
using SomeIf = std::conditional_t<Has, Some<T>, Some<>>;

OptionalTensor optional() { return {}; }
OptionalTensor optional(const OptionalTensor& t) { return t; }

// C0 is the pack of tensors of c, Saved of what is saved beside the gates, Flag of the pair's flag.
template <class Backend, size_t Pair, class C0, class Saved, class Flag>
struct LayerOps;

template <class Backend, size_t Pair, class... C0, class... Saved, class... Flag>
struct LayerOps<Backend, Pair, Some<C0...>, Some<Saved...>, Some<Flag...>> {
  static constexpr OpPair kPair = kOpPairs[Pair];

  static std::tuple<Tensor, Tensor, C0..., Tensor, Saved...> forward(
      Tensor x, Tensor h0, C0... c0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
      OptionalTensor bias_hh, OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths,
      OptionalTensor resets, double scale_x, double scale_h, bool reverse, Flag... flag, bool save,
      bool allow_tf32, StringHandle engine) {
    const auto r = brnn::forward<Backend>(kPair.of(flag...),
                                          {.x = x,
                                           .h0 = h0,
                                           .c0 = optional(c0...),
                                           .weight_ih = weight_ih,
                                           .weight_hh = weight_hh,
                                           .bias_ih = bias_ih,
                                           .bias_hh = bias_hh,
                                           .keep_x = keep_x,
                                           .keep_h = keep_h,
                                           .lengths = lengths,
                                           .resets = resets},
                                          {.scale_x = scale_x,
                                           .scale_h = scale_h,
                                           .reverse = reverse,
                                           .save = save,
                                           .allow_tf32 = allow_tf32,
                                           .engine = taken(engine)});
    return {r.y, r.h_n, static_cast<C0>(*r.c_n)..., r.gates, static_cast<Saved>(r.saved)...};
  }

  static std::tuple<Tensor, Tensor, C0..., Tensor, Tensor, Tensor, Tensor> backward(
      OptionalTensor dy, OptionalTensor dh_n, std::optional<C0>... dc_n, Tensor x, Tensor h0,
      C0... c0, Tensor weight_ih, Tensor weight_hh, OptionalTensor keep_x, OptionalTensor keep_h,
      OptionalTensor lengths, OptionalTensor resets, Tensor y, Tensor gates, Saved... saved,
      double scale_x, double scale_h, bool reverse, Flag... flag, bool bias, bool need_dx,
      bool allow_tf32, StringHandle engine) {
    const auto r = brnn::backward<Backend>(kPair.of(flag...),
                                           {.x = x,
                                            .h0 = h0,
                                            .c0 = optional(c0...),
                                            .weight_ih = weight_ih,
                                            .weight_hh = weight_hh,
                                            .keep_x = keep_x,
                                            .keep_h = keep_h,
                                            .lengths = lengths,
                                            .resets = resets},
                                           {.dy = dy,
                                            .dh_n = dh_n,
                                            .dc_n = optional(dc_n...),
                                            .y = y,
                                            .gates = gates,
                                            .saved = optional(saved...)},
                                           {.scale_x = scale_x,
                                            .scale_h = scale_h,
                                            .reverse = reverse,
                                            .save = true,
                                            .bias = bias,
                                            .need_dx = need_dx,
                                            .allow_tf32 = allow_tf32,
                                            .engine = taken(engine)});
    return {r.dx,       r.dh0,     static_cast<C0>(*r.dc0)..., r.dweight_ih, r.dweight_hh,
            r.dbias_ih, r.dbias_hh};
  }
};

template <class Backend, size_t Pair>
using OpsOf =
    LayerOps<Backend, Pair, SomeIf<kOpPairs[Pair].has_c(), Tensor>,
             SomeIf<kOpPairs[Pair].has_saved(), Tensor>, SomeIf<kOpPairs[Pair].has_flag(), bool>>;

// Gives `text` with a name in it, where there is one.
std::string named(bool is, const char* before, const char* name, const char* after) {
  return is ? std::string(before) + name + after : "";
}

std::string forward_schema(const OpPair& pair) {
  const bool has_c = pair.has_c(), has_saved = pair.has_saved();
  return std::string(pair.name) + "(Tensor x, Tensor h0, " + named(has_c, "Tensor ", "c0", ", ") +
         "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? keep_x, "
         "Tensor? keep_h, Tensor? lengths, Tensor? resets, float scale_x=1.0, float scale_h=1.0, "
         "bool reverse=False, " +
         named(pair.has_flag(), "bool ", pair.flag, "=True, ") +
         "bool save=True, bool allow_tf32=False, str engine=\"auto\") -> "
         "(Tensor y, Tensor h_n, " +
         named(has_c, "Tensor ", "c_n", ", ") + "Tensor gates" +
         named(has_saved, ", Tensor ", traits(pair.cell).saved_name, "") + ")";
}

std::string backward_schema(const OpPair& pair) {
  const bool has_c = pair.has_c(), has_saved = pair.has_saved();
  return std::string(pair.name) + "_backward(Tensor? dy, Tensor? dh_n, " +
         named(has_c, "Tensor? ", "dc_n", ", ") + "Tensor x, Tensor h0, " +
         named(has_c, "Tensor ", "c0", ", ") +
         "Tensor weight_ih, Tensor weight_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, "
         "Tensor? resets, Tensor y, Tensor gates, " +
         named(has_saved, "Tensor ", traits(pair.cell).saved_name, ", ") +
         "float scale_x=1.0, float scale_h=1.0, bool reverse=False, " +
         named(pair.has_flag(), "bool ", pair.flag, "=True, ") +
         "bool bias=True, bool need_dx=True, bool allow_tf32=False, str engine=\"auto\") -> "
         "(Tensor dx, Tensor dh0, " +
         named(has_c, "Tensor ", "dc0", ", ") +
         "Tensor dweight_ih, Tensor dweight_hh, Tensor dbias_ih, Tensor dbias_hh)";
}

void define_layer_ops(auto& library) {
  for (const OpPair& pair : kOpPairs) {
    library.def(forward_schema(pair).c_str());
    library.def(backward_schema(pair).c_str());
  }
}

template <class Backend>
void implement_layer_ops(auto& library) {
  for_each_op_pair([&]<size_t Pair>() {
    using Ops = OpsOf<Backend, Pair>;
    const std::string name = kOpPairs[Pair].name;
    library.impl(name.c_str(), TORCH_BOX(&Ops::forward));
    library.impl((name + "_backward").c_str(), TORCH_BOX(&Ops::backward));
  });
}

// ---- other ops

// Makes the same checks for engines outside this library (the reference). Returns G.
int64_t check_layer_op(StringHandle cell, Tensor x, Tensor h0, OptionalTensor c0, Tensor weight_ih,
                       Tensor weight_hh, OptionalTensor bias_ih, OptionalTensor bias_hh,
                       OptionalTensor keep_x, OptionalTensor keep_h, OptionalTensor lengths,
                       OptionalTensor resets) {
  const Cell which = checks::cell_of(taken(cell));
  check_layer(which, {.x = x,
                      .h0 = h0,
                      .c0 = c0,
                      .weight_ih = weight_ih,
                      .weight_hh = weight_hh,
                      .bias_ih = bias_ih,
                      .bias_hh = bias_hh,
                      .keep_x = keep_x,
                      .keep_h = keep_h,
                      .lengths = lengths,
                      .resets = resets});
  return traits(which).gates;
}

Tensor new_mask(const checks::Shape& shape, const Tensor& like) {
  return uninitialized(like, shape, aoti_torch_dtype_bool());
}

// Draws `keep` from the seed of that number.
Draw draw_of(const Tensor& keep, const Tensor& seeds, int64_t number, double p) {
  return {.keep = write<uint8_t>(keep),
          .count = keep.numel(),
          .seed = read<int64_t>(seeds) + number * seeds.stride(0),
          .p = p};
}

// Draws a mask of `count` places, bool [count].
template <class Backend>
Tensor sample_keep(Tensor seed, int64_t count, double p) {
  checks::check_seeds("seed", seed, 1);
  checks::check_count("count", count);
  checks::check_probability("p", p);
  const Tensor keep = new_mask({count}, seed);
  Backend::draw(seed, draw_of(keep, seed, 0, p), {});
  return keep;
}

// Draws both masks of a layer, bool [sets, B, I] and [sets, B, H], each as sample_keep draws it;
// what is not dropped from (p = 0) has no mask: empty.
template <class Backend>
std::tuple<Tensor, Tensor> sample_layer_keep(Tensor seeds, int64_t sets, int64_t B, int64_t I,
                                             int64_t H, double p_x, double p_h) {
  checks::check_seeds("seeds", seeds, 2);
  checks::check_count("sets", sets);
  checks::check_count("B", B);
  checks::check_count("I", I);
  checks::check_count("H", H);
  checks::check_probability("p_x", p_x);
  checks::check_probability("p_h", p_h);
  const auto mask = [&](int64_t size, double p) {
    return new_mask(p == 0 ? checks::Shape{0} : checks::Shape{sets, B, size}, seeds);
  };
  const Tensor keep_x = mask(I, p_x), keep_h = mask(H, p_h);
  Backend::draw(seeds, draw_of(keep_x, seeds, 0, p_x), draw_of(keep_h, seeds, 1, p_h));
  return {keep_x, keep_h};
}

// Gives a backend's kernels to the ops that have one.
template <class Backend>
void implement(auto& library) {
  library.impl("sample_keep", TORCH_BOX(&sample_keep<Backend>));
  library.impl("sample_layer_keep", TORCH_BOX(&sample_layer_keep<Backend>));
  implement_layer_ops<Backend>(library);
}

// Writes JSON for bayesrnn_cuda.plan: what the CPU engine would do.
std::string cpu_plan(StringHandle cell, int64_t T, int64_t B, int64_t I, int64_t H,
                     StringHandle dtype) {
  const std::string name = taken(cell), type = taken(dtype);
  const cpu::Isa& isa = cpu::isa();
  const Cell which = checks::cell_of(name);
  checks::check_sizes(T, B, I, H);
  const int threads = cpu::host(cpu::forward_flop(T, B, I, H, traits(which).gates)).threads;
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
  checks::with_dtype(type, true, [&](auto s) {
    if constexpr (DtypeOf<decltype(s)>::on_cpu) describe(s);
  });
  return out.str();
}

// Makes float products on all threads, as many as the processor can, and returns their number: who
// takes the time has the peak that layers are measured by.
double cpu_fmas() {
  const cpu::Host host = cpu::host(1e12);
  std::vector<double> made(static_cast<size_t>(host.threads));
  host.parallel_for(
      host.threads,
      [](void* made, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          static_cast<double*>(made)[i] = cpu::isa().count_fmas();
      },
      made.data());
  return std::accumulate(made.begin(), made.end(), 0.0);
}

// Turns the clocks of the CPU engine's phases on or off. Writes JSON: the seconds of all threads in
// each phase since the last call.
std::string cpu_phases(bool on) {
  __atomic_store_n(&cpu::times_phases, on, __ATOMIC_RELAXED);
  std::ostringstream out;
  for (int i = 0; i < static_cast<int>(cpu::Phase::count); ++i)
    out << (i ? ", \"" : "{\"") << cpu::kPhaseNames[i]
        << "\": " << 1e-9 * double(cpu::take_phase(static_cast<cpu::Phase>(i)));
  return out.str() + "}";
}

// Returns the GPU of that name; "" is the one of this machine that is current.
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

// Writes JSON for bayesrnn_cuda.plan: what the CUDA engines would do, on a GPU that need not be
// here.
std::string cuda_plan(StringHandle cell, int64_t T, int64_t B, int64_t I, int64_t H,
                      StringHandle dtype, StringHandle gpu, bool allow_tf32, bool untied, bool save,
                      StringHandle engine) {
  // All are taken before anything is checked: an error would leak the others.
  const std::string name = taken(cell), type = taken(dtype), where = taken(gpu);
  const std::string wanted = taken(engine);
  const Cell which = checks::cell_of(name);
  checks::check_sizes(T, B, I, H);
  checks::check_cuda_rows("T", T, B);
  cuda::Problem problem{.cell = which,
                        .T = T,
                        .B = B,
                        .I = I,
                        .H = H,
                        .precision = {},
                        .untied_h = untied,
                        .save = save};
  checks::with_dtype(type, false, [&](auto s) {
    problem.precision = cuda::precision_of(DtypeOf<decltype(s)>::id, allow_tf32);
  });
  return cuda::describe(cuda::plan(problem, device_of(where), wanted));
}

// Lists the storage types that the fused engines for a device have.
std::string fused_dtypes(bool on_cpu) { return checks::dtype_names(on_cpu, ", "); }

// Writes JSON for bayesrnn_cuda.info.
std::string build_info() {
  return std::string("{\"cpu_instruction_set\": \"") + cpu::isa().name + "\"}";
}

// Gives "8.0;9.0a"; empty in a build without CUDA. It stands apart from build_info, which fails
// where the instruction set that a user named does not exist: this is asked at import.
std::string cuda_architectures() { return BRNN_CUDA_ARCHITECTURES; }

}  // namespace
}  // namespace brnn

// Functional ops: nothing is mutated, forward returns what backward needs (empty where save is
// false), backward is an op. Shapes stand in layer.h; results that are not wanted are empty. The
// layers' own have their arguments in an order that Python's ops.py and autograd.py count on.
// resets: where zero enters a step in the direction of the run, which in reverse is not where a
// segment begins (reference.entering).
STABLE_TORCH_LIBRARY(bayesrnn, m) {
  brnn::define_layer_ops(m);
  m.def(
      "check_layer(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? keep_x, Tensor? keep_h, Tensor? lengths, "
      "Tensor? resets) -> int");
  m.def("sample_keep(Tensor seed, SymInt count, float p) -> Tensor");
  m.def(
      "sample_layer_keep(Tensor seeds, SymInt sets, SymInt B, SymInt I, SymInt H, float p_x, "
      "float p_h) -> (Tensor keep_x, Tensor keep_h)");
  m.def("cpu_fmas() -> float");
  m.def("cpu_phases(bool on) -> str");
  m.def("cpu_plan(str cell, int T, int B, int I, int H, str dtype) -> str");
  m.def(
      "cuda_plan(str cell, int T, int B, int I, int H, str dtype, str gpu, bool allow_tf32=False, "
      "bool untied=True, bool save=True, str engine=\"auto\") -> str");
  m.def("fused_dtypes(bool on_cpu) -> str");
  m.def("known_gpus() -> str");
  m.def("cuda_engines() -> str");
  m.def("build_info() -> str");
  m.def("cuda_architectures() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(bayesrnn, CPU, m) { brnn::implement<brnn::cpu::Backend>(m); }

#ifdef BRNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(bayesrnn, CUDA, m) { brnn::implement<brnn::cuda::Backend>(m); }
#endif

STABLE_TORCH_LIBRARY_IMPL(bayesrnn, CompositeExplicitAutograd, m) {
  m.impl("check_layer", TORCH_BOX(&brnn::check_layer_op));
  m.impl("cpu_fmas", TORCH_BOX(&brnn::cpu_fmas));
  m.impl("cpu_phases", TORCH_BOX(&brnn::cpu_phases));
  m.impl("cpu_plan", TORCH_BOX(&brnn::cpu_plan));
  m.impl("cuda_plan", TORCH_BOX(&brnn::cuda_plan));
  m.impl("cuda_engines", TORCH_BOX(&brnn::cuda::engine_names));
  m.impl("fused_dtypes", TORCH_BOX(&brnn::fused_dtypes));
  m.impl("known_gpus", TORCH_BOX(&brnn::cuda::known_device_names));
  m.impl("build_info", TORCH_BOX(&brnn::build_info));
  m.impl("cuda_architectures", TORCH_BOX(&brnn::cuda_architectures));
}
