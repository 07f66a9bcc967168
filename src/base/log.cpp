#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "base/printable.h"

namespace distil_xlstm {
namespace {

// A message without what a terminal would act on: it may quote files.
class PrintableMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const std::string text = printable({message.payload.data(), message.payload.size()}, /*keep_newlines=*/true);
    out.append(text.data(), text.data() + text.size());
  }
  [[nodiscard]] std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<PrintableMessage>(); }
};

}  // namespace

void init_logging(std::string_view verbosity) {
  auto logger = std::make_shared<spdlog::logger>("distil-xlstm", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<PrintableMessage>('*').set_pattern("%^%l%$: %*");
  logger->set_formatter(std::move(formatter));
  logger->set_level(spdlog::level::from_str(std::string(verbosity)));
  spdlog::set_default_logger(logger);
}

ProgressLine::ProgressLine(double plain_seconds) : plain_seconds_(plain_seconds), is_terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (open_) std::fputc('\n', stderr);
}

bool ProgressLine::due() const {
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - last_;
  return since.count() >= (is_terminal_ ? 0.1 : plain_seconds_);
}

void ProgressLine::update(const std::string& text) {
  if (!due()) return;
  last_ = std::chrono::steady_clock::now();
  if (is_terminal_) {
    std::fprintf(stderr, "\r\x1b[K%s", printable(text).c_str());
    open_ = true;
  } else {
    std::fprintf(stderr, "%s\n", printable(text).c_str());
  }
  std::fflush(stderr);
}

void ProgressLine::finish(const std::string& text) {
  std::fprintf(stderr, "%s%s\n", open_ ? "\r\x1b[K" : "", printable(text).c_str());
  std::fflush(stderr);
  open_ = false;
}

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace distil_xlstm
