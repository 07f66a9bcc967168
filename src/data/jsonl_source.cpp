// Rows of a JSONL file, or of one JSON array: a text, or a conversation.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "base/error.h"
#include "base/json_limits.h"
#include "data/byte_stream.h"
#include "data/json_array_reader.h"
#include "data/row_json.h"
#include "data/row_keys.h"
#include "data/text_reader.h"
#include "data/text_stream.h"

namespace distil_xlstm::data {

namespace {

constexpr size_t kMaxLineBytes = 256ULL << 20;

// Takes one string of the outermost object and passes over everything else: no tree is built for ordinary corpus rows.
class TextHandler {
 public:
  using number_integer_t = json::number_integer_t;
  using number_unsigned_t = json::number_unsigned_t;
  using number_float_t = json::number_float_t;
  using string_t = json::string_t;
  using binary_t = json::binary_t;

  TextHandler(std::string_view wanted, std::string& text) : wanted_(wanted), text_(text) {}

  bool null() { return other(); }
  bool boolean(bool) { return other(); }
  bool number_integer(number_integer_t) { return other(); }
  bool number_unsigned(number_unsigned_t) { return other(); }
  bool number_float(number_float_t, const string_t&) { return other(); }
  bool binary(binary_t&) { return other(); }
  bool string(string_t& value) {
    if (!is_wanted_ || depth_ != 1) return other();
    text_.swap(value);
    has_text = true;
    is_wanted_ = false;
    return true;
  }
  bool start_object(size_t) { return enter(true); }
  bool start_array(size_t) { return enter(false); }
  bool end_object() { return leave(); }
  bool end_array() { return leave(); }
  bool key(string_t& name) {
    is_wanted_ = depth_ == 1 && name == wanted_;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const json::exception&) {
    error_place = position;
    return false;
  }

  bool has_text = false;   // the key is there and its value is a string
  bool has_other = false;  // the key is there and its value is something else
  bool is_object = false;
  size_t error_place = 0;

 private:
  bool other() {
    has_other = has_other || (is_wanted_ && depth_ == 1);
    is_wanted_ = false;
    return true;
  }
  bool enter(bool object) {
    if (depth_ == 0) is_object = object;
    other();
    ++depth_;
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }

  std::string_view wanted_;
  std::string& text_;
  int depth_ = 0;
  bool is_wanted_ = false;
};

// The line with null for every NaN, Infinity and number beyond double, outside of strings.
std::string without_odd_numbers(std::string_view line) {
  constexpr std::string_view kOfNumbers = "+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::string result;
  for (size_t at = 0; at < line.size();) {
    size_t end = at + 1;
    if (line[at] == '"') {
      while (end < line.size() && line[end] != '"') end += line[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, line.size());
    } else if (kOfNumbers.find(line[at]) != std::string_view::npos) {
      end = std::min(line.find_first_not_of(kOfNumbers, at), line.size());
      const std::string word(line.substr(at, end - at));
      const bool is_name = word == "NaN" || word == "Infinity" || word == "-Infinity";
      const bool is_number = word.find_first_not_of("+-.0123456789eE") == std::string::npos;
      if (is_name || (is_number && std::isinf(std::strtod(word.c_str(), nullptr)))) {
        result += "null";
        at = end;
        continue;
      }
    }
    result.append(line, at, end - at);
    at = end;
  }
  return result;
}

class JsonlSource : public RowSource {
 public:
  JsonlSource(const fs::path& path, const ReaderOptions& options) : path_(path), options_(options) {
    auto text = open_text_stream(path);
    const size_t first = text.head.find_first_not_of(" \t\r\n");
    if (first != std::string::npos && text.head[first] == '[') {
      elements_.emplace(std::move(text.bytes), kMaxLineBytes);
      return;
    }
    // Lines of a file that was written on an old Macintosh end in a carriage return alone.
    const bool has_newline = text.head.find('\n') != std::string::npos;
    lines_.emplace(std::move(text.bytes), kMaxLineBytes, !has_newline && text.head.find('\r') != std::string::npos ? '\r' : '\n');
  }

  bool next(Document& document, RowStatus& status, std::string& problem) override {
    std::string_view line;
    bool too_long = false;
    if (!next_line(line, too_long)) return false;
    if (too_long) {
      status = RowStatus::malformed;
      problem = fmt::format("a line of more than {} MiB", kMaxLineBytes >> 20);
      return true;
    }
    problem = parse(line, document);
    if (!problem.empty()) {
      // Python writes NaN and Infinity, and numbers may be too large for a double: no reason to lose the text beside them.
      if (const std::string plain = without_odd_numbers(line); plain != line) {
        document.conversation = {};
        if (parse(plain, document).empty()) problem.clear();
      }
    }
    status = problem.empty() ? RowStatus::ok : RowStatus::malformed;
    if (status == RowStatus::ok) return true;
    // The parser refuses bytes that are no UTF-8: that is another fault, and one that can be repaired.
    std::string copy(line);
    std::string utf8_problem;
    const RowStatus utf8 = check_utf8(copy, options_.bad_rows, utf8_problem);
    if (utf8 == RowStatus::ok) return true;
    if (utf8 == RowStatus::repaired) {
      document.text.clear();
      document.conversation = {};
      problem = parse(copy, document);
      if (!problem.empty()) return true;
    }
    status = utf8;
    problem = utf8_problem;
    return true;
  }

  void skip(uint64_t num_rows) override {
    std::string_view line;
    bool too_long = false;
    for (; num_rows > 0 && next_line(line, too_long); --num_rows) {
    }
  }
  [[nodiscard]] uint64_t bytes_done() const override { return elements_ ? elements_->bytes_done() : lines_->bytes_done(); }
  [[nodiscard]] std::string row_name() const override { return fmt::format("{} {}", elements_ ? "element" : "line", line_number_); }

 private:
  bool next_line(std::string_view& line, bool& too_long) {
    while (elements_ ? elements_->next(line, too_long) : lines_->next(line, too_long)) {
      ++line_number_;
      if (line.find_first_not_of(" \t\r\n") != std::string_view::npos) return true;
    }
    if (elements_ && elements_->is_cut()) {
      throw DataError("{}: a JSON array that does not end: the file is cut short", path_.string());
    }
    return false;
  }

  // "" or what is wrong with the row.
  std::string parse(std::string_view line, Document& document) {
    if (options_.rows != RowKind::chat) {
      TextHandler handler(options_.text_key, document.text);
      const bool valid = json::sax_parse(line.begin(), line.end(), &handler);
      if (!valid) return fmt::format("not JSON from byte {} of the line on", handler.error_place);
      if (!handler.is_object) return "not a JSON object";
      if (handler.has_text) return "";
      if (handler.has_other) return fmt::format("'{}' is not a string", options_.text_key);
      if (options_.rows == RowKind::text) return fmt::format("no '{}' (--text-key names another)", options_.text_key);
    }
    json row;
    if (auto problem = parse_row(line, row); !problem.empty()) return problem;
    if (!row.is_object()) return "not a JSON object";
    return read_conversation(std::move(row), options_, document.conversation);
  }

  fs::path path_;
  const ReaderOptions& options_;
  std::optional<LineReader> lines_;          // one row a line
  std::optional<JsonArrayReader> elements_;  // or all of them in one array
  uint64_t line_number_ = 0;                 // of the last line or element, from 1, empty lines counted
};

}  // namespace

std::unique_ptr<RowSource> open_jsonl_source(const fs::path& path, const ReaderOptions& options) {
  return std::make_unique<JsonlSource>(path, options);
}

}  // namespace distil_xlstm::data
