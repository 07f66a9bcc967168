#include "base/signals.h"

#include <csignal>

#include <array>
#include <atomic>
#include <cstdlib>

#include "base/error.h"

namespace distil_xlstm {
namespace {

// Written by a handler, read by any thread: a lock-free atomic may be both.
std::atomic<int> g_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free);
int g_guards = 0;
std::array<struct sigaction, 2> g_previous{};
constexpr std::array<int, 2> kSignals = {SIGINT, SIGTERM};

void on_signal(int signal) {
  if (g_signal != 0 && signal == SIGINT) std::_Exit(128 + signal);
  g_signal = signal;
}

}  // namespace

SignalGuard::SignalGuard() {
  if (g_guards++ > 0) return;
  g_signal = 0;
  struct sigaction action{};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &g_previous[i]);
}

SignalGuard::~SignalGuard() {
  if (--g_guards > 0) return;
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &g_previous[i], nullptr);
}

int received_signal() {
  return g_signal;
}

void throw_if_interrupted() {
  const int signal = g_signal;
  if (signal != 0) throw Interrupted(signal, fmt::format("stopped by {}", signal == SIGINT ? "SIGINT" : "SIGTERM"));
}

}  // namespace distil_xlstm
