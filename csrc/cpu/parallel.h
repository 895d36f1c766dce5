// parallel.h - scratch memory carved from one block, and loops over the host's threads.
#pragma once

#include "engine.h"
#include "simd.h"

namespace brnn::BRNN_ISA {

using cpu::Host;

// Hands out 64-byte aligned pieces of a block. With no block it only counts: the same code that
// places the pieces tells how much they need.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class C>
  C* take(int64_t count) {
    C* piece = base_ ? reinterpret_cast<C*>(base_ + used_) : nullptr;
    used_ += (size_t(count) * sizeof(C) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// f(begin, end) on ranges that cover [0, count).
template <class F>
void parallel_ranges(const Host& host, int64_t count, const F& f) {
  host.parallel_for(
      count,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// A contiguous share of n for each of `parts` parts.
struct Share {
  int64_t begin, end;
  Share(int64_t n, int64_t part, int64_t parts)
      : begin(n * part / parts), end(n * (part + 1) / parts) {}
};

}  // namespace brnn::BRNN_ISA
