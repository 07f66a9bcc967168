#include "base/json.h"

namespace distil_xlstm {
namespace {

// What nlohmann::json says, without the number and the place that it puts before it: "...parse error at line 1, column 2: ...".
std::string_view reason(std::string_view what) {
  if (const size_t end = what.find("] "); what.starts_with("[json.exception.") && end != std::string_view::npos)
    what.remove_prefix(end + 2);
  if (const size_t end = what.find(": "); what.starts_with("parse error") && end != std::string_view::npos) what.remove_prefix(end + 2);
  return what;
}

}  // namespace

json parse_json(std::string_view text, std::string_view where) {
  try {
    return json::parse(text);
  } catch (const json::parse_error& error) {
    throw DataError("{}: not JSON at byte {}: {}", where, error.byte, reason(error.what()));
  } catch (const json::exception& error) {  // a number that is too large
    throw DataError("{}: not JSON: {}", where, reason(error.what()));
  }
}

json read_json(const fs::path& path) {
  return parse_json(read_file(path), path.string());
}

void write_json(const fs::path& path, const json& value) {
  write_file_atomic(path, value.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
}

}  // namespace distil_xlstm
