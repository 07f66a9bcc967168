#include "base/json.h"

#include <unordered_set>

#include "base/foreign_content.h"
#include "base/json_limits.h"

namespace distil_xlstm {
namespace {

// What nlohmann::json says, without the number and the place that it puts before it: "...parse error at line 1, column 2: ...".
std::string_view reason(std::string_view what) {
  if (const size_t end = what.find("] "); what.starts_with("[json.exception.") && end != std::string_view::npos)
    what.remove_prefix(end + 2);
  if (const size_t end = what.find(": "); what.starts_with("parse error") && end != std::string_view::npos) what.remove_prefix(end + 2);
  return what;
}

// Sees everything and keeps nothing: what to look at is overridden.
template <typename Json>
struct SilentHandler : nlohmann::json_sax<Json> {
  using Base = nlohmann::json_sax<Json>;
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(typename Base::number_integer_t) override { return true; }
  bool number_unsigned(typename Base::number_unsigned_t) override { return true; }
  bool number_float(typename Base::number_float_t, const typename Base::string_t&) override { return true; }
  bool string(typename Base::string_t&) override { return true; }
  bool binary(typename Base::binary_t&) override { return true; }
  bool key(typename Base::string_t&) override { return true; }
  bool start_object(size_t) override { return begin(); }
  bool start_array(size_t) override { return begin(); }
  bool end_object() override { return --depth, true; }
  bool end_array() override { return --depth, true; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }
  virtual bool begin() { return ++depth, true; }
  size_t depth = 0;
};

// Stops where levels are too many, for a format whose reader goes down by recursion.
struct DepthHandler : SilentHandler<json> {
  bool begin() override { return ++depth <= kMaxJsonDepth; }
};

struct KeyHandler : SilentHandler<UnorderedJson> {
  bool key(std::string& name) override {
    if (depth != 1 || seen.insert(name).second) return true;
    repeated = name;
    return false;
  }
  std::unordered_set<std::string> seen;
  std::optional<std::string> repeated;
};

// Strings and blobs of unknown length may hold others, each a byte and a call of the reader. Nothing that is written here has them, so a
// long run of such bytes is a fault (or a mask of 32 768 tokens of which exactly every eighth counts otherwise than the rest).
bool has_nested_strings(std::string_view bytes) {
  constexpr size_t kLongest = 4096;
  size_t run = 0;
  for (const char byte : bytes) {
    run = byte == '\x5f' || byte == '\x7f' ? run + 1 : 0;
    if (run > kLongest) return true;
  }
  return false;
}

}  // namespace

namespace {

// Calls found(character) for each bracket and comma outside of strings, until it says true: that place.
template <typename Found>
std::optional<size_t> find_structure(std::string_view text, const Found& found) {
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '"') {
      for (++at; at < text.size() && text[at] != '"'; ++at) {
        if (text[at] == '\\') ++at;
      }
    } else if ((c == '[' || c == ']' || c == '{' || c == '}' || c == ',') && found(c)) {
      return at;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<size_t> json_too_deep_at(std::string_view text) {
  size_t depth = 0;
  return find_structure(text, [&](char c) {
    if (c == '[' || c == '{') return ++depth > kMaxJsonDepth;
    if (c != ',' && depth > 0) --depth;
    return false;
  });
}

std::optional<size_t> json_too_wide_at(std::string_view text) {
  std::vector<size_t> commas;  // of the open objects; of a list none are counted
  constexpr size_t kList = SIZE_MAX;
  return find_structure(text, [&](char c) {
    if (c == '[' || c == '{') {
      commas.push_back(c == '[' ? kList : 0);
    } else if (c != ',') {
      if (!commas.empty()) commas.pop_back();
    } else if (!commas.empty() && commas.back() != kList) {
      return ++commas.back() >= kMaxOrderedKeys;
    }
    return false;
  });
}

namespace {

template <typename Json>
Json parse_bounded(std::string_view text, std::string_view where) {
  if (const auto place = json_too_deep_at(text)) {
    throw DataError(
        "{}: more than {} levels of lists and objects inside each other (at byte {}): no file that this program reads needs them", where,
        kMaxJsonDepth, *place);
  }
  try {
    return Json::parse(text);
  } catch (const typename Json::parse_error& error) {
    throw DataError("{}: not JSON at byte {}: {}", where, error.byte, reason(error.what()));
  } catch (const typename Json::exception& error) {  // a number that is too large
    throw DataError("{}: not JSON: {}", where, reason(error.what()));
  }
}

}  // namespace

json parse_json(std::string_view text, std::string_view where) {
  if (json_too_deep_at(text)) return parse_bounded<json>(text, where);  // says so
  if (const auto place = json_too_wide_at(text)) {
    throw DataError("{}: an object of more than {} keys (at byte {}): no file that this program reads needs them", where, kMaxOrderedKeys,
                    *place);
  }
  return parse_bounded<json>(text, where);
}

UnorderedJson parse_unordered_json(std::string_view text, std::string_view where) {
  return parse_bounded<UnorderedJson>(text, where);
}

std::optional<std::string> repeated_key(std::string_view text) {
  KeyHandler keys;
  UnorderedJson::sax_parse(text, &keys);
  return keys.repeated;
}

json parse_cbor(std::string_view bytes) {
  DepthHandler depth;
  const bool is_sound = !has_nested_strings(bytes) && json::sax_parse(bytes, &depth, json::input_format_t::cbor);
  return is_sound ? json::from_cbor(bytes, true, false) : json(json::value_t::discarded);
}

json read_json(const fs::path& path) {
  const std::string text = read_file(path);
  throw_if_foreign(text, path.string(), ContentKind::json);
  return parse_json(text, path.string());
}

void write_json(const fs::path& path, const json& value) {
  write_file_atomic(path, value.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
}

}  // namespace distil_xlstm
