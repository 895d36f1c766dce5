// bind_gate_gemm.cpp - the products of gate_gemm.h in the emulator.
#include "bind_gate_gemm.h"

PYBIND11_MODULE(bind_gate_gemm, m) {
  brnn::testing::bind_products<brnn::bfloat16, brnn::float16, float>(m);
}
