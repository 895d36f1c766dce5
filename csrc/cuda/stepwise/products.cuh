// products.cuh implements products.h. Gates go through a product together where they share an
// operand and their slots of dz stand together; `for_each_run` cuts them into such runs.
#pragma once

#include <algorithm>

#include "../../arena.h"
#include "elementwise.cuh"
#include "products.h"

namespace brnn::cuda::products {

using namespace elementwise;

// ---- kernels

// This makes the masked operand of one gate.
template <class S>
struct MaskOperand {
  Layer<S> layer;
  Elements elements;  // [T*B, K]
  const S* y;         // [T, B, H]: the operand is the state before; nullptr: it is x
  const S* r;         // [T, B, G*H] activated gates: r multiplies the state; or nullptr
  int64_t r_pitch;    // G*H
  int gate;           // whose mask
  S* to;              // [T*B, K]
};

// It is zero past a sequence's length, whatever stands there: dz is zero too, but 0 * NaN is not.
template <class S>
__global__ void __launch_bounds__(kThreads) mask_operand(const __grid_constant__ MaskOperand<S> p) {
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const Layer<S>& l = p.layer;
  const Mask& mask = p.y ? l.mask_h : l.mask_x;
  const int64_t t = e.row / l.B, b = e.row % l.B;
  Compute<S> value = 0;
  if (Moment(l, b, t).inside && kept(mask, p.gate, b * p.elements.columns + e.column)) {
    value = wide(p.y ? state_before(l, l.h0, p.y, b, e.column, t) : l.x[e.index]);
    value *= Compute<S>(mask.scale);
    if (p.r) value *= wide(p.r[e.row * p.r_pitch + e.column]);
  }
  p.to[e.index] = narrow<S>(value);
}

template <class S>
struct AddBias {
  Elements elements;   // [T*B, G*H]
  const S* bias_ih;    // [G*H] or nullptr
  const S* bias_hh;    // [G*H] or nullptr
  int64_t hh_columns;  // bias_hh of the columns after them stays out
  S* gates;            // [T*B, G*H]
};

template <class S>
__global__ void __launch_bounds__(kThreads) add_bias(const __grid_constant__ AddBias<S> p) {
  const Element e = p.elements.mine();
  if (!e.exists) return;
  S& gate = p.gates[e.index];
  Compute<S> sum = wide(gate);
  if (p.bias_ih) sum += wide(p.bias_ih[e.column]);
  if (p.bias_hh && e.column < p.hh_columns) sum += wide(p.bias_hh[e.column]);
  gate = narrow<S>(sum);
}

// Makes to = m_k s from, or to += that.
template <class S>
struct MaskResult {
  Elements elements;  // [T*B, I]
  Mask mask;
  int64_t B;
  int gate;
  bool accumulate;
  const S* from;  // [T*B, I]
  S* to;          // [T*B, I], may be `from`
};

template <class S>
__global__ void __launch_bounds__(kThreads) mask_result(const __grid_constant__ MaskResult<S> p) {
  const Element e = p.elements.mine();
  if (!e.exists) return;
  Compute<S> value = p.accumulate ? wide(p.to[e.index]) : Compute<S>(0);
  if (kept(p.mask, p.gate, e.row % p.B * p.elements.columns + e.column))
    value += Compute<S>(p.mask.scale) * wide(p.from[e.index]);
  p.to[e.index] = narrow<S>(value);
}

// This sums over rows in two passes, always in the same order.
template <class S>
struct SumRows {
  Elements elements;    // [parts, slots*H], then [1, G*H]
  int64_t rows, parts;  // a part is a stretch of rows
  const S* dz;          // [rows, slots*H]
  Compute<S>* partial;  // [parts, slots*H]
  int64_t H, columns;   // columns: slots*H
  int slot_a[kMostGates], slot_q[kMostGates];
  S* dbias_ih;  // [G*H] or nullptr
  S* dbias_hh;  // [G*H] or nullptr
};

template <class S>
__global__ void __launch_bounds__(kThreads) sum_parts(const __grid_constant__ SumRows<S> p) {
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const int64_t end = p.rows * (e.row + 1) / p.parts;
  Compute<S> sum = 0;
  for (int64_t row = p.rows * e.row / p.parts; row < end; ++row)
    sum += wide(p.dz[row * p.columns + e.column]);
  p.partial[e.index] = sum;
}

template <class S>
__global__ void __launch_bounds__(kThreads) sum_bias(const __grid_constant__ SumRows<S> p) {
  const Element e = p.elements.mine();
  if (!e.exists) return;
  const auto sum_of = [&](int slot) {
    const Compute<S>* column = p.partial + slot * p.H + e.column % p.H;
    Compute<S> sum = 0;
    for (int64_t part = 0; part < p.parts; ++part) sum += column[part * p.columns];
    return narrow<S>(sum);
  };
  const int gate = int(e.column / p.H);
  if (p.dbias_ih) p.dbias_ih[e.column] = sum_of(p.slot_a[gate]);
  if (p.dbias_hh) p.dbias_hh[e.column] = sum_of(p.slot_q[gate]);
}

// ---- host

// Calls f(first gate, how many) for each run of gates that go through one product: `joins` tells
// whether a gate goes with the one before it.
template <int G, class Joins, class F>
void for_each_run(const Joins& joins, const F& f) {
  for (int gate = 0, count; gate < G; gate += count) {
    for (count = 1; gate + count < G && joins(gate + count);) ++count;
    f(gate, count);
  }
}

// These describe one matrix whose rows, or whose columns, are dense and lie `pitch` apart.
inline Matrix rows_of(const void* data, int64_t pitch) {
  return {.data = data, .batch_stride = 0, .row_stride = pitch, .column_stride = 1};
}
inline Matrix columns_of(const void* data, int64_t pitch) {
  return {.data = data, .batch_stride = 0, .row_stride = 1, .column_stride = pitch};
}

template <class S>
void multiply(const Host& host, int64_t M, int64_t N, int64_t K, const Matrix& a, const Matrix& b,
              const Matrix& c, bool accumulate) {
  if (M > 0 && N > 0)
    host.multiply(host.context, {.dtype = DtypeOf<S>::id,
                                 .batch = 1,
                                 .M = M,
                                 .N = N,
                                 .K = K,
                                 .a = a,
                                 .b = b,
                                 .c = c,
                                 .accumulate = accumulate});
}

inline bool changes(const Mask& mask) { return mask.keep || mask.scale != 1; }

// Returns `joins` of for_each_run for products with da: slots that are summed or multiplied
// together must stand side by side.
template <class Algebra>
auto joins_da(bool untied) {
  return [untied](int gate) {
    return !untied && Algebra::slot_of_a(gate) == Algebra::slot_of_a(gate - 1) + 1;
  };
}

// `masked` is [T*B, I].
template <class S, class Algebra>
void run_input_part(const Forward<S>& l, S* gates, const Host& host, S* masked) {
  constexpr int G = Algebra::gates;
  const int64_t rows = l.T * l.B, I = l.I, H = l.H;
  const bool untied = l.mask_x.untied();
  for_each_run<G>([&](int) { return !untied; },
                  [&](int gate, int count) {
                    if (changes(l.mask_x))
                      launch_elements(mask_operand<S>, host,
                                      {.layer = l,
                                       .elements = Elements(rows, I),
                                       .y = nullptr,
                                       .r = nullptr,
                                       .r_pitch = 0,
                                       .gate = gate,
                                       .to = masked});
                    multiply<S>(host, rows, count * H, I,
                                rows_of(changes(l.mask_x) ? masked : l.x, I),
                                columns_of(l.weight_ih + gate * H * I, I),
                                rows_of(gates + gate * H, G * H), false);
                  });
  const int64_t hh_columns = biases_of_input<Algebra>() * H;
  if (l.bias_ih || l.bias_hh)
    launch_elements(add_bias<S>, host,
                    {.elements = Elements(rows, G * H),
                     .bias_ih = l.bias_ih,
                     .bias_hh = l.bias_hh,
                     .hh_columns = hh_columns,
                     .gates = gates});
}

// `product` is [T*B, I], where masks are untied; else dx itself takes the sum over gates and its
// mask.
template <class S, class Algebra>
void run_input_gradient(const Backward<S>& l, const S* dz, const Host& host, S* product) {
  constexpr int G = Algebra::gates;
  const int64_t rows = l.T * l.B, I = l.I, H = l.H;
  const bool untied = l.mask_x.untied();
  const auto mask = [&](int gate, const S* from, bool accumulate) {
    launch_elements(mask_result<S>, host,
                    {.elements = Elements(rows, I),
                     .mask = l.mask_x,
                     .B = l.B,
                     .gate = gate,
                     .accumulate = accumulate,
                     .from = from,
                     .to = l.dx});
  };
  for_each_run<G>(joins_da<Algebra>(untied), [&](int gate, int count) {
    multiply<S>(host, rows, I, count * H,
                rows_of(dz + Algebra::slot_of_a(gate) * H, Algebra::slots * H),
                rows_of(l.weight_ih + gate * H * I, I), rows_of(untied ? product : l.dx, I),
                !untied && gate > 0);
    if (untied) mask(gate, product, gate > 0);
  });
  if (!untied && changes(l.mask_x)) mask(0, l.dx, false);
}

template <class S, class Algebra>
class WeightGradients {
  static constexpr int G = Algebra::gates;

