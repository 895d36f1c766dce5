// dtypes.h has the types in which tensors are stored, and what follows from one: that is asked by
// name, never by how many bytes a number has. A new one is an enumerator, a DtypeOf, a line of
// for_each_dtype, and a file of instances in cuda/instantiations.
#pragma once

#include <cstdint>

namespace brnn {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

enum class Dtype { bfloat16, float16, float32, float64 };

// name: torch's.
// on_cpu: the CPU engine has it. (Those for CUDA have all.)
// coarse: stored results round so much that gate functions need no last places.
// tensor_cores: CUDA kernels multiply it by tensor cores, persistent ones among them.
// rounds_operands: not as it is stored, but rounded to TF32 first.
template <class S>
struct DtypeOf;

template <>
struct DtypeOf<bfloat16> {
  static constexpr Dtype id = Dtype::bfloat16;
  static constexpr const char* name = "bfloat16";
  static constexpr bool on_cpu = true;
  static constexpr bool coarse = true, tensor_cores = true, rounds_operands = false;
};
template <>
struct DtypeOf<float16> {
  static constexpr Dtype id = Dtype::float16;
  static constexpr const char* name = "float16";
  static constexpr bool on_cpu = false;
  static constexpr bool coarse = true, tensor_cores = true, rounds_operands = false;
};
template <>
struct DtypeOf<float> {
  static constexpr Dtype id = Dtype::float32;
  static constexpr const char* name = "float32";
  static constexpr bool on_cpu = true;
  static constexpr bool coarse = false, tensor_cores = true, rounds_operands = true;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype id = Dtype::float64;
  static constexpr const char* name = "float64";
  static constexpr bool on_cpu = true;
  static constexpr bool coarse = false, tensor_cores = false, rounds_operands = false;
};

// Calls use(S{}) for every storage type.
template <class Use>
constexpr void for_each_dtype(const Use& use) {
  use(float{}), use(double{}), use(bfloat16{}), use(float16{});
}

}  // namespace brnn
