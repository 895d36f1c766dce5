// stepwise.cuh implements stepwise.h. A step forward is the product U_k (m_k h) of all gates,
// batched over them where masks are untied, then `update`: the gate algebra, and the masked state
// for the next product. A step backward is `gate_gradients`, which masks and sums U_k^T dz_k of the
// step after it, runs the gate algebra backward, and leaves dz for the next product. The GRU that
// resets before U needs two of each.
//
// Products see unscaled operands; the scale of the masks goes on their results, in fp32.
#pragma once

#include "../../arena.h"
#include "elementwise.cuh"
#include "stepwise.h"

namespace brnn::cuda::stepwise {

using namespace elementwise;

// Gives the row of gate `gate` of sequence b in the product of `gates` gates: one [B, H] for each
// gate where masks are untied, else one [B, gates*H].
BRNN_DEVICE int64_t product_row(const Mask& mask, int64_t B, int gates, int gate, int64_t b) {
  return mask.untied() ? gate * B + b : b * gates + gate;
}

// ---- forward

template <class S>
struct ForwardStep {
  Forward<S> layer;
  Elements elements;  // [B, H]
  int64_t t;
  S* gates;           // [T, B, G*H] input part, becomes activated gates
  S* masked;          // [sets, B, H] m_k h_{t-1}, becomes m_k h_t
  S* r_h;             // [B, H] r * m_n h_{t-1}; reset_before only
  S* product;         // U_k (m_k h_{t-1}), see product_row; without n for reset_before
  S* product_n;       // [B, H] U_n (r * m_n h_{t-1}); reset_before only
  Compute<S>* state;  // [B, H] what the cell carries: c of the LSTM, h of the GRU
};

// Writes m_k h of one element, for the next product; kept_by makes `keep`.
template <int G, class S>
BRNN_DEVICE void write_masked(const ForwardStep<S>& p, int64_t index, unsigned keep, S h) {
  const int sets = p.layer.mask_h.untied() ? G : 1;
  for (int k = 0; k < sets; ++k)
    p.masked[k * p.layer.B * p.layer.H + index] = keep >> k & 1 ? h : S{};
}

// This comes before the first step. h_n and c_n stay as written here where the length is 0.
template <class S, class Algebra>
__global__ void __launch_bounds__(kThreads) start(const __grid_constant__ ForwardStep<S> p) {
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const Forward<S>& l = p.layer;
  const int64_t index = e.index;
  const S h = l.h0[index];
  p.state[index] = wide(Algebra::has_c ? l.c0[index] : h);
  l.h_n[index] = h;
  if (Algebra::has_c) l.c_n[index] = l.c0[index];
  write_masked<Algebra::gates>(p, index, kept_by<Algebra::gates>(l.mask_h, index), h);
}

// Makes r and r * m_n h, for which the product of gate n waits; for reset_before only.
template <class S, class Algebra>
__global__ void __launch_bounds__(kThreads) reset_state(const __grid_constant__ ForwardStep<S> p) {
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const Forward<S>& l = p.layer;
  const int64_t b = e.row, index = e.index;
  const Moment now(l, b, p.t);
  if (!now.inside) return;
  S* gate = p.gates + (p.t * l.B + b) * Algebra::gates * l.H + e.column;
  const int64_t q = product_row(l.mask_h, l.B, gates_of_h<Algebra>(), 0, b) * l.H + e.column;
  Compute<S> r;
  const S product = now.resets ? S{} : p.product[q];
  Algebra::forward_reset(wide(*gate), Compute<S>(l.mask_h.scale) * wide(product), r);
  const S masked = p.masked[(l.mask_h.untied() ? Algebra::candidate : 0) * l.B * l.H + index];
  p.r_h[index] = narrow<S>(r * wide(masked));
  if (l.gates) *gate = narrow<S>(r);
}

// Makes q_k = s U_k (m_k h) of one element, with the bias that r multiplies. `zero` tells that h is
// 0.
template <class S, class Algebra>
BRNN_DEVICE void recurrent_part(const ForwardStep<S>& p, int64_t b, int64_t u, bool zero,
                                Compute<S> (&q)[Algebra::gates]) {
  using C = Compute<S>;
  const Forward<S>& l = p.layer;
  constexpr int gates = gates_of_h<Algebra>();
  for (int k = 0; k < gates; ++k)
    q[k] = wide(p.product[product_row(l.mask_h, l.B, gates, k, b) * l.H + u]);
  if constexpr (Algebra::reset_before) q[Algebra::candidate] = wide(p.product_n[b * l.H + u]);
  for (C& value : q) value = zero ? C(0) : value * C(l.mask_h.scale);
  for (int k = 0; k < Algebra::gates; ++k)
    if (bias_is_recurrent<Algebra>(k) && l.bias_hh) q[k] += wide(l.bias_hh[k * l.H + u]);
}

// All loads come before the first store, so that they are under way together.
template <class S, class Algebra>
__global__ void __launch_bounds__(kThreads) update(const __grid_constant__ ForwardStep<S> p) {
  using C = Compute<S>;
  constexpr int G = Algebra::gates;
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const Forward<S>& l = p.layer;
  const int64_t b = e.row, index = e.index, at = p.t * l.B * l.H + index;
  S* gates = p.gates + (p.t * l.B + b) * G * l.H + e.column;  // gate k at k * H
  const Moment now(l, b, p.t);
  C a[G], q[G], gate[G] = {}, saved, state;
  const unsigned next_keep = kept_by<G>(l.mask_h, index);
  for (int k = 0; k < G; ++k) a[k] = wide(gates[k * l.H]);
  recurrent_part<S, Algebra>(p, b, e.column, now.resets, q);
  const C before = now.resets ? C(0) : p.state[index];
  Algebra::forward(a, q, before, gate, saved, state);
  if (!now.inside) {  // the state stays
    l.y[at] = S{};
    for (int k = 0; l.gates && k < G; ++k) gates[k * l.H] = S{};
    if (Algebra::has_saved && l.saved) l.saved[at] = S{};
    return;
  }
  const S out = narrow<S>(Algebra::output(gate[G - 1], state));
  p.state[index] = state;
  l.y[at] = out;
  write_masked<G>(p, index, next_keep, out);
  constexpr int first = Algebra::reset_before ? 1 : 0;  // r stands there already
  for (int k = first; l.gates && k < G; ++k) gates[k * l.H] = narrow<S>(gate[k]);
  if (Algebra::has_saved && l.saved) l.saved[at] = narrow<S>(saved);
  if (!now.ends) return;
  l.h_n[index] = out;
  if (Algebra::has_c) l.c_n[index] = narrow<S>(state);
}

template <class S, class Algebra>
class ForwardPass {
  static constexpr int G = Algebra::gates;

