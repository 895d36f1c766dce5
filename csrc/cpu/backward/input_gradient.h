// input_gradient.h is the second phase of a chunk backward: it makes dx from dz, with the masks of
// each gate on its own sum.
//
// No row waits for another, so rows are split over threads. It takes a chunk at a time, so that dz
// is read while it is still in cache.
#pragma once

#include "shared.h"

namespace brnn::BRNN_ISA {

template <class S, class E>
class InputGradient {
  using C = typename Element<E>::Sum;
  using V = Vec<C>;
  static constexpr int kTile = Panels<E>::kTile;

 public:
  explicit InputGradient(const BackwardShared<S, E>& shared)
      : p_(shared.layer),
        cell_(shared.cell),
        panels_(shared.panels_ih),
        keep_(shared.keep_x),
        dz_(shared.dz) {}

  // Makes dx of `count` rows from step `begin` on.
  void rows(const Piece& piece, int64_t begin, int64_t count) const {
    const Product<E> product;
    const Blocks blocks(count, panels_.tile_rows(), Product<E>::even, piece.fair(1),
                        Product<E>::rows(1));
    Laps laps;
    piece.each(blocks.count, [&](int64_t i) {
      for (int64_t panel = 0; panel < panels_.panels(); ++panel)
        tile(product, begin, blocks.begin(i), blocks.size(i), panel);
    });
    laps.end(Phase::input_product);
  }

 private:
  void tile(const Product<E>& product, int64_t begin, int64_t row0, int count,
            int64_t panel) const {
    alignas(64) C sums[kTile];
    const int width = panels_.width(panel);
    masked_sum(product, dz_, row0, panels_, panel, keep_, p_.B, row0 % p_.B, count, cell_.gates,
               cell_.slot_of_a, sums);
    for (int j = 0; j < count; ++j) {
      const int64_t t = p_.time(begin + (row0 + j) / p_.B), b = (row0 + j) % p_.B;
      for (int v = 0; v < width; v += V::size) {
        const int64_t u = panels_.begin(panel) + v;
        store(p_.dx + (t * p_.B + b) * p_.I + u, load(sums + j * width + v) * scale_,
              int(min<int64_t>(V::size, p_.I - u)));
      }
    }
  }

  const Backward<S>& p_;
  const CellTraits& cell_;
  const V scale_ = broadcast(C(p_.mask_x.scale));
  Panels<E> panels_;
  MaskBits<C> keep_;
  Rows<E> dz_;
};

}  // namespace brnn::BRNN_ISA
