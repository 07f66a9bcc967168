#include "base/signals.h"

#include <csignal>

#include <array>
#include <atomic>
#include <cstdlib>
#include <string>
#include <utility>

#include "base/error.h"

namespace distil_xlstm {
namespace {

// Written by a handler, read by any thread: a lock-free atomic may be both.
std::atomic<int> g_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free);
int g_guards = 0;

constexpr std::array<std::pair<int, const char*>, 3> kSignals = {{{SIGINT, "SIGINT"}, {SIGTERM, "SIGTERM"}, {SIGHUP, "SIGHUP"}}};
std::array<struct sigaction, kSignals.size()> g_previous{};

// The first one decides with what exit code the work ends.
void on_signal(int signal) {
  if (g_signal != 0 && signal == SIGINT) std::_Exit(128 + signal);
  int none = 0;
  g_signal.compare_exchange_strong(none, signal);
}

std::string name_of(int signal) {
  for (const auto& [number, name] : kSignals) {
    if (number == signal) return name;
  }
  return fmt::format("signal {}", signal);
}

}  // namespace

SignalGuard::SignalGuard() {
  if (g_guards++ > 0) return;
  g_signal = 0;
  struct sigaction action{};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i) {
    const int signal = kSignals[i].first;
    sigaction(signal, &action, &g_previous[i]);
    // nohup asks that a closed terminal ends nothing.
    if (signal == SIGHUP && g_previous[i].sa_handler == SIG_IGN) sigaction(signal, &g_previous[i], nullptr);
  }
}

SignalGuard::~SignalGuard() {
  if (--g_guards > 0) return;
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i].first, &g_previous[i], nullptr);
}

int received_signal() {
  return g_signal;
}

void throw_if_interrupted() {
  const int signal = g_signal;
  if (signal != 0) throw Interrupted(signal, "stopped by " + name_of(signal));
}

}  // namespace distil_xlstm