 public:
  ForwardPass(const Forward<S>& layer, S* gates, void* block)
      : p_{.layer = layer, .elements = Elements(layer.B, layer.H)}, arena_(block) {
    const int64_t size = layer.B * layer.H;
    p_.gates = gates;
    p_.masked = arena_.take<S>((layer.mask_h.untied() ? G : 1) * size);
    p_.r_h = arena_.take<S>(Algebra::reset_before ? size : 0);
    p_.product = arena_.take<S>(G * size);
    if (Algebra::reset_before && p_.product) p_.product_n = p_.product + Algebra::candidate * size;
    p_.state = arena_.take<Compute<S>>(size);
  }

  size_t scratch_bytes() const { return arena_.used(); }

  void run(const Host& host) {
    launch_elements(start<S, Algebra>, host, p_);
    for (int64_t s = 0; s < p_.layer.T; ++s) {
      p_.t = p_.layer.time(s);
      if constexpr (Algebra::reset_before) {
        multiply(host, 0, gates_of_h<Algebra>(), p_.masked, p_.product);
        launch_elements(reset_state<S, Algebra>, host, p_);
        multiply(host, Algebra::candidate, 1, p_.r_h, p_.product_n);
      } else {
        multiply(host, 0, G, p_.masked, p_.product);
      }
      launch_elements(update<S, Algebra>, host, p_);
    }
  }

 private:
  // Makes to = U_k from_k for `count` gates.
  void multiply(const Host& host, int first, int count, const S* from, S* to) const {
    const int64_t B = p_.layer.B, H = p_.layer.H;
    const S* weight = p_.layer.weight_hh + first * H * H;
    const bool untied = p_.layer.mask_h.untied();
    const int64_t batch = untied ? count : 1, N = untied ? H : count * H;
    if (B * H == 0) return;
    host.multiply(
        host.context,
        {.dtype = DtypeOf<S>::id,
         .batch = batch,
         .M = B,
         .N = N,
         .K = H,
         .a = {.data = from, .batch_stride = B * H, .row_stride = H, .column_stride = 1},
         .b = {.data = weight, .batch_stride = H * H, .row_stride = 1, .column_stride = H},
         .c = {.data = to, .batch_stride = B * H, .row_stride = N, .column_stride = 1},
         .accumulate = false});
  }

