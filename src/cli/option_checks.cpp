#include "cli/option_checks.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/output_directory.h"

namespace distil_xlstm::cli {
namespace {

std::optional<double> to_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

}  // namespace

CLI::Validator device_name() {
  return {[](std::string& text) -> std::string {
            const bool is_numbered =
                text.starts_with("cuda:") && text.size() > 5 && text.find_first_not_of("0123456789", 5) == std::string::npos;
            if (text == "auto" || text == "cpu" || text == "cuda" || is_numbered) return "";
            return fmt::format("device '{}': must be auto, cpu, cuda or cuda:N (N is a number)", text);
          },
          ""};
}

CLI::Validator precision_name() {
  return {[](std::string& text) -> std::string {
            for (const char* name : {"auto", "fp32", "bf16", "fp16"}) {
              if (text == name) return "";
            }
            return fmt::format("precision '{}': must be auto, fp32, bf16 or fp16", text);
          },
          ""};
}

CLI::Validator at_least(int64_t low) {
  return {[low](std::string& text) -> std::string {
            const auto value = to_number(text);
            return value && *value < static_cast<double>(low) ? fmt::format("{}: must be at least {}", text, low) : "";
          },
          ""};
}

CLI::Validator at_most(int64_t high) {
  return {[high](std::string& text) -> std::string {
            const auto value = to_number(text);
            return value && *value > static_cast<double>(high) ? fmt::format("{}: must be at most {}", text, high) : "";
          },
          ""};
}

CLI::Validator positive_number() {
  return {[](std::string& text) -> std::string {
            const auto value = to_number(text);
            return value && !(*value > 0 && std::isfinite(*value)) ? fmt::format("{}: must be above 0", text) : "";
          },
          ""};
}

CLI::Validator output_file() {
  return {[](std::string& text) -> std::string {
            try {
              if (text != "-") check_output_file(text, "");
              return "";
            } catch (const Error& error) {
              return error.what();
            }
          },
          ""};
}

}  // namespace distil_xlstm::cli
