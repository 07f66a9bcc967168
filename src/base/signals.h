// SIGINT, SIGTERM and SIGHUP as a flag that long work looks at between steps.
#pragma once

namespace distil_xlstm {

// While alive, these signals set a flag instead of ending the process; a SIGINT after another one ends it at once. A SIGHUP that was
// ignored before (nohup) stays ignored.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
};

// 0, or the first signal received since the guard was made.
int received_signal();

// Throws Interrupted("stopped by ...") if a signal came; for work that has nothing to save.
void throw_if_interrupted();

}  // namespace distil_xlstm
