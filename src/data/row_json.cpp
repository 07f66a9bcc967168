#include "data/row_json.h"

#include <map>
#include <set>
#include <vector>

#include "base/json_limits.h"

namespace distil_xlstm::data {

namespace {

// Keeps of each key its first place and its last value.
void keep_last(json::object_t& object) {
  std::map<std::string_view, size_t> last;
  for (size_t i = 0; i < object.size(); ++i) last[(object.begin() + static_cast<ptrdiff_t>(i))->first] = i;
  if (last.size() == object.size()) return;
  json::object_t unique;
  std::set<std::string_view> seen;
  for (const auto& [key, value] : object) {
    if (seen.insert(key).second) unique.emplace_back(key, (object.begin() + static_cast<ptrdiff_t>(last.at(key)))->second);
  }
  object = std::move(unique);
}

class RowBuilder {
 public:
  using number_integer_t = json::number_integer_t;
  using number_unsigned_t = json::number_unsigned_t;
  using number_float_t = json::number_float_t;
  using string_t = json::string_t;
  using binary_t = json::binary_t;

  explicit RowBuilder(json& root) : root_(root) {}

  bool null() { return add(nullptr) != nullptr; }
  bool boolean(bool value) { return add(value) != nullptr; }
  bool number_integer(number_integer_t value) { return add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) { return add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) { return add(value) != nullptr; }
  bool string(string_t& value) { return add(std::move(value)) != nullptr; }
  bool binary(binary_t&) { return false; }  // not in JSON
  bool start_object(size_t) { return open(json::object()); }
  bool start_array(size_t) { return open(json::array()); }
  bool key(string_t& name) {
    key_ = std::move(name);
    return true;
  }
  bool end_object() {
    keep_last(open_.back()->get_ref<json::object_t&>());
    open_.pop_back();
    return true;
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool parse_error(size_t, const std::string&, const json::exception&) { return false; }

 private:
  json* add(json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    auto& object = parent.get_ref<json::object_t&>();
    object.emplace_back(std::move(key_), std::move(value));  // without a search for the key
    return &object.back().second;
  }
  bool open(json value) {
    open_.push_back(add(std::move(value)));
    return true;
  }

  json& root_;
  std::vector<json*> open_;  // the containers around the place reached
  std::string key_;
};

}  // namespace

std::string parse_row(std::string_view text, json& row) {
  if (const auto place = json_too_deep_at(text))
    return fmt::format("more than {} levels of lists and objects inside each other at byte {}", kMaxJsonDepth, *place);
  RowBuilder builder(row);
  return json::sax_parse(text.begin(), text.end(), &builder) ? "" : "not JSON";
}

}  // namespace distil_xlstm::data
