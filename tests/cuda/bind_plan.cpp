// bind_plan.cpp - the planner and its tables, for tests/cuda/test_plan.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cuda/plan/devices.cpp"  // a binding is one translation unit
#include "cuda/plan/plan.cpp"
#include "cuda/plan/splits.h"

namespace brnn::testing {
namespace {

namespace py = pybind11;
using namespace brnn::cuda;

Precision parse_precision(const std::string& wanted) {
  for (Precision p : {Precision::bfloat16, Precision::float16, Precision::tf32, Precision::float32,
                      Precision::float64})
    if (wanted == name(p)) return p;
  throw std::runtime_error("precision: " + wanted);
}

Cell parse_cell(const std::string& wanted) {
  std::optional<Cell> found;
  for_each_cell([&]<template <class> class CellOf>() {
    if (wanted == traits_of<CellOf>().name) found = traits_of<CellOf>().id;
  });
  return found.value();
}

Engine parse_engine(const std::string& wanted) {
  for (const EngineTraits& engine : kEngines)
    if (wanted == engine.name) return engine.id;
  throw std::runtime_error("engine: " + wanted);
}

Pass pass_of(bool forward) { return forward ? Pass::forward : Pass::backward; }

std::string plan_json(const std::string& cell, int64_t T, int64_t B, int64_t I, int64_t H,
                      const std::string& precision, bool untied, bool save, const Device& device,
                      const std::string& engine) {
  return describe(plan({parse_cell(cell), T, B, I, H, parse_precision(precision), untied, save},
                       device, engine));
}

// (chunks, k_warps, unit_tiles, looped) of each entry of a table.
std::vector<std::tuple<int, int, int, bool>> table(const std::string& engine, bool forward,
                                                   int bytes) {
  std::vector<std::tuple<int, int, int, bool>> entries;
  for (const Tiling& t : tilings(parse_engine(engine), pass_of(forward), bytes))
    entries.emplace_back(t.chunks, t.k_warps, t.unit_tiles, t.looped);
  return entries;
}

const Device& parse_device(const std::string& name) {
  const Device* device = known_device(name);
  if (!device) throw std::runtime_error("gpu: expected one of " + known_device_names());
  return *device;
}

PYBIND11_MODULE(bind_plan, m) {
  py::class_<Device>(m, "Device")
      .def(py::init([](int major, int minor, int multiprocessors, int shared_bytes, int registers,
                       bool cooperative) {
             return Device{"", major, minor, multiprocessors, shared_bytes, registers, cooperative};
           }),
           py::kw_only(), py::arg("major") = 9, py::arg("minor") = 0,
           py::arg("multiprocessors") = 132, py::arg("shared_bytes") = 227 * 1024,
           py::arg("registers") = 65536, py::arg("cooperative") = true)
      .def_readonly("name", &Device::name)
      .def_readonly("major", &Device::major)
      .def_readonly("multiprocessors", &Device::multiprocessors)
      .def_readonly("shared_bytes", &Device::shared_bytes_per_block)
      .def_readonly("registers", &Device::registers_per_block);
  m.def("device", &parse_device);
  m.def("device_names", [] {
    std::vector<std::string> names;
    for (const Device& device : known_devices()) names.push_back(device.name);
    return names;
  });
  m.def("plan", &plan_json);
  m.def("table", &table);
  m.def("worthwhile_splits",
        [](int64_t tiles, int64_t rows, int64_t steps, int64_t partials, double step_cycles) {
          return worthwhile_splits({tiles, rows, steps, partials, step_cycles});
        });
  m.def("split_cycles", [](int64_t tiles, int64_t rows, int64_t steps, int64_t partials,
                           double step_cycles, int64_t splits) {
    return split_cycles({tiles, rows, steps, partials, step_cycles}, splits);
  });
  m.def("backward_ahead", &backward_ahead);
  m.def("grid_steps", &grid_steps);
  m.def("blocks_per_multiprocessor",
        [](bool forward, std::tuple<int, int, int, bool> t, int gates, bool untied) {
          const auto [chunks, k_warps, unit_tiles, looped] = t;
          return blocks_per_multiprocessor(pass_of(forward), {chunks, k_warps, unit_tiles, looped},
                                           gates, untied);
        });
  m.def("shared_bytes",
        [](const std::string& engine, bool forward, std::tuple<int, int, int, bool> t,
           const std::string& cell, bool untied, int batch_tiles, int all_chunks) {
          const auto [chunks, k_warps, unit_tiles, looped] = t;
          return shared_bytes(parse_engine(engine), pass_of(forward),
                              {chunks, k_warps, unit_tiles, looped}, traits(parse_cell(cell)),
                              untied, batch_tiles, all_chunks);
        });
}

}  // namespace
}  // namespace brnn::testing
