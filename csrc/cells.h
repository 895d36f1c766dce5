// cells.h has everything that identifies a cell, and its gate algebra forward and backward: the
// only copy in the project. What differs between cells is asked of the traits here, by name;
// nothing is inferred from a number of gates. A new cell is an enumerator, a struct, and a line in
// each of with_cell and for_each_cell.
//
// Math supplies Value (a scalar or a vector of units), sigmoid and tanh; host and device share
// this. Notation: a = input part W (m x) + b_ih and q = recurrent part U (m h) + b_hh, one value
// per gate; d* = gradient of the loss. `prev` is the state that is carried and never masked:
// c_{t-1} of the LSTM, h_{t-1} of the GRU. `saved` is what backward needs beside the activated
// gates. h_t is output(last gate, state).
//
// `candidate` is the gate whose recurrent part goes through the reset gate: n of a GRU; -1 where a
// cell has no reset gate. Where that reset comes before U, r is gate 0 and stands in slot 0: a step
// makes it first.
//
// Backward is in two parts: `weigh` makes factors of what forward left, and `backward` multiplies
// dh by them. So an engine that waits for dh has the factors ready.
//
// Gradients per gate stand in slots: da is what flows into a, dq what flows into q. They are equal
// but for n of the GRU that resets after U, which therefore has a slot more than it has gates.
#pragma once

#if defined(__CUDACC__)
#define BRNN_INLINE __host__ __device__ __forceinline__
#else
#define BRNN_INLINE inline __attribute__((always_inline))
#endif

namespace brnn {

inline constexpr int kMostGates = 4;

enum class Cell { lstm, gru, gru_reset_before, rnn };

// This says in which storage types the persistent CUDA kernels of a cell are compiled.
enum class Persistent { none, bfloat16, all };

template <class Math>
struct Lstm {
  using V = typename Math::Value;
  static constexpr Cell id = Cell::lstm;
  static constexpr const char* name = "lstm";
  static constexpr int gates = 4;  // i, f, g, o
  static constexpr int slots = 4;
  static constexpr bool has_c = true;  // c_t is carried beside h_t, and is `prev`
  static constexpr bool has_saved = true;
  static constexpr const char* saved_name = "cells";  // c_t
  static constexpr int candidate = -1;
  static constexpr bool reset_before = false;
  static constexpr Persistent persistent = Persistent::all;
  BRNN_INLINE static constexpr int slot_of_a(int gate) { return gate; }
  BRNN_INLINE static constexpr int slot_of_q(int gate) { return gate; }

  BRNN_INLINE static void forward(const V (&a)[4], const V (&q)[4], V prev, V (&gate)[4], V& saved,
                                  V& state) {
    const V i = Math::sigmoid(a[0] + q[0]);
    const V f = Math::sigmoid(a[1] + q[1]);
    const V g = Math::tanh(a[2] + q[2]);
    const V o = Math::sigmoid(a[3] + q[3]);
    gate[0] = i, gate[1] = f, gate[2] = g, gate[3] = o;
    saved = state = f * prev + i * g;
  }
  BRNN_INLINE static V output(V o, V c) { return o * Math::tanh(c); }

  static constexpr int factors = 6;  // of dh for dc, of dc for i, f, g and carry, of dh for o
  BRNN_INLINE static void weigh(const V (&gate)[4], V saved, V prev, V (&factor)[6]) {
    const V one = Math::value(1);
    const V i = gate[0], f = gate[1], g = gate[2], o = gate[3];
    const V tanh_c = Math::tanh(saved);
    factor[0] = o * (one - tanh_c * tanh_c);
    factor[1] = g * i * (one - i);
    factor[2] = prev * f * (one - f);
    factor[3] = i * (one - g * g);
    factor[4] = f;
    factor[5] = tanh_c * o * (one - o);
  }
  // carry is dc_t on entry and dc_{t-1} on return.
  BRNN_INLINE static void backward(const V (&factor)[6], V dh, V& carry, V (&dslot)[4]) {
    const V dc = carry + dh * factor[0];
    dslot[0] = dc * factor[1];
    dslot[1] = dc * factor[2];
    dslot[2] = dc * factor[3];
    dslot[3] = dh * factor[5];
    carry = dc * factor[4];
  }
};

// It resets after U, as torch.nn.GRU does: n = tanh(a_n + r * q_n).
template <class Math>
struct Gru {
  using V = typename Math::Value;
  static constexpr Cell id = Cell::gru;
  static constexpr const char* name = "gru";
  static constexpr int gates = 3;  // r, z, n
  static constexpr int slots = 4;  // n into a, r, z, n into q: the q stand together
  static constexpr bool has_c = false;
  static constexpr bool has_saved = true;
  static constexpr const char* saved_name = "hidden_n";  // q_n
  static constexpr int candidate = 2;
  static constexpr bool reset_before = false;
  static constexpr Persistent persistent = Persistent::all;
  BRNN_INLINE static constexpr int slot_of_a(int gate) { return gate == 2 ? 0 : gate + 1; }
  BRNN_INLINE static constexpr int slot_of_q(int gate) { return gate + 1; }

