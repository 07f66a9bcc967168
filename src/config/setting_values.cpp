#include "config/setting_values.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace distil_xlstm::config {

bool Range::contains(double value) const {
  return std::isfinite(value) && (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
}

std::string Range::text() const {
  std::string result;
  if (low != -kInfinity) result = fmt::format("{} {}", low_open ? ">" : ">=", low);
  if (high != kInfinity) result += fmt::format("{}{} {}", result.empty() ? "" : " and ", high_open ? "<" : "<=", high);
  return result;
}

std::string quoted_list(const Names& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) text += fmt::format("{}\"{}\"", i == 0 ? "" : i + 1 == names.size() ? " or " : ", ", names[i]);
  return text;
}

std::string must_be(const std::string& allowed) {
  return "must be " + allowed;
}

std::string read_text(std::string& out, const json& value, const std::string& allowed) {
  if (!value.is_string()) return must_be(allowed);
  const auto& text = value.get_ref<const std::string&>();
  if (valid_utf8_prefix(text) != text.size()) return "must be valid UTF-8";
  out = text;
  return "";
}

std::string read_name(std::string& out, const json& value, const Names& names, const std::string& allowed) {
  if (!value.is_string()) return must_be(allowed);
  const auto& text = value.get_ref<const std::string&>();
  if (std::ranges::find(names, text) == names.end()) return must_be(allowed) + did_you_mean(text, names);
  out = text;
  return "";
}

std::string read_integer(int64_t& out, const json& value, const Range& range, const std::string& allowed) {
  int64_t number = 0;
  if (value.is_number_integer()) {
    number = value.get<int64_t>();
  } else if (value.is_string()) {
    try {
      number = parse_count(value.get<std::string>(), "count");
    } catch (const ValueError&) {
      return must_be(allowed);
    }
  } else {
    return must_be(allowed);
  }
  if (!range.contains(static_cast<double>(number))) return must_be(allowed);
  out = number;
  return "";
}

std::string read_number(double& out, const json& value, const Range& range, const std::string& allowed) {
  if (!value.is_number() || !range.contains(value.get<double>())) return must_be(allowed);
  out = value.get<double>();
  return "";
}

std::string read_flag(bool& out, const json& value) {
  if (!value.is_boolean()) return must_be("true or false");
  out = value.get<bool>();
  return "";
}

std::string read_indices(std::vector<int64_t>& out, const json& value, const std::string& allowed) {
  if (!value.is_array()) return must_be(allowed);
  std::vector<int64_t> indices;
  for (const auto& item : value) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0) return must_be(allowed);
    indices.push_back(item.get<int64_t>());
  }
  std::ranges::sort(indices);
  if (std::ranges::adjacent_find(indices) != indices.end()) return "names a block twice";
  out = std::move(indices);
  return "";
}

bool is_count(const json& value) {
  return value.is_number() || (value.is_string() && std::isdigit(static_cast<unsigned char>(value.get_ref<const std::string&>()[0])) != 0);
}

}  // namespace distil_xlstm::config
