// tsan_hooks.cpp - g++ -fsanitize=thread puts a call of these before every access to memory. They
// stand where ThreadSanitizer's own library would: kernels link against them instead.
#ifdef EMULATOR_RACE

#include <cstdint>
#include <cstring>

#include "race_access.h"

#pragma GCC visibility push(default)

namespace {

using emu::race::access;

constexpr int order = __ATOMIC_SEQ_CST;

}  // namespace

extern "C" {

#define HOOKS_OF_SIZE(n)                                                                       \
  void __tsan_read##n(void* p) { access(p, n, false, __builtin_return_address(0)); }           \
  void __tsan_write##n(void* p) { access(p, n, true, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##n(void* p) { access(p, n, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##n(void* p) { access(p, n, true, __builtin_return_address(0)); }
HOOKS_OF_SIZE(1)
HOOKS_OF_SIZE(2)
HOOKS_OF_SIZE(4)
HOOKS_OF_SIZE(8)
HOOKS_OF_SIZE(16)
#undef HOOKS_OF_SIZE

void __tsan_read_range(void* p, size_t n) { access(p, n, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { access(p, n, true, __builtin_return_address(0)); }

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

// std::atomic in the host code of a binding: plain atomics, nothing to detect.
#define ATOMICS_OF_SIZE(n)                                                                         \
  using word##n = uint##n##_t;                                                                     \
  word##n __tsan_atomic##n##_load(const volatile word##n* p, int) {                                \
    return __atomic_load_n(p, order);                                                              \
  }                                                                                                \
  void __tsan_atomic##n##_store(volatile word##n* p, word##n v, int) {                             \
    __atomic_store_n(p, v, order);                                                                 \
  }                                                                                                \
  word##n __tsan_atomic##n##_exchange(volatile word##n* p, word##n v, int) {                       \
    return __atomic_exchange_n(p, v, order);                                                       \
  }                                                                                                \
  word##n __tsan_atomic##n##_fetch_add(volatile word##n* p, word##n v, int) {                      \
    return __atomic_fetch_add(p, v, order);                                                        \
  }                                                                                                \
  word##n __tsan_atomic##n##_fetch_sub(volatile word##n* p, word##n v, int) {                      \
    return __atomic_fetch_sub(p, v, order);                                                        \
  }                                                                                                \
  bool __tsan_atomic##n##_compare_exchange_strong(volatile word##n* p, word##n* expected,          \
                                                  word##n v, int, int) {                           \
    return __atomic_compare_exchange_n(p, expected, v, false, order, order);                       \
  }                                                                                                \
  bool __tsan_atomic##n##_compare_exchange_weak(volatile word##n* p, word##n* expected, word##n v, \
                                                int, int) {                                        \
    return __atomic_compare_exchange_n(p, expected, v, false, order, order);                       \
  }
ATOMICS_OF_SIZE(8)
ATOMICS_OF_SIZE(16)
ATOMICS_OF_SIZE(32)
ATOMICS_OF_SIZE(64)
#undef ATOMICS_OF_SIZE

void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"

#pragma GCC visibility pop

#endif
