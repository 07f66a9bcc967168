// JSON with errors that name the file and the key.
#pragma once

#include <nlohmann/json.hpp>

#include <string_view>

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

// object[key] as T; throws DataError that names `where` and the key when it is missing or of another type.
template <typename T>
T require(const json& object, std::string_view key, std::string_view where) {
  auto it = object.find(key);
  if (it == object.end()) throw DataError("{}: key '{}' is missing", where, key);
  try {
    return it->template get<T>();
  } catch (const nlohmann::json::exception&) {
    throw DataError("{}: key '{}' is {}, which has the wrong type", where, key, it->dump());
  }
}

// object[key] as T, or `fallback` when the key is missing or null.
template <typename T>
T get_or(const json& object, std::string_view key, T fallback, std::string_view where = "") {
  auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  return require<T>(object, key, where);
}

}  // namespace distil_xlstm
