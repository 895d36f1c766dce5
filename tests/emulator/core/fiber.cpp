// fiber.cpp - stacks and context switches.
#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <vector>

#ifdef EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {
namespace {

std::vector<Stack> spare_stacks;

// A guard page splits a mapping in two, and the system bounds the number of mappings.
constexpr int most_guards = 8192;
constexpr size_t guard_bytes = 4096;
constexpr size_t mapping_bytes = 256 << 10;

void set_bounds([[maybe_unused]] Context& context, [[maybe_unused]] const void* bottom,
                [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_ADDRESS
  context.bottom = bottom;
  context.bytes = bytes;
#endif
}

}  // namespace

Stack take_stack() {
  if (!spare_stacks.empty()) {
    const Stack stack = spare_stacks.back();
    spare_stacks.pop_back();
#ifdef EMULATOR_ADDRESS
    __asan_unpoison_memory_region(stack.base, stack.bytes);
#endif
    return stack;
  }
  void* base = mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  static int guards = 0;
  if (guards < most_guards && mprotect(base, guard_bytes, PROT_NONE) == 0) ++guards;
  static size_t made = 0;
  return {static_cast<char*>(base), mapping_bytes - made++ % 61 * 320};
}

void give_stack(Stack stack) {
  if (stack.base) spare_stacks.push_back(stack);
}

void describe_host_stack([[maybe_unused]] Context& context) {
#ifdef EMULATOR_ADDRESS
  static thread_local void* bottom = nullptr;
  static thread_local size_t bytes = 0;
  if (!bottom) {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes)) std::abort();
    pthread_attr_getstack(&attributes, &bottom, &bytes);
    pthread_attr_destroy(&attributes);
  }
  set_bounds(context, bottom, bytes);
#endif
}

void begin_fiber() {
#ifdef EMULATOR_ADDRESS
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

#ifdef EMULATOR_UCONTEXT

void prepare(Context& context, Stack stack, void (*entry)()) {
  context = {};
  set_bounds(context, stack.base, stack.bytes);
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack.base + guard_bytes;
  context.state.uc_stack.ss_size = stack.bytes - guard_bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

static void swap(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#else

// Pushes what the callee must preserve, changes stacks, pops the same on the other side. A jump:
// the processor predicts that a return goes back to where the last call came from, here never.
__attribute__((naked, noinline)) static void swap_stacks(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi);"
      "movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp;"
      "popq %rcx; jmp *%rcx");
}

void prepare(Context& context, Stack stack, void (*entry)()) {
  context = {};
  set_bounds(context, stack.base, stack.bytes);
  void** top = reinterpret_cast<void**>(stack.base + stack.bytes);
  *--top = nullptr;  // aligns the stack as a call would and ends a backtrace
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // registers
  context.stack_pointer = top;
}

static void swap(Context& from, Context& to) { swap_stacks(&from.stack_pointer, to.stack_pointer); }

#endif

void switch_context(Context& from, Context& to, [[maybe_unused]] bool from_ends) {
#ifdef EMULATOR_ADDRESS
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
  swap(from, to);
#ifdef EMULATOR_ADDRESS
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace emu