  ForwardStep<S> p_;
  Arena<> arena_;
};

// ---- backward

template <class S>
struct BackwardStep {
  Backward<S> layer;
  Elements elements;  // [B, H]
  int64_t t, after;   // times of this step and of the one after it
  bool first;         // nothing came before: dh_n and dc_n stand for all below
  S* dz;              // [T, B, slots*H]
  S* product;         // [sets, B, H] U_k^T dz_k of the step before, without n for reset_before
  S* product_n;       // [B, H] U_n^T dz_n of this step; reset_before only
  Compute<S>* through_reset;  // [B, H] gradient of h by way of r * m_n h; reset_before only
  Compute<S>* carry;          // [B, H] see Algebra::backward
  Compute<S>* held;           // [B, H] gradient of h that waits for a sequence to begin; if lengths
};

// Gives the gradient of h that later steps and h_n leave for one element of sequence b.
template <class S, class Algebra>
BRNN_DEVICE Compute<S> state_gradient(const BackwardStep<S>& p, int64_t b, int64_t index) {
  using C = Compute<S>;
  const Backward<S>& l = p.layer;
  if (p.first) return l.dh_n ? wide(l.dh_n[index]) : C(0);
  if (Moment(l, b, p.after).resets) return C(0);
  constexpr int gates = gates_of_h<Algebra>();
  const unsigned keep = kept_by<gates>(l.mask_h, index);
  C dh = 0;
  for (int k = 0; k < gates; ++k) {
    if (k > 0 && !l.mask_h.untied()) break;  // the product has summed the gates
    const C through_gate = wide(p.product[k * l.B * l.H + index]);
    dh += keep >> k & 1 ? through_gate : C(0);
  }
  dh *= C(l.mask_h.scale);
  if (Algebra::reset_before) dh += p.through_reset[index];
  if (l.lengths) dh += p.held[index];
  return dh;
}

template <class S, class Algebra>
BRNN_DEVICE Compute<S> carried_gradient(const BackwardStep<S>& p, int64_t index) {
  if (p.first) return p.layer.dc_n ? wide(p.layer.dc_n[index]) : Compute<S>(0);
  return p.carry[index];
}

// Makes dz of step t; for reset_before without that of r.
template <class S, class Algebra>
__global__ void __launch_bounds__(kThreads)
    gate_gradients(const __grid_constant__ BackwardStep<S> p) {
  using C = Compute<S>;
  constexpr int G = Algebra::gates;
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const Backward<S>& l = p.layer;
  const int64_t b = e.row, u = e.column, index = e.index, at = p.t * l.B * l.H + index;
  const C dh = state_gradient<S, Algebra>(p, b, index);
  C carry = carried_gradient<S, Algebra>(p, index);
  C dslot[Algebra::slots] = {};
  const Moment now(l, b, p.t);
  const S* gates = l.gates + (p.t * l.B + b) * G * l.H + u;  // gate k at k * H
  C gate[G];
  for (int k = 0; k < G; ++k) gate[k] = wide(gates[k * l.H]);
  const C saved = Algebra::has_saved ? wide(l.saved[at]) : C(0);
  const C dy = l.dy ? wide(l.dy[at]) : C(0);
  if (now.inside) {
    const C prev = wide(Algebra::has_c ? state_before(l, l.c0, l.saved, b, u, p.t)
                                       : state_before(l, l.h0, l.y, b, u, p.t));
    C factor[Algebra::factors];
    Algebra::weigh(gate, saved, prev, factor);
    Algebra::backward(factor, dh + dy, carry, dslot);
  }
  S* dz = p.dz + (p.t * l.B + b) * Algebra::slots * l.H + u;  // slot k at k * H
  for (int k = 0; k < Algebra::slots; ++k) dz[k * l.H] = narrow<S>(dslot[k]);
  p.carry[index] = now.resets ? C(0) : carry;
  if (l.lengths) p.held[index] = now.inside ? C(0) : dh;
}

// Makes dz of r at step t, and what flows past r into h; for reset_before only.
template <class S, class Algebra>
__global__ void __launch_bounds__(kThreads)
    reset_gradients(const __grid_constant__ BackwardStep<S> p) {
  using C = Compute<S>;
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const Backward<S>& l = p.layer;
  const int64_t b = e.row, u = e.column, index = e.index;
  C dr = 0, dmasked = 0;
  const int gate_n = l.mask_h.untied() ? Algebra::candidate : 0;
  if (Moment(l, b, p.t).inside && kept(l.mask_h, gate_n, index)) {
    const C scale = C(l.mask_h.scale);
    const C r = wide(l.gates[(p.t * l.B + b) * Algebra::gates * l.H + u]);
    const C masked = scale * wide(state_before(l, l.h0, l.y, b, u, p.t));
    dmasked = scale * Algebra::backward_reset(r, masked, wide(p.product_n[index]), dr);
  }
  p.dz[(p.t * l.B + b) * Algebra::slots * l.H + u] = narrow<S>(dr);
  p.through_reset[index] = dmasked;
}

template <class S, class Algebra>
__global__ void __launch_bounds__(kThreads) finish(const __grid_constant__ BackwardStep<S> p) {
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const int64_t index = e.index;
  const Compute<S> dh = state_gradient<S, Algebra>(p, e.row, index);
  const Compute<S> carry = carried_gradient<S, Algebra>(p, index);
  // Where nothing but h is carried, its carry is a part of dh.
  p.layer.dh0[index] = narrow<S>(Algebra::has_c ? dh : dh + carry);
  if (Algebra::has_c) p.layer.dc0[index] = narrow<S>(carry);
}

template <class S, class Algebra>
class BackwardPass {
  static constexpr int G = Algebra::gates;

