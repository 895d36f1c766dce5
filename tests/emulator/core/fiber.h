// fiber.h - a stack of its own for every CUDA thread and the switch from one to another: by hand
// on x86-64 (a few nanoseconds), with ucontext elsewhere.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emu {

struct Stack {
  char* base = nullptr;  // lowest address
  size_t bytes = 0;      // differs from stack to stack: equal tops would share their cache sets
};

// Stacks are kept from launch to launch.
Stack take_stack();
void give_stack(Stack stack);

struct Context {
#ifdef EMULATOR_UCONTEXT
  ucontext_t state;
#else
  void* stack_pointer = nullptr;
#endif
#ifdef EMULATOR_ADDRESS
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake_stack = nullptr;
#endif
};

// `context` will start with entry(), which must not return.
void prepare(Context& context, Stack stack, void (*entry)());
// `context` stands for the stack that the host thread runs on.
void describe_host_stack(Context& context);
// The first thing that an entry calls.
void begin_fiber();
// Saves where `from` stands and goes on where `to` was saved. `from_ends`: nobody comes back.
void switch_context(Context& from, Context& to, bool from_ends = false);

}  // namespace emu
