// bind_recurrence.h - how a test cuts a persistent recurrence.
#pragma once

#include "bind_layer.h"
#include "bindings.h"
#include "cuda/persistent/host.cuh"

namespace brnn::testing {

using namespace cuda;

inline Engine engine_of(const std::string& engine) {
  for (Engine e : {Engine::block, Engine::cluster, Engine::grid, Engine::grid_flags})
    if (engine == name(e)) return e;
  throw std::invalid_argument("engine " + engine);
}

// The plan of one pass, cut as a test wants it; `groups`: blocks over the batch.
template <class S>
Recurrence cut(Pass pass, Engine engine, const Tiling& tiling, int groups, Cell cell,
               const Layer<S>& layer) {
  const int G = cell == Cell::lstm ? 4 : 3;
  const int batch_tiles = int((layer.B + kTileSequences - 1) / kTileSequences);
  Recurrence r{};
  r.engine = engine, r.tiling = tiling;
  r.batch_tiles = r.tiling.looped ? (batch_tiles + groups - 1) / groups : 1;
  r.blocks_x = unit_blocks(r.tiling, layer.H, sizeof(S));
  r.blocks_y = (batch_tiles + r.batch_tiles - 1) / r.batch_tiles;
  r.threads = r.tiling.threads();
  const int all_chunks = r.blocks_x * r.tiling.unit_tiles * kTileUnits / units_of_chunk(sizeof(S));
  r.shared_bytes =
      shared_bytes(r.engine, pass, r.tiling, G, layer.mask_h.keep && layer.mask_h.untied(),
                   r.batch_tiles, all_chunks);
  return r;
}
template <class S>
Recurrence cut(Pass pass, const py::dict& how, Cell cell, const Layer<S>& layer) {
  const auto t = how["tiling"].cast<std::array<int, 4>>();
  Recurrence r = cut(pass, engine_of(how["engine"].cast<std::string>()),
                     Tiling{t[0], t[1], t[2], t[3] != 0}, how["groups"].cast<int>(), cell, layer);
  r.fused_input = how["fused_input"].cast<bool>();
  return r;
}

}  // namespace brnn::testing
