// operand_stream.cuh streams words from an exchange to the multiplications, and from the elements
// back. Words are asked for before they are needed, as many as registers allow.
#pragma once

#include "../device/intrinsics.cuh"
#include "tile.cuh"

namespace brnn::cuda {

// Calls use(i, words) for words i of a warp's slice, in the order of `Order`, Total of them; at
// most 2 * Ahead are under way in registers, and the trip of the next hides behind the use.
// `meanwhile` is called before the first are looked at.
template <class Order, int Total, int Ahead, int From, class Exchange, class Meanwhile, class Use>
BRNN_DEVICE void use_stream(const Exchange& exchange, int n, uint4 (&words)[Ahead],
                            const Meanwhile& meanwhile, const Use& use) {
  constexpr int kCount = Total - From < Ahead ? Total - From : Ahead;
  constexpr int kRest = Total - From - kCount;
  constexpr int kNext = kRest < Ahead ? kRest : Ahead;
  uint4 next[Ahead];
#pragma unroll
  for (int i = 0; i < kNext; ++i) {
    const int at = From + kCount + i;
    next[i] = exchange.load(Order::plane(at), Order::chunk(at), n);
  }
  meanwhile();
  exchange.template ready<From, kCount>(words, n);
#pragma unroll
  for (int i = 0; i < kCount; ++i) use(From + i, words[i]);
  if constexpr (kRest > 0)
    use_stream<Order, Total, Ahead, From + kCount>(exchange, n, next, [] {}, use);
}

// The words of a warp's slice, Chunks of each plane, `Ahead` of them at once (see Tiling).
template <int Planes, int Chunks, int Ahead, class Exchange, class Meanwhile, class Use>
BRNN_DEVICE void multiply_stream(const Exchange& exchange, int n, const Meanwhile& meanwhile,
                                 const Use& use) {
  using Order = StreamOrder<Planes, Chunks>;
  constexpr int kTotal = Planes * Chunks;
  constexpr int kFree = kTotal <= 12 ? kTotal : Chunks <= 4 ? 4 : 2;  // as registers allow
  constexpr int kAhead = Ahead > 0 && Ahead < kTotal ? Ahead : kFree;
  uint4 words[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) words[i] = exchange.load(Order::plane(i), Order::chunk(i), n);
  use_stream<Order, kTotal, kAhead, 0>(exchange, n, words, meanwhile, use);
}

// A value of each of this thread's elements into the output stage of a plane.
template <class S, class Tile, class Exchange>
BRNN_DEVICE void publish_elements(Exchange& exchange, const Place<Tile>& at, int plane, int n,
                                  const float (&values)[Tile::elements]) {
  const auto offset = [&](int element) {
    return word_offset<S>(at.tile * kTileUnits + at.unit(element), at.row(element));
  };
#pragma unroll
  for (int i = 0; i < Tile::elements; ++i) {
    if constexpr (Number<S>::per_word == 1) {
      exchange.put(plane, n, offset(i), pack(S{}, values[i], 0.f));
    } else if constexpr (Tile::whole_sums) {  // elements i and i + 2 are neighbouring units
      if (i < Tile::elements / 2) {
        const int j = i + Tile::elements / 2;
        exchange.put(plane, n, offset(i), pack(S{}, values[i], values[j]));
      }
    } else {
      const float neighbour = __shfl_xor_sync(~0u, values[i], 1);
      if (at.unit(i) % 2 == 0) exchange.put(plane, n, offset(i), pack(S{}, values[i], neighbour));
    }
  }
}

// One element's values for two planes, `plane` and the next, where lanes that are neighbours have
// the halves of a word: the even one publishes in the first, the odd one in the second. So half the
// shuffles are needed, and every lane stores. `offset`: see offset_of_pair.
template <class S, class Exchange>
BRNN_DEVICE void publish_pair(Exchange& exchange, int plane, int offset, int odd, float first,
                              float second) {
  const float other = __shfl_xor_sync(~0u, odd ? first : second, 1);
  const float low = odd ? other : first, high = odd ? second : other;
  exchange.put(plane, 0, offset, pack(S{}, low, high));
}

}  // namespace brnn::cuda
