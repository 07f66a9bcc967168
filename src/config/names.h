// Enums whose values have names, in files and on the command line: one table an enum, in the order of its values (config/choices.h).
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace distil_xlstm::config {

// The names of E's values; an enum gets them by a specialisation.
template <typename E>
inline constexpr std::array<std::string_view, 0> kNames{};

template <typename E>
concept Named = !kNames<E>.empty();

template <Named E>
constexpr std::string_view name_of(E value) {
  return kNames<E>.at(static_cast<size_t>(value));
}

template <Named E>
std::vector<std::string> names_of() {
  return {kNames<E>.begin(), kNames<E>.end()};
}

// `KEY = "TEXT": allowed are a, b (did you mean 'a'?)`
ConfigError unknown_name(std::string_view text, const std::vector<std::string>& allowed, std::string_view key);

// Throws unknown_name.
template <Named E>
E parse_name(std::string_view text, std::string_view key) {
  for (size_t i = 0; i < kNames<E>.size(); ++i) {
    if (kNames<E>[i] == text) return static_cast<E>(i);
  }
  throw unknown_name(text, names_of<E>(), key);
}

}  // namespace distil_xlstm::config
