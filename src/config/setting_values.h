// Values of settings from JSON into members, and what is allowed as people read it. Every read gives "" or what is wrong with the value.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "base/json.h"

namespace distil_xlstm::config {

// An interval of allowed numbers; an open end is left out of it.
struct Range {
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double low = -kInfinity, high = kInfinity;
  bool low_open = false, high_open = false;

  [[nodiscard]] bool contains(double value) const;  // of finite ones
  [[nodiscard]] std::string text() const;           // ">= 0 and < 1"
};

inline constexpr Range kPositive{.low = 0, .low_open = true};
inline constexpr Range kNotNegative{.low = 0};
inline constexpr Range kFraction{.low = 0, .high = 1};
inline constexpr Range kBetweenZeroAndOne{.low = 0, .high = 1, .low_open = true, .high_open = true};
inline constexpr Range kAtLeastOne{.low = 1};

using Names = std::vector<std::string>;

std::string quoted_list(const Names& names);  // "a", "b" or "c"
std::string must_be(const std::string& allowed);

std::string read_text(std::string& out, const json& value, const std::string& allowed);
std::string read_name(std::string& out, const json& value, const Names& names, const std::string& allowed);
std::string read_integer(int64_t& out, const json& value, const Range& range, const std::string& allowed);  // counts too: "512M"
std::string read_number(double& out, const json& value, const Range& range, const std::string& allowed);
std::string read_flag(bool& out, const json& value);
std::string read_indices(std::vector<int64_t>& out, const json& value, const std::string& allowed);  // sorted, each once
bool is_count(const json& value);  // whether a number, or text that begins as one

}  // namespace distil_xlstm::config