 public:
  BackwardPass(const Backward<S>& layer, S* dz, void* block)
      : p_{.layer = layer, .elements = Elements(layer.B, layer.H)}, arena_(block) {
    const int64_t size = layer.B * layer.H;
    p_.dz = dz;
    p_.product = arena_.take<S>((layer.mask_h.untied() ? G : 1) * size);
    p_.product_n = arena_.take<S>(Algebra::reset_before ? size : 0);
    p_.through_reset = arena_.take<Compute<S>>(Algebra::reset_before ? size : 0);
    p_.carry = arena_.take<Compute<S>>(size);
    p_.held = arena_.take<Compute<S>>(layer.lengths ? size : 0);
  }

  size_t scratch_bytes() const { return arena_.used(); }

  void run(const Host& host) {
    p_.first = true;
    for (int64_t s = p_.layer.T - 1; s >= 0; --s) {
      p_.t = p_.layer.time(s), p_.after = p_.layer.time(s + 1);
      launch_elements(gate_gradients<S, Algebra>, host, p_);
      p_.first = false;
      if constexpr (Algebra::reset_before) {
        multiply(host, Algebra::candidate, 1, p_.product_n);
        launch_elements(reset_gradients<S, Algebra>, host, p_);
        multiply(host, 0, gates_of_h<Algebra>(), p_.product);
      } else {
        multiply(host, 0, G, p_.product);
      }
    }
    p_.after = p_.layer.time(0);
    launch_elements(finish<S, Algebra>, host, p_);
  }

 private:
  // Makes to = U_k^T dz_k for `count` gates, summed over them unless masks are untied.
  void multiply(const Host& host, int gate, int count, S* to) const {
    const int64_t B = p_.layer.B, H = p_.layer.H, row = Algebra::slots * H;
    const S* dz = p_.dz + p_.t * B * row + Algebra::slot_of_q(gate) * H;
    const S* weight = p_.layer.weight_hh + gate * H * H;
    const bool untied = p_.layer.mask_h.untied();
    const int64_t batch = untied ? count : 1, K = untied ? H : count * H;
    if (B * H == 0) return;
    host.multiply(
        host.context,
        {.dtype = DtypeOf<S>::id,
         .batch = batch,
         .M = B,
         .N = H,
         .K = K,
         .a = {.data = dz, .batch_stride = H, .row_stride = row, .column_stride = 1},
         .b = {.data = weight, .batch_stride = H * H, .row_stride = H, .column_stride = 1},
         .c = {.data = to, .batch_stride = B * H, .row_stride = H, .column_stride = 1},
         .accumulate = false});
  }

  BackwardStep<S> p_;
  Arena<> arena_;
};

// ---- stepwise.h

template <class S>
size_t forward_scratch_bytes(Cell cell, const Forward<S>& layer) {
  return with_algebra<S>(cell, [&](auto algebra) {
    return ForwardPass<S, decltype(algebra)>(layer, nullptr, nullptr).scratch_bytes();
  });
}

template <class S>
void forward(Cell cell, const Forward<S>& layer, S* gates, const Host& host, void* scratch) {
  with_algebra<S>(cell, [&](auto algebra) {
    ForwardPass<S, decltype(algebra)>(layer, gates, scratch).run(host);
  });
}

template <class S>
size_t backward_scratch_bytes(Cell cell, const Backward<S>& layer) {
  return with_algebra<S>(cell, [&](auto algebra) {
    return BackwardPass<S, decltype(algebra)>(layer, nullptr, nullptr).scratch_bytes();
  });
}

template <class S>
void backward(Cell cell, const Backward<S>& layer, S* dz, const Host& host, void* scratch) {
  with_algebra<S>(cell, [&](auto algebra) {
    BackwardPass<S, decltype(algebra)>(layer, dz, scratch).run(host);
  });
}

}  // namespace brnn::cuda::stepwise
