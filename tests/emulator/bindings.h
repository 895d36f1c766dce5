// bindings.h - what every binding of kernels to numpy shares: arrays checked and watched, the
// settings of the emulator, its errors as build.EmulatorError.
//
//   void multiply(py::array a, py::array c, int N) {
//     emu::Arrays arrays;  // watched by the race detector while it lives
//     Params p{arrays.in<uint16_t>(a, "a", {N, N}), arrays.out<float>(c, "c", {N, N})};
//     launch<Params>(kernel, {...}, nullptr, p);
//   }
//   PYBIND11_MODULE(bind_multiply, m) {
//     emu::bind_controls(m);
//     m.def("multiply", &multiply);
//   }
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "emulator.h"

namespace py = pybind11;

namespace emu {

// Pointers into numpy arrays of exactly the expected type and shape, dense. None gives nullptr.
// bfloat16 and float16 pass as uint16, booleans as bool or uint8.
class Arrays {
 public:
  Arrays() = default;
  Arrays(const Arrays&) = delete;
  ~Arrays() {
    for (const void* memory : watched_) unwatch(memory);
  }

  template <class T>
  const T* in(const py::object& array, const std::string& name,
              std::initializer_list<int64_t> shape) {
    return static_cast<const T*>(take(array, name, shape, format<T>(), sizeof(T), false));
  }
  template <class T>
  T* out(const py::object& array, const std::string& name, std::initializer_list<int64_t> shape) {
    return static_cast<T*>(take(array, name, shape, format<T>(), sizeof(T), true));
  }
  // Memory that is no array of Python's.
  void scratch(const void* memory, size_t bytes, const std::string& name) {
    if (!bytes) return;
    watch(memory, bytes, name);
    watched_.push_back(memory);
  }

 private:
  template <class T>
  static char format() {  // numpy's kind: b, i, u, f
    return std::is_floating_point_v<T> ? 'f' : std::is_signed_v<T> ? 'i' : 'u';
  }

  void* take(const py::object& object, const std::string& name, const std::vector<int64_t>& shape,
             char kind, size_t item, bool writable) {
    if (object.is_none()) return nullptr;
    if (!py::isinstance<py::array>(object)) throw py::type_error(name + ": expected a numpy array");
    auto array = py::reinterpret_borrow<py::array>(object);
    const char actual = array.dtype().kind() == 'b' ? 'u' : array.dtype().kind();
    if (actual != kind || size_t(array.itemsize()) != item)
      throw py::type_error(name + ": expected kind " + kind + " of " + std::to_string(item) +
                           " bytes, got " + py::str(array.dtype()).cast<std::string>());
    const std::vector<int64_t> extents(array.shape(), array.shape() + array.ndim());
    if (extents != shape)
      throw py::value_error(name + ": expected shape " + text(shape) + ", got " + text(extents));
    if (!(array.flags() & py::array::c_style)) throw py::value_error(name + ": not contiguous");
    if (writable && !array.writeable()) throw py::value_error(name + ": not writable");
    void* memory = const_cast<void*>(array.data());
    scratch(memory, size_t(array.nbytes()), name);
    return memory;
  }

  static std::string text(const std::vector<int64_t>& shape) {
    std::string list;
    for (int64_t n : shape) list += (list.empty() ? "" : ", ") + std::to_string(n);
    return "[" + list + "]";
  }

  std::vector<const void*> watched_;
};

// What Python sees of an Error: build.py passes its EmulatorError.
inline PyObject*& error_class() {
  static PyObject* error = PyExc_RuntimeError;
  return error;
}

// configure(): the settings of the launches that follow; what is not named gets its default back.
// statistics(): of the last launch.
inline void bind_controls(py::module_& m) {
  m.def(
      "configure",
      [](const std::string& schedule, uint64_t seed, double yields, int resident_blocks,
         double watchdog, double launch_limit) {
        Config next;
        if (schedule == "random") {
          next.schedule = Schedule::random;
        } else if (schedule == "block_priority") {
          next.schedule = Schedule::block_priority;
        } else if (schedule != "round_robin") {
          throw py::value_error("schedule: round_robin, random or block_priority expected, got " +
                                schedule);
        }
        next.seed = seed;
        next.yield_probability = yields;
        if (resident_blocks > 0) next.resident_blocks = resident_blocks;
        next.watchdog_seconds = watchdog;
        next.launch_seconds = launch_limit;
        config = next;
      },
      py::kw_only(), py::arg("schedule") = "round_robin", py::arg("seed") = 1,
      py::arg("yields") = 0., py::arg("resident_blocks") = 0,
      py::arg("watchdog") = Config().watchdog_seconds,
      py::arg("launch_limit") = Config().launch_seconds);
  m.def("statistics", [] {
    py::dict result;
    result["switches"] = statistics.switches;
    result["accesses"] = statistics.accesses;
    return result;
  });
  m.def("_raise", [](const py::object& error) { error_class() = error.inc_ref().ptr(); });
  py::register_local_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const Error& error) {
      PyErr_SetString(error_class(), error.what());
    }
  });
}

}  // namespace emu
