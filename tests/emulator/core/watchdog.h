// watchdog.h - notices a thread that neither ends nor gives way (a loop that reads plain memory),
// and a launch that has no end.
#pragma once

namespace emu {

// Counts CPU time by a signal (SIGVTALRM) while it lives.
class Watchdog {
 public:
  Watchdog(double seconds, double launch_seconds);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
};

}  // namespace emu
