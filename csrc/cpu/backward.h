// backward.h runs a whole layer backward, in chunks of time from the last to the first. A chunk has
// three phases:
//   1. recurrence  dz, the gradients of all gates, step by step; divided as forward is
//   2. dx          from dz, the masks of each gate on its own sum; rows split over threads
//   3. weights     and biases, from dz and the masked operands; units of each gate split over
//                  threads
// So dz is still in cache when 2 and 3 read it, and its memory does not grow with T. A phase
// is a class with a file of its own in backward/; this one lays out their memory and runs them in
// turn.
#pragma once

#include "backward/input_gradient.h"
#include "backward/recurrence.h"
#include "backward/weight_gradients.h"

namespace brnn::BRNN_ISA {

template <class S, class E, template <class> class CellOf>
class BackwardPass {
  using Cell = CellOf<Math<typename Element<E>::Sum, S>>;
  static constexpr CellTraits kCell = traits_of<CellOf>();

 public:
  BackwardPass(const Backward<S>& layer, int threads, void* scratch)
      : p_(layer),
        threads_(threads),
        split_(Split::of<E>(threads, layer.B, layer.H, Cell::gates * layer.H)),
        arena_(scratch),
        shared_(layer, kCell, split_, arena_),
        recurrence_(shared_, split_, arena_),
        input_(shared_),
        weights_(shared_, threads, arena_),
        taken_(arena_.take<int64_t>(threads * Piece::kApart)) {}

  size_t scratch_bytes() const { return arena_.used(); }

  void run(Host host) {
    host.flush_subnormals = true;  // gradients vanish over time: up to 30 times slower otherwise
    const auto together = [&](const auto& phase) {
      parallel_pieces(host, threads_, taken_, phase);
    };
    shared_.pack(host);
    for (int64_t end = p_.T; end > 0;) {
      const int64_t begin = end > shared_.chunk ? end - shared_.chunk : 0;
      const int64_t rows = (end - begin) * p_.B;
      run_phases(host, split_, taken_,
                 [&](const auto& run) { recurrence_.steps(run, begin, end); });
      if (p_.dx) together([&](const Piece& piece) { input_.rows(piece, begin, rows); });
      together([&](const Piece& piece) { weights_.pack(piece, begin, rows); });
      together([&](const Piece& piece) { weights_.sum(piece, rows, end == p_.T); });
      end = begin;
    }
    weights_.write(host);
  }

 private:
  const Backward<S>& p_;
  const int threads_;
  const Split split_;
  Arena arena_;
  BackwardShared<S, E> shared_;
  Recurrence<S, E, Cell> recurrence_;
  InputGradient<S, E> input_;
  WeightGradients<S, E> weights_;
  int64_t* taken_;  // see Piece
};

}  // namespace brnn::BRNN_ISA
