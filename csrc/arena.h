// arena.h carves scratch memory: every engine gets one block for a call. The code that takes the
// pieces also tells how many bytes they need, run once without a block, so that size and use cannot
// disagree.
//
// Everything is inlined by force: the CPU engine includes this once per instruction set, and no
// function compiled for one machine may be linked into the code of another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cells.h"

namespace brnn {

// Hands out pieces of a block, each at a multiple of `Alignment` bytes from its start: of 256 on a
// GPU, as cudaMalloc does. With no block it only counts.
template <size_t Alignment = 256>
class Arena {
 public:
  BRNN_INLINE explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class C>
  BRNN_INLINE C* take(int64_t count) {
    C* const piece = static_cast<C*>(rest());
    used_ += (size_t(count) * sizeof(C) + Alignment - 1) / Alignment * Alignment;
    return piece;
  }
  // Gives what has not been taken, for code with an arena of its own.
  BRNN_INLINE void* rest() const { return base_ ? base_ + used_ : nullptr; }
  BRNN_INLINE size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace brnn
