// dtypes.h has the types in which tensors are stored, and what follows from one: that is asked by
// name, never by how many bytes a number has. A new one is an enumerator, a DtypeOf, and a file of
// instances in cuda/instantiations.
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

// coarse: stored results round so much that gate functions need no last places.
// tensor_cores: CUDA kernels multiply it by tensor cores, persistent ones among them.
// rounds_operands: not as it is stored, but rounded to TF32 first.
template <class S>
struct DtypeOf;

template <>
struct DtypeOf<bfloat16> {
  static constexpr Dtype id = Dtype::bfloat16;
  static constexpr bool coarse = true, tensor_cores = true, rounds_operands = false;
};
template <>
struct DtypeOf<float16> {
  static constexpr Dtype id = Dtype::float16;
  static constexpr bool coarse = true, tensor_cores = true, rounds_operands = false;
};
template <>
struct DtypeOf<float> {
  static constexpr Dtype id = Dtype::float32;
  static constexpr bool coarse = false, tensor_cores = true, rounds_operands = true;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype id = Dtype::float64;
  static constexpr bool coarse = false, tensor_cores = false, rounds_operands = false;
};

}  // namespace brnn
