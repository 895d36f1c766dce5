// watchdog.cpp - the signal handler leaves the stuck fiber for good.
#include "watchdog.h"

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

#include <cstdint>

#include "machine.h"

namespace emu {
namespace {

struct sigaction previous;
pthread_t runner;
uint64_t switches_seen;
const Thread* thread_seen;
int ticks_left;

const void* instruction(void* context) {
  const auto* at = static_cast<ucontext_t*>(context);
#if defined(__x86_64__)
  return reinterpret_cast<const void*>(at->uc_mcontext.gregs[REG_RIP] + 1);
#elif defined(__aarch64__)
  return reinterpret_cast<const void*>(at->uc_mcontext.pc + 1);
#else
  return nullptr;
#endif
}

void on_tick(int, siginfo_t*, void* context) {
  if (!pthread_equal(pthread_self(), runner)) {  // the signal may reach any thread of the process
    pthread_kill(runner, SIGVTALRM);
    return;
  }
  if (!machine || !current) return;
  if (thread_seen == current && switches_seen == machine->switches)
    machine->stuck(instruction(context));
  if (--ticks_left <= 0) machine->end_overdue();
  thread_seen = current;
  switches_seen = machine->switches;
}

void set_timer(double seconds) {
  const timeval period{time_t(seconds), suseconds_t((seconds - double(time_t(seconds))) * 1e6)};
  const itimerval timer{period, period};
  setitimer(ITIMER_VIRTUAL, &timer, nullptr);
}

}  // namespace

Watchdog::Watchdog(double seconds, double launch_seconds) {
  runner = pthread_self();
  ticks_left = int(launch_seconds / seconds) + 1;
  thread_seen = nullptr;
  struct sigaction action = {};
  action.sa_sigaction = on_tick;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;  // the handler may not return
  sigaction(SIGVTALRM, &action, &previous);
  set_timer(seconds);
}

Watchdog::~Watchdog() {
  set_timer(0);
  sigaction(SIGVTALRM, &previous, nullptr);
}

}  // namespace emu
