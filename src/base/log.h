// Logging and progress on stderr; results go to stdout.
#pragma once

#include <spdlog/spdlog.h>

#include <chrono>
#include <string>
#include <string_view>

namespace distil_xlstm {

// Sends spdlog to stderr with the product's format; level from `verbosity` ("debug", "info", "warn", "error").
void init_logging(std::string_view verbosity = "info");

// A line that shows progress: rewritten in place on a terminal (at most ten times a second), printed every `plain_seconds` otherwise.
class ProgressLine {
 public:
  explicit ProgressLine(double plain_seconds = 10.0);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  void update(const std::string& text);  // shows it if it is time
  void finish(const std::string& text);  // shows it for good, with a newline
  [[nodiscard]] bool due() const;        // whether update() would show: lets callers skip building the text

 private:
  std::chrono::steady_clock::time_point last_;
  double plain_seconds_;
  bool is_terminal_;
  bool open_ = false;
};

// Seconds since some fixed point, monotonic.
double monotonic_seconds();

}  // namespace distil_xlstm
