#include "base/json.h"

namespace distil_xlstm {

json parse_json(std::string_view text, std::string_view where) {
  try {
    return json::parse(text);
  } catch (const json::parse_error& error) {
    throw DataError("{}: not JSON at byte {}: {}", where, error.byte, error.what());
  } catch (const json::exception& error) {  // a number that is too large
    throw DataError("{}: not JSON: {}", where, error.what());
  }
}

json read_json(const fs::path& path) {
  return parse_json(read_file(path), path.string());
}

void write_json(const fs::path& path, const json& value) {
  write_file_atomic(path, value.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
}

}  // namespace distil_xlstm