  BRNN_INLINE static void forward(const V (&a)[3], const V (&q)[3], V prev, V (&gate)[3], V& saved,
                                  V& state) {
    const V r = Math::sigmoid(a[0] + q[0]);
    const V z = Math::sigmoid(a[1] + q[1]);
    const V n = Math::tanh(a[2] + r * q[2]);
    gate[0] = r, gate[1] = z, gate[2] = n;
    saved = q[2];
    state = n + z * (prev - n);
  }
  BRNN_INLINE static V output(V, V state) { return state; }

  static constexpr int factors = 5;  // of d for n, of dn for r, of d for z, of dn, of d for carry
  BRNN_INLINE static void weigh(const V (&gate)[3], V saved, V prev, V (&factor)[5]) {
    const V one = Math::value(1);
    const V r = gate[0], z = gate[1], n = gate[2];
    factor[0] = (one - z) * (one - n * n);
    factor[1] = saved * r * (one - r);
    factor[2] = (prev - n) * z * (one - z);
    factor[3] = r;
    factor[4] = z;
  }
  // carry is the part of dh_t that skipped the gates of step t+1 on entry, of step t on return.
  BRNN_INLINE static void backward(const V (&factor)[5], V dh, V& carry, V (&dslot)[4]) {
    const V d = dh + carry;
    const V dn = d * factor[0];
    dslot[0] = dn;
    dslot[1] = dn * factor[1];
    dslot[2] = d * factor[2];
    dslot[3] = dn * factor[3];
    carry = d * factor[4];
  }
};

// It resets before U, as Cho et al. do (reset_after=False): n = tanh(a_n + U_n (r * m h) + b_n). A
// step needs U twice, since r comes first.
template <class Math>
struct GruResetBefore {
  using V = typename Math::Value;
  static constexpr Cell id = Cell::gru_reset_before;
  static constexpr const char* name = "gru_reset_before";
  static constexpr int gates = 3;  // r, z, n
  static constexpr int slots = 3;
  static constexpr bool has_c = false;
  static constexpr bool has_saved = false;
  static constexpr const char* saved_name = "hidden_n";  // of the op that it shares; empty
  static constexpr int candidate = 2;
  static constexpr bool reset_before = true;
  static constexpr Persistent persistent = Persistent::none;  // two products a step
  BRNN_INLINE static constexpr int slot_of_a(int gate) { return gate; }
  BRNN_INLINE static constexpr int slot_of_q(int gate) { return gate; }

  BRNN_INLINE static void forward_reset(V a_r, V q_r, V& r) { r = Math::sigmoid(a_r + q_r); }
  // q[2] is U_n (r * m h) + b_n, gate[0] the r of forward_reset.
  BRNN_INLINE static void forward(const V (&a)[3], const V (&q)[3], V prev, V (&gate)[3], V&,
                                  V& state) {
    const V z = Math::sigmoid(a[1] + q[1]);
    const V n = Math::tanh(a[2] + q[2]);
    gate[1] = z, gate[2] = n;
    state = n + z * (prev - n);
  }
  BRNN_INLINE static V output(V, V state) { return state; }

  static constexpr int factors = 3;  // of d for z, n and carry
  BRNN_INLINE static void weigh(const V (&gate)[3], V, V prev, V (&factor)[3]) {
    const V one = Math::value(1);
    const V z = gate[1], n = gate[2];
    factor[0] = (prev - n) * z * (one - z);
    factor[1] = (one - z) * (one - n * n);
    factor[2] = z;
  }
  // This leaves dslot[0] to backward_reset, since it needs U_n^T dslot[2] first.
  BRNN_INLINE static void backward(const V (&factor)[3], V dh, V& carry, V (&dslot)[3]) {
    const V d = dh + carry;
    dslot[1] = d * factor[0];
    dslot[2] = d * factor[1];
    carry = d * factor[2];
  }
  // masked is m h_{t-1}, dmasked what flows into r * masked. Returns the part for masked.
  BRNN_INLINE static V backward_reset(V r, V masked, V dmasked, V& dslot_r) {
    dslot_r = dmasked * masked * r * (Math::value(1) - r);
    return dmasked * r;
  }
};

// This is Elman's cell, as torch.nn.RNN: h = tanh(a + q). Its one gate is h itself.
template <class Math>
struct Rnn {
  using V = typename Math::Value;
  static constexpr Cell id = Cell::rnn;
  static constexpr const char* name = "rnn";
  static constexpr int gates = 1;
  static constexpr int slots = 1;
  static constexpr bool has_c = false;
  static constexpr bool has_saved = false;
  static constexpr const char* saved_name = nullptr;
  static constexpr int candidate = -1;
  static constexpr bool reset_before = false;
  static constexpr Persistent persistent = Persistent::bfloat16;
  BRNN_INLINE static constexpr int slot_of_a(int gate) { return gate; }
  BRNN_INLINE static constexpr int slot_of_q(int gate) { return gate; }

