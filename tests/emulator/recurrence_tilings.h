// recurrence_tilings.h - the kernels that the emulator runs: the same templates as on a GPU, cut
// small so that a launch has a few hundred threads, and some of the tilings that a GPU runs.
#pragma once

#include "cuda/persistent/host.cuh"

namespace brnn::cuda::recurrence {

// {chunks, k warps, unit tiles, looped}
inline constexpr Tiling kSmallGridForward[] = {
    {1, 2, 1, false}, {2, 2, 1, true}, {5, 2, 1, true}, {1, 8, 1, false}};
inline constexpr Tiling kSmallGridBackward[] = {
    {1, 2, 1, false}, {2, 2, 1, true}, {5, 2, 1, true}, {1, 8, 1, true}};
inline constexpr Tiling kSmallFlagsForward[] = {{1, 2, 1, false}, {2, 2, 1, true}};
inline constexpr Tiling kSmallFlagsBackward[] = {{1, 2, 1, false}, {2, 2, 1, true}};
inline constexpr Tiling kSmallCluster[] = {{1, 2, 2, false}, {1, 4, 2, false}};

template <int Bytes>
inline constexpr Tiling kSmallBlock[] = {{1, 1, 4 / Bytes, false}};

template <class S>
std::vector<ForwardKernel<S>> emulated_forward_kernels() {
  std::vector<ForwardKernel<S>> list;
  add_forward<S, Engine::grid, kSmallGridForward>(list);
  add_forward<S, Engine::grid_flags, kSmallFlagsForward>(list);
  add_forward<S, Engine::block, kSmallBlock<sizeof(S)>>(list);
  add_forward<S, Engine::block, kSmallBlock<sizeof(S)>, kFusedChunks>(list);
  add_forward<S, Engine::block, kBlock<sizeof(S)>>(list);
  add_forward<S, Engine::block, kBlock<sizeof(S)>, kFusedChunks>(list);
  add_forward<S, Engine::cluster, kSmallCluster>(list);
  return list;
}
template <class S>
std::vector<BackwardKernel<S>> emulated_backward_kernels() {
  std::vector<BackwardKernel<S>> list;
  add_backward<S, Engine::grid, kSmallGridBackward>(list);
  add_backward<S, Engine::grid_flags, kSmallFlagsBackward>(list);
  add_backward<S, Engine::block, kSmallBlock<sizeof(S)>>(list);
  add_backward<S, Engine::block, kBlock<sizeof(S)>>(list);
  add_backward<S, Engine::cluster, kSmallCluster>(list);
  return list;
}

}  // namespace brnn::cuda::recurrence
