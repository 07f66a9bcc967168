// Rows of a JSONL file: a text, or a conversation.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "base/error.h"
#include "base/json_limits.h"
#include "data/byte_stream.h"
#include "data/row_keys.h"
#include "data/text_reader.h"

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

// A row as a tree. Not the project's ordered `json`, which looks through all keys of an object at each insertion.
using Row = nlohmann::json;

std::optional<std::string> string_at(const Row& row, const std::string& key) {
  const auto it = row.find(key);
  if (it == row.end() || !it->is_string()) return std::nullopt;
  return it->get<std::string>();
}

// [{role, content}]: "" or what is wrong.
std::string read_messages(const Row& list, const std::string& key, std::vector<ChatMessage>& messages) {
  if (!list.is_array() || list.empty()) return fmt::format("'{}' is not a list of messages", key);
  for (const auto& entry : list) {
    auto role = entry.is_object() ? string_at(entry, "role") : std::nullopt;
    auto content = entry.is_object() ? string_at(entry, "content") : std::nullopt;
    if (!role || !content) return fmt::format("a message in '{}' lacks the strings 'role' and 'content'", key);
    messages.push_back({std::move(*role), std::move(*content)});
  }
  return "";
}

std::string read_conversation(const Row& row, const ReaderOptions& options, std::vector<ChatMessage>& messages) {
  if (options.prompt_key.empty()) {
    const auto list = row.find(options.messages_key);
    if (list != row.end()) return read_messages(*list, options.messages_key, messages);
  }
  for (const auto& keys : prompt_answer_keys(options)) {
    auto prompt = string_at(row, keys.prompt);
    auto answer = string_at(row, keys.answer);
    if (!prompt || !answer) continue;
    const auto input = keys.input.empty() ? std::nullopt : string_at(row, keys.input);
    add_turn(std::move(*prompt), input.value_or(""), std::move(*answer), messages);
    return "";
  }
  return fmt::format("no {}{}", options.rows == RowKind::chat ? "" : "'" + options.text_key + "' and no ", conversation_keys(options));
}

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
  JsonlSource(const fs::path& path, const ReaderOptions& options) : options_(options), lines_(open_byte_stream(path), kMaxLineBytes) {}

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
        document.messages.clear();
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
      document.messages.clear();
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
  [[nodiscard]] uint64_t bytes_done() const override { return lines_.bytes_done(); }
  [[nodiscard]] std::string row_name() const override { return fmt::format("line {}", line_number_); }

 private:
  bool next_line(std::string_view& line, bool& too_long) {
    while (lines_.next(line, too_long)) {
      ++line_number_;
      if (line.find_first_not_of(" \t\r") != std::string_view::npos) return true;
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
    if (const auto place = json_too_deep_at(line))
      return fmt::format("more than {} levels of lists and objects inside each other at byte {} of the line", kMaxJsonDepth, *place);
    const Row row = Row::parse(line.begin(), line.end(), nullptr, false);
    if (row.is_discarded()) return "not JSON";
    if (!row.is_object()) return "not a JSON object";
    return read_conversation(row, options_, document.messages);
  }

  const ReaderOptions& options_;
  LineReader lines_;
  uint64_t line_number_ = 0;  // of the last line, from 1, empty ones counted
};

}  // namespace

std::unique_ptr<RowSource> open_jsonl_source(const fs::path& path, const ReaderOptions& options) {
  return std::make_unique<JsonlSource>(path, options);
}

std::vector<PromptAnswerKeys> prompt_answer_keys(const ReaderOptions& options) {
  if (!options.prompt_key.empty()) return {{options.prompt_key, options.answer_key, options.prompt_key == "instruction" ? "input" : ""}};
  return {{"prompt", "response", ""}, {"instruction", "output", "input"}, {"instruction", "response", ""}, {"question", "answer", ""}};
}

std::string conversation_keys(const ReaderOptions& options) {
  std::string text = options.prompt_key.empty() ? "'" + options.messages_key + "' or " : "";
  for (const auto& keys : prompt_answer_keys(options)) {
    if (keys.prompt != prompt_answer_keys(options).front().prompt || keys.answer != prompt_answer_keys(options).front().answer)
      text += ", ";
    text += fmt::format("'{}' with '{}'", keys.prompt, keys.answer);
  }
  return text;
}

void add_turn(std::string prompt, std::string_view input, std::string answer, std::vector<ChatMessage>& messages) {
  if (!input.empty()) prompt += fmt::format("\n\n{}", input);
  messages.push_back({"user", std::move(prompt)});
  messages.push_back({"assistant", std::move(answer)});
}

}  // namespace distil_xlstm::data
