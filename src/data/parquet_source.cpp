// Rows of a Parquet file: a text, or a conversation.
#include <array>
#include <optional>

#include "base/error.h"
#include "base/foreign_content.h"
#include "data/parquet_library.h"
#include "data/row_json.h"
#include "data/row_keys.h"
#include "data/text_reader.h"

namespace distil_xlstm::data {

namespace {

class ParquetSource : public RowSource {
 public:
  ParquetSource(const fs::path& path, const ReaderOptions& options)
      : path_(path), options_(options), library_(parquet_library()), size_bytes_(fs::file_size(path)) {
    file_.reset(library_.open(path.c_str(), message_.data(), message_.size()));
    if (!file_) {
      throw_if_foreign(read_beginning(path), path.string(), ContentKind::binary);
      fail();
    }
    choose_columns();
    select(0);
  }

  bool next(Document& document, RowStatus& status, std::string& problem) override {
    if (row_ == num_rows_ && !read_batch()) return false;
    const int64_t row = row_++;
    status = RowStatus::ok;
    json tree = json::object();
    for (size_t i = 0; i < columns_.size(); ++i) {
      std::string text;
      const bool has_value = read_value(i, row, text, status, problem);
      if (status == RowStatus::malformed || status == RowStatus::invalid_utf8) return true;
      if (!is_chat_) {
        if (!has_value) problem = fmt::format("'{}' is null", columns_[i]);
        if (!has_value) status = RowStatus::malformed;
        document.text = std::move(text);
      } else if (!has_value) {
        tree[columns_[i]] = nullptr;
      } else if (is_json_[i]) {
        json value;
        if (auto fault = parse_row(text, value); !fault.empty()) return refuse("'" + columns_[i] + "': " + fault, status, problem);
        tree[columns_[i]] = std::move(value);
      } else {
        tree[columns_[i]] = std::move(text);
      }
    }
    if (!is_chat_) return true;
    if (auto fault = read_conversation(std::move(tree), options_, document.conversation); !fault.empty())
      return refuse(std::move(fault), status, problem);
    return true;
  }

  void skip(uint64_t num_rows) override {
    if (num_rows > 0) select(static_cast<int64_t>(num_rows));
  }
  // By rows: what Arrow has read of the file is not known.
  [[nodiscard]] uint64_t bytes_done() const override {
    const double share =
        static_cast<double>(rows_before_ + row_) / static_cast<double>(std::max<int64_t>(1, library_.num_rows(file_.get())));
    return static_cast<uint64_t>(share * static_cast<double>(size_bytes_));
  }

 private:
  [[noreturn]] void fail() const { throw DataError("{}: cannot read it as Parquet: {}", path_.string(), message_.data()); }

  static bool refuse(std::string fault, RowStatus& status, std::string& problem) {
    status = RowStatus::malformed;
    problem = std::move(fault);
    return true;
  }

  // False where the value is null. What is no UTF-8 is repaired, or told in `status`.
  bool read_value(size_t column, int64_t row, std::string& text, RowStatus& status, std::string& problem) {
    size_t size = 0;
    const char* value = library_.value(file_.get(), column, row, &size, message_.data(), message_.size());
    if (value == nullptr && message_[0] != 0) throw DataError("{}: column '{}': {}", path_.string(), columns_[column], message_.data());
    if (value == nullptr) return false;
    text.assign(value, size);
    const RowStatus utf8 = check_utf8(text, options_.bad_rows, problem);
    if (utf8 != RowStatus::ok) status = utf8;
    return true;
  }

  using Kind = ColumnKind;
  [[nodiscard]] Kind kind(const std::string& name) const { return static_cast<Kind>(library_.column_kind(file_.get(), name.c_str())); }
  [[nodiscard]] bool has_text(const std::string& name) const { return kind(name) == Kind::text; }
  [[nodiscard]] std::string type(const std::string& name) const { return library_.column_type(file_.get(), name.c_str()); }

  void add_column(const std::string& name) {
    if (kind(name) != Kind::text && kind(name) != Kind::nested) return;
    columns_.push_back(name);
    is_json_.push_back(kind(name) == Kind::nested);
  }

