// shared.h has what the phases of a layer backward share: the packed weights and masks that two of
// them read, dz that the first hands to the others, and how they find the state before a step.
//
// Each phase is a class that copies from here the few of these views that it needs. A view is a
// pointer and sizes, so its members stay as near to the loops as they would in one large class.
// What computes no gates asks the cell's traits at run time: one copy of its code serves all cells.
#pragma once

#include "../operands.h"
#include "../parallel.h"
#include "../phases.h"

namespace brnn::BRNN_ISA {

using cpu::Laps;
using cpu::Phase;

// Chooses the steps of a chunk: the weight gradients gain by many rows (step, sequence), but memory
// grows with them. It takes all of them if they are no more than the units, since the masked
// operands then find room where the weights were; else it takes a third of a short sequence's,
// unless those are few.
inline int64_t chunk_steps(int64_t T, int64_t B, int64_t H) {
  constexpr int64_t most = 480, least = 96;
  if (T * B <= H) return T;
  const int64_t steps = min(most / B, divide_up(T, 3)), enough = divide_up(least, B);
  return min(T, steps > enough ? steps : enough);
}

// Takes rows of scratch memory.
template <class E>
Rows<E> rows_of(Arena& arena, int64_t sets, int64_t rows, int64_t K) {
  return Rows<E>(arena.take<E>(Rows<E>::count(sets, rows, K)), rows, K);
}

template <class S, class E>
struct BackwardShared {
  using C = typename Element<E>::Sum;

  const Backward<S>& layer;
  const CellTraits& cell;
  const int64_t chunk;  // steps
  Panels<E> panels_hh, panels_ih;
  MaskBits<C> keep_x, keep_h;
  Rows<E> dz;  // [slots][..][chunk rows][..] gradients of the gates, row = step * B + b

  BackwardShared(const Backward<S>& layer, const CellTraits& cell, const Split& split, Arena& arena)
      : layer(layer), cell(cell), chunk(chunk_steps(layer.T, layer.B, layer.H)) {
    const int G = cell.gates;
    const int64_t hh = count_hh(), ih = count_ih(), most_rows = divide_up(layer.B, split.batch);
    const int vectors = split.units > 1 ? 2 : panel_vectors<E>(hh * int64_t{sizeof(E)}, most_rows);
    panels_hh = {arena.take<E>(hh), G,       layer.H,
                 layer.H,           vectors, order_of<E>(hh * int64_t{sizeof(E)}, layer.B)};
    const int64_t ih_bytes = ih * int64_t{sizeof(E)}, rows = chunk * layer.B;
    panels_ih = {arena.take<E>(ih),          G, layer.H, layer.I, panel_vectors<E>(ih_bytes, rows),
                 order_of<E>(ih_bytes, rows)};
    keep_x = {arena, layer.mask_x, G, layer.B, layer.I};
    keep_h = {arena, layer.mask_h, G, layer.B, layer.H};
    dz = rows_of<E>(arena, cell.slots, chunk * layer.B, layer.H);
  }

  // These count the elements of panels_hh and of panels_ih, which lies behind it.
  int64_t count_hh() const { return Panels<E>::count(cell.gates, layer.H, layer.H); }
  int64_t count_ih() const { return layer.dx ? Panels<E>::count(cell.gates, layer.H, layer.I) : 0; }

  void pack(const Host& host) const {
    const int64_t hh = panels_hh.panels(), ih = layer.dx ? panels_ih.panels() : 0;
    parallel_ranges(host, hh + ih, [&](int64_t begin, int64_t end) {
      Laps laps;
      for (int64_t i = begin; i < end; ++i) {
        if (i < hh)
          pack_plain(layer.weight_hh, panels_hh, i);
        else
          pack_plain(layer.weight_ih, panels_ih, i - hh);
        keep_x.pack(share_of(layer.B, i, hh + ih));
        keep_h.pack(share_of(layer.B, i, hh + ih));
      }
      laps.end(Phase::pack_weights);
    });
  }
};

// Gives row (t, b) of a tensor [T, B, columns].
template <class S>
const S* row_at(const Backward<S>& layer, const S* tensor, int64_t t, int64_t b, int64_t columns) {
  return tensor + (t * layer.B + b) * columns;
}

// Gives what step s of sequence b started from: `first` is h0 or c0, `after` holds the steps'
// results.
template <class S>
const S* row_before(const Backward<S>& layer, const S* first, const S* after, int64_t s,
                    int64_t b) {
  const bool starts = s == 0 || layer.starts(b, layer.time(s));
  return starts ? first + b * layer.H : row_at(layer, after, layer.time(s - 1), b, layer.H);
}

// Makes sums [count][width] = sum over `gates` gates of m_k (M_k^T dz_k). dz of gate k stands in
// slots[k]; rows are sequences from b on of B, and from 0 again after the last.
template <class E, class C>
void masked_sum(const Product<E>& product, const Rows<E>& dz, int64_t row, const Panels<E>& panels,
                int64_t panel, const MaskBits<C>& keep, int64_t B, int64_t b, int count, int gates,
                const int* slots, C* sums) {
  const int width = panels.width(panel);
  const uint16_t* bits[kTileRows<E>];
  for (int i = 0; i < count; ++i, b = b + 1 < B ? b + 1 : 0)
    bits[i] = keep.at(b, 0, panels.begin(panel));
  std::memset(sums, 0, size_t(count * width) * sizeof(C));
  for (int gate = 0; gate < gates; ++gate)
    multiply_rows(product, count, dz, slots[gate], row, panels, gate, panel,
                  {sums, width, true, bits, keep.set_of(gate) * keep.vectors});
}

}  // namespace brnn::BRNN_ISA