 public:
  WeightGradients(const Backward<S>& layer, const S* dz, void* block)
      : l_(layer), dz_(dz), rows_(layer.T * layer.B), arena_(block) {
    parts_ = std::clamp<int64_t>(rows_ / 64, 1, 256);
    operand_ = arena_.take<S>(rows_ * std::max(l_.I, l_.H));
    partial_ = arena_.take<Compute<S>>(parts_ * Algebra::slots * l_.H);
  }

  size_t scratch_bytes() const { return arena_.used(); }

  void run(const Host& host) {
    input_weights(host);
    recurrent_weights(host);
    if (l_.dbias_ih || l_.dbias_hh) biases(host);
  }

 private:
  void input_weights(const Host& host) {
    const bool untied = l_.mask_x.untied(), copied = changes(l_.mask_x) || l_.lengths;
    for_each_run<G>(joins_da<Algebra>(untied), [&](int gate, int count) {
      if (copied && (untied || gate == 0))
        launch_elements(mask_operand<S>, host,
                        {.layer = l_,
                         .elements = Elements(rows_, l_.I),
                         .y = nullptr,
                         .r = nullptr,
                         .r_pitch = 0,
                         .gate = gate,
                         .to = operand_});
      product(host, Algebra::slot_of_a(gate), count, copied ? operand_ : l_.x, l_.I,
              l_.dweight_ih + gate * l_.H * l_.I);
    });
  }

