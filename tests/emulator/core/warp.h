// warp.h - meetings: lanes of a warp come together, the last one does what is to be done.
#pragma once

#include "machine.h"

namespace emu {

// Every lane of `mask` brings a box (an object on its own stack) and leaves after `combine(lanes,
// mask)` has run once. An `aligned` instruction must be the same one, at the same place.
// `combine` may read and write the boxes of all lanes.
struct Gathering {
  uint32_t mask;
  const char* what;
  Site site;
  bool aligned;
};
using Combine = void (*)(Thread* const* lanes, uint32_t mask);
void meet(const Gathering& gathering, void* box, Combine combine);

template <class Box>
Box& box_of(const Thread* thread) {
  return *static_cast<Box*>(thread->box);
}

}  // namespace emu