  BRNN_INLINE static void forward(const V (&a)[1], const V (&q)[1], V, V (&gate)[1], V&, V& state) {
    gate[0] = state = Math::tanh(a[0] + q[0]);
  }
  BRNN_INLINE static V output(V, V state) { return state; }

  static constexpr int factors = 1;
  BRNN_INLINE static void weigh(const V (&gate)[1], V, V, V (&factor)[1]) {
    factor[0] = Math::value(1) - gate[0] * gate[0];
  }
  // carry stays zero, because nothing of h skips the gate.
  BRNN_INLINE static void backward(const V (&factor)[1], V dh, V&, V (&dslot)[1]) {
    dslot[0] = dh * factor[0];
  }
};

// Tells whether something multiplies the recurrent part of a gate before it meets the input part.
// Then the gate's b_hh goes with the recurrent part, and its gradient has a slot of its own. (In
// the GRU that resets before U, r multiplies h and leaves the bias alone.)
template <class Algebra>
BRNN_INLINE constexpr bool bias_is_recurrent(int gate) {
  return Algebra::slot_of_a(gate) != Algebra::slot_of_q(gate);
}

// Counts the first gates, whose b_hh joins the input part.
template <class Algebra>
constexpr int biases_of_input() {
  int count = 0;
  while (count < Algebra::gates && !bias_is_recurrent<Algebra>(count)) ++count;
  return count;
}

// Counts the gates that see m h itself. They stand first; where r multiplies h, the candidate waits
// for r.
template <class Algebra>
BRNN_INLINE constexpr int gates_of_h() {
  return Algebra::reset_before ? Algebra::candidate : Algebra::gates;
}

// ---- cells that are known at run time

// Calls use.operator()<CellOf>() for the cell: this is the one place where it becomes a type.
template <class Use>
constexpr auto with_cell(Cell cell, const Use& use) {
  switch (cell) {
    case Cell::lstm: return use.template operator()<Lstm>();
    case Cell::gru: return use.template operator()<Gru>();
    case Cell::gru_reset_before: return use.template operator()<GruResetBefore>();
    case Cell::rnn: return use.template operator()<Rnn>();
  }
  __builtin_unreachable();  // the enumeration has no other value
}

// Calls use.operator()<CellOf>() for every cell.
template <class Use>
constexpr void for_each_cell(const Use& use) {
  use.template operator()<Lstm>();
  use.template operator()<Gru>();
  use.template operator()<GruResetBefore>();
  use.template operator()<Rnn>();
}

// Holds what the traits say, for code that computes no gates.
struct CellTraits {
  Cell id;
  const char* name;
  int gates, slots;
  bool has_c, has_saved;
  const char* saved_name;
  int candidate;
  bool reset_before;
  Persistent persistent;
  int biases_of_input;
  int slot_of_a[kMostGates], slot_of_q[kMostGates];  // by gate
};

struct NoMath {
  using Value = float;
};

template <template <class> class CellOf>
constexpr CellTraits traits_of() {
  using Algebra = CellOf<NoMath>;
  CellTraits traits{.id = Algebra::id,
                    .name = Algebra::name,
                    .gates = Algebra::gates,
                    .slots = Algebra::slots,
                    .has_c = Algebra::has_c,
                    .has_saved = Algebra::has_saved,
                    .saved_name = Algebra::saved_name,
                    .candidate = Algebra::candidate,
                    .reset_before = Algebra::reset_before,
                    .persistent = Algebra::persistent,
                    .biases_of_input = biases_of_input<Algebra>(),
                    .slot_of_a = {},
                    .slot_of_q = {}};
  for (int gate = 0; gate < Algebra::gates; ++gate) {
    traits.slot_of_a[gate] = Algebra::slot_of_a(gate);
    traits.slot_of_q[gate] = Algebra::slot_of_q(gate);
  }
  return traits;
}

constexpr CellTraits traits(Cell cell) {
  return with_cell(cell, [&]<template <class> class CellOf>() { return traits_of<CellOf>(); });
}

}  // namespace brnn