  void recurrent_weights(const Host& host) {
    const bool untied = l_.mask_h.untied();
    const auto by_reset = [](int gate) {
      return Algebra::reset_before && gate == Algebra::candidate;
    };
    const auto joins = [&](int gate) { return !untied && !by_reset(gate); };
    for_each_run<G>(joins, [&](int gate, int count) {
      launch_elements(mask_operand<S>, host,
                      {.layer = l_,
                       .elements = Elements(rows_, l_.H),
                       .y = l_.y,
                       .r = by_reset(gate) ? l_.gates : nullptr,
                       .r_pitch = G * l_.H,
                       .gate = gate,
                       .to = operand_});
      product(host, Algebra::slot_of_q(gate), count, operand_, l_.H,
              l_.dweight_hh + gate * l_.H * l_.H);
    });
  }

  // Makes to [count*H, K] = dz^T operand, with dz of `count` slots and operand [T*B, K].
  void product(const Host& host, int slot, int count, const S* operand, int64_t K, S* to) const {
    multiply<S>(host, count * l_.H, K, rows_, columns_of(dz_ + slot * l_.H, Algebra::slots * l_.H),
                rows_of(operand, K), rows_of(to, K), false);
  }

  void biases(const Host& host) {
    const int64_t columns = Algebra::slots * l_.H;
    SumRows<S> p{.elements = Elements(parts_, columns),
                 .rows = rows_,
                 .parts = parts_,
                 .dz = dz_,
                 .partial = partial_,
                 .H = l_.H,
                 .columns = columns,
                 .slot_a = {},
                 .slot_q = {},
                 .dbias_ih = l_.dbias_ih,
                 .dbias_hh = l_.dbias_hh};
    for (int gate = 0; gate < G; ++gate) {
      p.slot_a[gate] = Algebra::slot_of_a(gate);
      p.slot_q[gate] = Algebra::slot_of_q(gate);
    }
    launch_elements(sum_parts<S>, host, p);
    p.elements = Elements(1, G * l_.H);
    launch_elements(sum_bias<S>, host, p);
  }

  const Backward<S>& l_;
  const S* dz_;         // [T*B, slots*H]
  const int64_t rows_;  // T*B
  int64_t parts_;       // stretches of rows that are summed side by side
  Arena<> arena_;
  S* operand_;           // [T*B, max(I, H)]
  Compute<S>* partial_;  // [parts, slots*H]
};

// ---- products.h

template <class S>
size_t input_part_scratch_bytes(Cell, const Forward<S>& layer) {
  return changes(layer.mask_x) ? size_t(layer.T * layer.B * layer.I) * sizeof(S) : 0;
}

template <class S>
void input_part(Cell cell, const Forward<S>& layer, S* gates, const Host& host, void* scratch) {
  with_algebra<S>(cell, [&](auto algebra) {
    run_input_part<S, decltype(algebra)>(layer, gates, host, static_cast<S*>(scratch));
  });
}

template <class S>
size_t input_gradient_scratch_bytes(Cell, const Backward<S>& layer) {
  return layer.mask_x.untied() ? size_t(layer.T * layer.B * layer.I) * sizeof(S) : 0;
}

template <class S>
void input_gradient(Cell cell, const Backward<S>& layer, const S* dz, const Host& host,
                    void* scratch) {
  with_algebra<S>(cell, [&](auto algebra) {
    run_input_gradient<S, decltype(algebra)>(layer, dz, host, static_cast<S*>(scratch));
  });
}

template <class S>
size_t weight_gradients_scratch_bytes(Cell cell, const Backward<S>& layer) {
  return with_algebra<S>(cell, [&](auto algebra) {
    return WeightGradients<S, decltype(algebra)>(layer, nullptr, nullptr).scratch_bytes();
  });
}

template <class S>
void weight_gradients(Cell cell, const Backward<S>& layer, const S* dz, const Host& host,
                      void* scratch) {
  with_algebra<S>(cell, [&](auto algebra) {
    WeightGradients<S, decltype(algebra)>(layer, dz, scratch).run(host);
  });
}

}  // namespace brnn::cuda::products
