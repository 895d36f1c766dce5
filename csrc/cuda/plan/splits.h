// splits.h says into how many parts the products over all time steps cut their sum over rows, where
// they make dW and dU. It is plain C++, so that the choice can be tested without a GPU.
//
// It asks sizes alone, not the device at hand: partial sums are the same on every GPU.
#pragma once

#include <algorithm>
#include <cstdint>

namespace brnn::cuda {

// The tiles of a product, cut the same way. A step is a tile of k.
struct Splittable {
  int64_t tiles;       // of all results
  int64_t rows;        // of the operands, summed over
  int64_t steps;       // of a tile, over all rows
  int64_t partials;    // numbers of float32 that a split leaves
  double step_cycles;  // of a multiprocessor that has two blocks or more
};

// An H100: others have from 108 to 170 multiprocessors, and every split more makes it matter less.
inline constexpr int64_t kSplitsFor = 132;
// A block alone on its multiprocessor does not keep it busy.
inline constexpr double kAlone = 1.4;
// Partial sums are written and read again, so many bytes a cycle: memory of an H100.
inline constexpr double kPartialBytes = 1400;
// A split has this many rows, and no more splits than these help.
inline constexpr int64_t kEnoughRows = 512, kMostSplits = 32;
// Splits are memory: they must gain so much.
inline constexpr double kWorthwhile = 0.97;

constexpr int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }

// How many cycles the product takes in so many splits: as long as the multiprocessor with the most
// blocks, of which the last wave may leave others idle, and the sum of the parts.
constexpr double split_cycles(const Splittable& p, int64_t splits) {
  const int64_t most = divided(p.tiles * splits, kSplitsFor);
  const double blocks = most == 1 ? kAlone : double(most);
  const double sums = splits > 1 ? 8.0 * double(p.partials) * double(splits) / kPartialBytes : 0;
  return blocks * double(divided(p.steps, splits)) * p.step_cycles + sums;
}

// The number of splits: of two that take as long the smaller.
constexpr int64_t worthwhile_splits(const Splittable& p) {
  int64_t best = 1;
  for (int64_t splits = 2; splits <= std::min(p.rows / kEnoughRows, kMostSplits); ++splits)
    if (split_cycles(p, splits) < kWorthwhile * split_cycles(p, best)) best = splits;
  return best;
}

}  // namespace brnn::cuda
