#include "data/record_reader.h"

#include <array>
#include <optional>

#include "base/error.h"
#include "base/foreign_content.h"
#include "base/text.h"
#include "data/byte_stream.h"
#include "data/json_array_reader.h"
#include "data/parquet_library.h"
#include "data/row_json.h"
#include "data/text_stream.h"

namespace distil_xlstm::data {
namespace {

constexpr size_t kMaxRowBytes = 256ULL << 20;

class JsonRecords final : public RecordReader {
 public:
  explicit JsonRecords(const fs::path& path) : path_(path) {
    auto text = open_text_stream(path);
    const size_t first = text.head.find_first_not_of(" \t\r\n");
    if (first != std::string::npos && text.head[first] == '[') {
      elements_.emplace(std::move(text.bytes), kMaxRowBytes);
    } else {
      lines_.emplace(std::move(text.bytes), kMaxRowBytes);
    }
    waits_ = read(first_row_);
  }

  bool has_key(const std::string& key) override { return first_row_.contains(key); }

  std::vector<std::string> first_keys() override {
    std::vector<std::string> keys;
    for (const auto& item : first_row_.items()) keys.push_back(item.key());
    return keys;
  }

  bool next(const std::vector<std::string>& keys, json& row) override {
    json whole;
    if (waits_) {
      waits_ = false;
      whole = first_row_;
    } else if (!read(whole)) {
      return false;
    }
    row = json::object();
    for (const auto& key : keys) {
      const auto found = whole.find(key);
      if (found == whole.end()) throw DataError("{}: key '{}' is missing", place(), key);
      row[key] = std::move(*found);
    }
    return true;
  }

  [[nodiscard]] std::string place() const override {
    return fmt::format("{}: {} {}", path_.string(), elements_ ? "element" : "line", number_);
  }

 private:
  // The next row, empty lines passed over.
  bool read(json& row) {
    std::string_view text;
    bool too_long = false;
    do {
      if (!(elements_ ? elements_->next(text, too_long) : lines_->next(text, too_long))) {
        if (elements_ && elements_->is_cut()) throw DataError("{}: a JSON array that does not end: the file is cut short", path_.string());
        return false;
      }
      ++number_;
    } while (text.find_first_not_of(" \t\r\n") == std::string_view::npos);
    if (too_long) throw DataError("{}: a row of more than {} MiB", place(), kMaxRowBytes >> 20);
    if (const auto problem = parse_row(text, row); !problem.empty()) throw DataError("{}: {}", place(), problem);
    if (!row.is_object()) throw DataError("{}: not a JSON object", place());
    return true;
  }

  fs::path path_;
  std::optional<LineReader> lines_;          // one row a line
  std::optional<JsonArrayReader> elements_;  // or all of them in one array
  uint64_t number_ = 0;                      // of the last line or element, from 1
  json first_row_ = json::object();
  bool waits_ = false;  // the first row was read and not given yet
};

class ParquetRecords final : public RecordReader {
 public:
  explicit ParquetRecords(const fs::path& path) : path_(path), library_(parquet_library()) {
    file_.reset(library_.open(path.c_str(), message_.data(), message_.size()));
    if (file_) return;
    throw_if_foreign(read_beginning(path), path.string(), ContentKind::binary);
    fail();
  }

  bool has_key(const std::string& key) override { return kind(key) != ColumnKind::none; }

  bool next(const std::vector<std::string>& keys, json& row) override {
    if (!has_selected_) select(keys);
    if (at_ == num_rows_ && !read_batch()) return false;
    ++number_;
    row = json::object();
    for (size_t column = 0; column < keys.size(); ++column) row[keys[column]] = value(column, keys[column]);
    ++at_;
    return true;
  }

  [[nodiscard]] std::string place() const override { return fmt::format("{}: row {}", path_.string(), number_); }

 private:
  [[noreturn]] void fail() const { throw DataError("{}: cannot read it as Parquet: {}", path_.string(), message_.data()); }

  [[nodiscard]] ColumnKind kind(const std::string& name) const {
    return static_cast<ColumnKind>(library_.column_kind(file_.get(), name.c_str()));
  }

  void select(const std::vector<std::string>& keys) {
    std::vector<const char*> names;
    for (const auto& key : keys) {
      if (!has_key(key)) throw DataError("{}: column '{}' is missing", path_.string(), key);
      names.push_back(key.c_str());
      is_text_.push_back(kind(key) == ColumnKind::text);
    }
    if (library_.select(file_.get(), names.data(), names.size(), 0, message_.data(), message_.size()) != 0) fail();
    has_selected_ = true;
  }

  bool read_batch() {
    at_ = 0;
    num_rows_ = library_.next(file_.get(), message_.data(), message_.size());
    if (num_rows_ < 0) fail();
    return num_rows_ > 0;
  }

  json value(size_t column, const std::string& key) {
    size_t size = 0;
    const char* found = library_.value(file_.get(), column, at_, &size, message_.data(), message_.size());
    if (found == nullptr && message_[0] != 0) throw DataError("{}: column '{}': {}", place(), key, message_.data());
    if (found == nullptr) return nullptr;
    const std::string_view text(found, size);
    if (valid_utf8_prefix(text) != size) throw DataError("{}: column '{}' is not UTF-8", place(), key);
    if (is_text_[column]) return text;
    json tree;
    if (const auto problem = parse_row(text, tree); !problem.empty()) throw DataError("{}: column '{}': {}", place(), key, problem);
    return tree;
  }

  fs::path path_;
  const ParquetLibrary& library_;
  std::array<char, 1024> message_{};
  std::unique_ptr<DxParquet, CloseParquet> file_;
  std::vector<bool> is_text_;  // of the columns selected: strings, given as they are; else JSON
  bool has_selected_ = false;
  uint64_t number_ = 0;            // of the last row, from 1
  int64_t at_ = 0, num_rows_ = 0;  // in the batch at hand, of it
};

}  // namespace

std::unique_ptr<RecordReader> open_records(const fs::path& path) {
  if (path.extension() == ".parquet") return std::make_unique<ParquetRecords>(path);
  return std::make_unique<JsonRecords>(path);
}

}  // namespace distil_xlstm::data
