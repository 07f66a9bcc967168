// SIGINT and SIGTERM as a flag that long work looks at between steps.
#pragma once

namespace distil_xlstm {

// While alive, SIGINT/SIGTERM set a flag instead of ending the process; a second SIGINT ends it at once.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
};

// 0, or the signal received since the guard was made.
int received_signal();

// Throws Interrupted("stopped by ...") if a signal came; for work that has nothing to save.
void throw_if_interrupted();

}  // namespace distil_xlstm