  void choose_columns() {
    if (options_.rows != RowKind::chat && has_text(options_.text_key)) return add_column(options_.text_key);
    is_chat_ = options_.rows != RowKind::text && (choose_messages() || choose_pair());
    if (!is_chat_) refuse_columns();
    for (const char* variables : {"tools", "documents", "chat_template_kwargs"}) add_column(variables);
  }

  // Messages are lists of structs, or JSON in strings.
  bool choose_messages() {
    if (!options_.prompt_key.empty()) return false;
    for (const std::string& name : {options_.messages_key, std::string("conversations")}) {
      const bool is_known = name == options_.messages_key || options_.messages_key == "messages";
      if (!is_known || (kind(name) != Kind::nested && kind(name) != Kind::text)) continue;
      add_column(name);
      is_json_.back() = true;
      return true;
    }
    return false;
  }

  bool choose_pair() {
    for (const auto& keys : prompt_answer_keys(options_)) {
      if (!has_text(keys.prompt) || !has_text(keys.answer)) continue;
      add_column(keys.prompt);
      add_column(keys.answer);
      if (!keys.input.empty() && has_text(keys.input)) add_column(keys.input);
      return true;
    }
    return false;
  }

  // Names what is there under a known name, but of a type that is not read.
  [[noreturn]] void refuse_columns() const {
    std::vector<std::string> names;
    if (options_.rows != RowKind::chat) names.push_back(options_.text_key);
    if (options_.rows != RowKind::text) {
      if (options_.prompt_key.empty()) names.push_back(options_.messages_key);
      for (const auto& keys : prompt_answer_keys(options_)) {
        if (kind(keys.prompt) == Kind::none || kind(keys.answer) == Kind::none) continue;
        names.insert(names.end(), {keys.prompt, keys.answer});
      }
    }
    for (const auto& name : names) {
      const bool is_text_key = name == options_.text_key && options_.rows != RowKind::chat;
      if (kind(name) == Kind::other || (kind(name) == Kind::nested && (is_text_key || name != options_.messages_key))) {
        throw DataError(
            "{}: column '{}' is {}, and holds no strings: --text-key, --messages-key or --prompt-key and --answer-key name others",
            path_.string(), name, type(name));
      }
    }
    const std::string text =
        options_.rows == RowKind::chat ? "" : fmt::format("column of strings '{}' (--text-key names another)", options_.text_key);
    const std::string chat = options_.rows == RowKind::text ? "" : conversation_keys(options_);
    throw DataError("{}: no {}{}{}", path_.string(), text, text.empty() || chat.empty() ? "" : " and no ", chat);
  }

  void select(int64_t first_row) {
    std::vector<const char*> names;
    for (const auto& column : columns_) names.push_back(column.c_str());
    if (library_.select(file_.get(), names.data(), names.size(), first_row, message_.data(), message_.size()) != 0) fail();
    rows_before_ = first_row;
    row_ = num_rows_ = 0;
  }

  bool read_batch() {
    rows_before_ += num_rows_;
    row_ = 0;
    num_rows_ = library_.next(file_.get(), message_.data(), message_.size());
    if (num_rows_ < 0) fail();
    return num_rows_ > 0;
  }

  fs::path path_;
  const ReaderOptions& options_;
  const ParquetLibrary& library_;
  uint64_t size_bytes_;
  std::array<char, 1024> message_{};
  std::unique_ptr<DxParquet, CloseParquet> file_;
  std::vector<std::string> columns_;
  std::vector<bool> is_json_;  // for each: whether its strings are JSON
  bool is_chat_ = false;
  int64_t rows_before_ = 0;  // before the batch at hand
  int64_t row_ = 0;          // in it
  int64_t num_rows_ = 0;     // of it
};

}  // namespace

std::unique_ptr<RowSource> open_parquet_source(const fs::path& path, const ReaderOptions& options) {
  return std::make_unique<ParquetSource>(path, options);
}

}  // namespace distil_xlstm::data
