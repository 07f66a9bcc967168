// JSON with errors that name the file and the key.
#pragma once

#include <nlohmann/json.hpp>

#include <string_view>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace distil_xlstm {

using json = nlohmann::ordered_json;

// Parses a file; throws DataError with path and byte offset.
json read_json(const fs::path& path);

// Parses text; `where` names its origin in the DataError.
json parse_json(std::string_view text, std::string_view where);

// Writes with two-space indent and a final newline, atomically. Non-finite numbers become null.
void write_json(const fs::path& path, const json& value);

// Whether `value` is a T without loss: the library's own conversion makes 1 of 1.9, and of 4294967297 as int32_t.
template <typename T>
bool holds(const json& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value.is_boolean();
  } else if constexpr (std::is_integral_v<T>) {
    if (value.is_number_unsigned()) return std::in_range<T>(value.get<uint64_t>());
    return value.is_number_integer() && std::in_range<T>(value.get<int64_t>());
  } else if constexpr (std::is_floating_point_v<T>) {
    return value.is_number();
  } else {
    return true;  // what else there is, the conversion checks
  }
}

// object[key] as T; throws DataError that names `where` and the key when it is missing, of another type or out of T's range.
template <typename T>
T require(const json& object, std::string_view key, std::string_view where) {
  auto it = object.find(key);
  if (it == object.end()) throw DataError("{}: key '{}' is missing", where, key);
  try {
    if (holds<T>(*it)) return it->template get<T>();
  } catch (const nlohmann::json::exception&) {  // NOLINT(bugprone-empty-catch): told below
  }
  const std::string text = it->dump(-1, ' ', false, json::error_handler_t::replace);
  throw DataError("{}: key '{}' is {}, which has the wrong type{}", where, key, text, std::is_integral_v<T> ? " or is out of range" : "");
}

// object[key] as T, or `fallback` when the key is missing or null.
template <typename T>
T get_or(const json& object, std::string_view key, T fallback, std::string_view where = "") {
  auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  return require<T>(object, key, where);
}

}  // namespace distil_xlstm
