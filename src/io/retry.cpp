#include "io/retry.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/log.h"
#include "base/signals.h"

namespace distil_xlstm::io {

namespace {

constexpr double kLongestPauseSeconds = 60;

void pause(double seconds) {
  for (const double end = monotonic_seconds() + seconds; monotonic_seconds() < end;) {
    throw_if_interrupted();
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(0.1, seconds)));
  }
}

}  // namespace

void Retries::failed(const HttpError& error) {
  if (!error.may_pass() || ++failures_ >= policy_.max_attempts) throw;
  wait(error.what(), error.retry_after_seconds());
}

void Retries::failed(const TransferError& error) {
  if (++failures_ >= policy_.max_attempts) throw;
  wait(error.what(), 0);
}

void Retries::wait(const std::string& what, double least_seconds) {
  const double doubled = policy_.first_pause_seconds * static_cast<double>(1 << std::min(failures_ - 1, 10));
  const double seconds = std::min(kLongestPauseSeconds, std::max(least_seconds, doubled));
  spdlog::warn("{}; trying again in {:.0f} s", what, seconds);
  pause(seconds);
}

std::string get_text(const HttpRequest& request, const RetryPolicy& policy) {
  Retries retries(policy);
  while (true) {
    try {
      return http_get_text(request);
    } catch (const HttpError& error) {
      retries.failed(error);
    } catch (const TransferError& error) {
      retries.failed(error);
    }
  }
}

}  // namespace distil_xlstm::io
