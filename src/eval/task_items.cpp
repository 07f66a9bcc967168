#include "eval/task_items.h"

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "base/text.h"
#include "data/byte_stream.h"
#include "data/record_reader.h"
#include "data/text_stream.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::eval {
namespace {

// Where the last character of a text begins.
size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U) --at;
  return at;
}

// What Python's str.isspace() says of one character in UTF-8.
bool is_python_space(std::string_view character) {
  if (character.size() == 1) {
    const char c = character.front();
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1c' && c <= '\x1f');
  }
  constexpr std::array<std::string_view, 19> kSpaces = {"\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003",
                                                        "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
                                                        "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};
  return std::ranges::find(kSpaces, character) != kSpaces.end();
}

// len(re.split(r"\s+", text)) of Python: one more than there are runs of white space.
int64_t count_words(std::string_view text) {
  int64_t count = 1;
  bool in_space = false;
  for (size_t at = 0; at < text.size();) {
    size_t end = at + 1;
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) ++end;
    const bool is_space = is_python_space(text.substr(at, end - at));
    if (is_space && !in_space) ++count;
    in_space = is_space;
    at = end;
  }
  return count;
}

// Rows of a file of text that is cut into pages.
class PageRecords final : public data::RecordReader {
 public:
  PageRecords(const fs::path& path, std::string key) : path_(path), key_(std::move(key)) {
    const auto stream = data::open_text_stream(path);
    std::string text, buffer(size_t{1} << 16, 0);
    while (const size_t size = stream.bytes->read(buffer.data(), buffer.size())) text.append(buffer, 0, size);
    if (valid_utf8_prefix(text) != text.size()) throw DataError("{}: not UTF-8", path.string());
    pages_ = split_pages(text);
  }
  bool has_key(const std::string& key) override { return key == key_; }
  std::vector<std::string> first_keys() override { return {key_}; }
  bool next(const std::vector<std::string>& /*keys*/, json& row) override {
    if (at_ == pages_.size()) return false;
    row = {{key_, std::move(pages_[at_++])}};
    return true;
  }
  [[nodiscard]] std::string place() const override { return fmt::format("{}: page {}", path_.string(), at_); }

 private:
  fs::path path_;
  std::string key_;
  std::vector<std::string> pages_;
  size_t at_ = 0;
};

std::unique_ptr<data::RecordReader> open_records(const Task& task, const fs::path& path) {
  const std::string ending = to_lower(data::without_compression(path).extension().string());
  const bool holds_text = ending != ".parquet" && ending != ".jsonl" && ending != ".ndjson" && ending != ".json";
  if (holds_text) return std::make_unique<PageRecords>(path, task.pages_as);
  return data::open_records(path);
}

// The form whose keys the file's rows have.
const TaskForm& choose_form(const Task& task, data::RecordReader& records, const fs::path& path) {
  const auto lacks = [&](const std::string& key) { return !records.has_key(key); };
  std::vector<std::string> wanted;
  for (const TaskForm& form : task.forms) {
    if (std::ranges::none_of(form.keys, lacks)) return form;
    wanted.push_back(join(form.keys, ", "));
  }
  const auto& nearest =
      *std::ranges::min_element(task.forms, {}, [&](const TaskForm& form) { return std::ranges::count_if(form.keys, lacks); });
  const auto missing = *std::ranges::find_if(nearest.keys, lacks);
  const auto found = records.first_keys();
  throw DataError(
      "{}: row 1: key '{}' is missing: task {} reads {}{}: convert the rows, or write a task file of your own with a form for them",
      path.string(), missing, task.name, join(wanted, "; or "), found.empty() ? "" : fmt::format("; the row has {}", join(found, ", ")));
}

// Index of the right choice: given as such, or as its text.
int64_t answer_index(const std::string& answer, const TaskItem& item) {
  const auto num_choices = static_cast<int64_t>(item.num_choices());
  const bool is_number = !answer.empty() && answer.size() < 10 && answer.find_first_not_of("0123456789") == std::string::npos;
  if (is_number && std::stoll(answer) < num_choices) return std::stoll(answer);
  const auto found = std::ranges::find(item.choices, answer);
  if (found != item.choices.end()) return found - item.choices.begin();
  throw DataError(
      "{}: the answer '{}' is no choice: a number from 0 to {} or the text of one is needed; a split without answers cannot be used",
      item.place, answer, num_choices - 1);
}

void add_choices(const Task& task, const TaskForm& form, const json& row, TaskItem& item) {
  if (form.contexts) {
    const std::string continuation = task.target_delimiter + form.continuation->render(row, item.place);
    for (auto& context : form.contexts->render(row, item.place)) item.requests.push_back({std::move(context), continuation});
  } else {
    const std::string context = form.context->render(row, item.place);
    item.choices = form.choices->render(row, item.place);
    for (const auto& choice : item.choices) item.requests.push_back({context, task.target_delimiter + choice});
  }
  if (item.requests.size() < 2) throw DataError("{}: {} choices: at least two are needed", item.place, item.requests.size());
  item.answer = answer_index(form.answer->render(row, item.place), item);
}

TaskItem make_item(const Task& task, const TaskForm& form, const json& row, std::string place) {
  TaskItem item{.place = std::move(place), .requests = {}, .choices = {}, .group = ""};
  if (form.group) item.group = form.group->render(row, item.place);
  if (task.output_type == OutputType::multiple_choice) {
    add_choices(task, form, row, item);
    return item;
  }
  item.requests.push_back({form.context ? form.context->render(row, item.place) : "", form.target->render(row, item.place)});
  const std::string counted = form.counted ? form.counted->render(row, item.place) : item.requests.front().continuation;
  item.num_words = count_words(counted);
  item.num_bytes = static_cast<int64_t>(counted.size());
  return item;
}

// Texts to ids, each text once.
class Encoder {
 public:
  explicit Encoder(const Tokenizer& tokenizer)
      : tokenizer_(tokenizer), prefix_(tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id()) {
    if (prefix_) prefix_text_ = tokenizer.decode(std::span(&*prefix_, 1));
  }

  // Remembers a text to encode: with what the tokenizer puts around a text, unless it writes the prefix token itself.
  void add(const std::string& text, bool is_bare) {
    const bool is_plain = is_bare || (!prefix_text_.empty() && text.starts_with(prefix_text_));
    auto& [texts, place_of, ids] = batch_[is_plain ? 1 : 0];
    if (place_of.emplace(text, texts.size()).second) texts.push_back(text);
  }

  void encode() {
    for (const bool is_plain : {false, true}) {
      auto& batch = batch_[is_plain ? 1 : 0];
      const std::vector<std::string_view> views(batch.texts.begin(), batch.texts.end());
      batch.ids = tokenizer_.encode_batch(views, !is_plain);
    }
  }

  [[nodiscard]] const std::vector<int32_t>& ids(const std::string& text, bool is_bare) const {
    const bool is_plain = is_bare || (!prefix_text_.empty() && text.starts_with(prefix_text_));
    const auto& batch = batch_[is_plain ? 1 : 0];
    return batch.ids[batch.place_of.at(text)];
  }

  [[nodiscard]] int32_t prefix(const std::string& place) const {
    if (!prefix_) throw DataError("{}: the context is empty, and the tokenizer has neither BOS nor EOS to put there", place);
    return *prefix_;
  }

 private:
  struct Batch {
    std::vector<std::string> texts;
    std::unordered_map<std::string, size_t> place_of;
    std::vector<std::vector<int32_t>> ids;
  };
  const Tokenizer& tokenizer_;
  std::optional<int32_t> prefix_;
  std::string prefix_text_;
  std::array<Batch, 2> batch_;  // with special tokens, without
};

// White space at a context's end belongs to the continuation: tokens rarely end in it.
TextRequest with_spaces_moved(const TextRequest& request) {
  size_t end = request.context.size();
  while (end > 0) {
    const size_t begin = last_character(std::string_view(request.context).substr(0, end));
    if (!is_python_space(std::string_view(request.context).substr(begin, end - begin))) break;
    end = begin;
  }
  return {request.context.substr(0, end), request.context.substr(end) + request.continuation};
}

Request encoded_pair(const TextRequest& request, const Encoder& encoder, const std::string& place) {
  if (request.context.empty()) {
    const auto& ids = encoder.ids(request.continuation, true);
    if (!ids.empty() && ids.front() == encoder.prefix(place)) return {{ids.front()}, {ids.begin() + 1, ids.end()}};
    return {{encoder.prefix(place)}, ids};
  }
  const TextRequest moved = with_spaces_moved(request);
  const auto& context = encoder.ids(moved.context, false);
  const auto& whole = encoder.ids(moved.context + moved.continuation, false);
  return {context, {whole.begin() + static_cast<ptrdiff_t>(std::min(context.size(), whole.size())), whole.end()}};
}

// Windows of max_length targets, of which each sees as many tokens before its last target as the model can.
std::vector<Request> rolling_windows(std::span<const int32_t> tokens, int32_t prefix, int64_t max_length) {
  std::vector<Request> windows;
  const size_t length = static_cast<size_t>(max_length);
  for (size_t begin = 0; begin < tokens.size();) {
    const size_t end = std::min(begin + length, tokens.size());
    Request window;
    if (begin == 0) {
      window.context = {prefix};
    } else {
      const size_t first = end - std::min(end, length + 1);
      window.context.assign(tokens.begin() + static_cast<ptrdiff_t>(first), tokens.begin() + static_cast<ptrdiff_t>(begin));
    }
    window.continuation.assign(tokens.begin() + static_cast<ptrdiff_t>(begin), tokens.begin() + static_cast<ptrdiff_t>(end));
    windows.push_back(std::move(window));
    begin = end;
  }
  return windows;
}

}  // namespace

std::vector<std::string> split_pages(std::string_view text) {
  std::vector<std::string> pages;
  std::string page;
  bool is_first_line = true;
  const auto end_page = [&](bool is_last) {
    if (is_last || page.find_first_not_of(" \t\r\n\v\f") != std::string::npos) pages.push_back(std::move(page));
    page.clear();
    is_first_line = true;
  };
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    const size_t first = line.find_first_not_of(" \t\r\v\f"), last = line.find_last_not_of(" \t\r\v\f");
    const std::string_view stripped = first == std::string_view::npos ? "" : line.substr(first, last - first + 1);
    if (stripped.starts_with("= ") && !stripped.starts_with("= =") && stripped.ends_with(" =") && !stripped.ends_with("= ="))
      end_page(false);
    if (!is_first_line) page += '\n';
    page += line;
    is_first_line = false;
    at = end + 1;
  }
  end_page(true);
  return pages;
}

std::vector<TaskItem> read_items(const Task& task, const std::vector<fs::path>& files, int64_t limit) {
  std::vector<TaskItem> items;
  for (const fs::path& file : files) {
    const auto records = open_records(task, file);
    const TaskForm* form = nullptr;
    json row;
    while (limit == 0 || static_cast<int64_t>(items.size()) < limit) {
      if (form == nullptr) form = &choose_form(task, *records, file);
      if (!records->next(form->keys, row)) break;
      items.push_back(make_item(task, *form, row, records->place()));
    }
  }
  if (items.empty()) throw DataError("task {}: {}: no rows", task.name, files.front().string());
  return items;
}

EncodedItems encode_items(const Task& task, std::span<const TaskItem> items, const Tokenizer& tokenizer, int64_t num_rows,
                          int64_t max_length) {
  const bool is_rolling = task.output_type == OutputType::loglikelihood_rolling;
  Encoder encoder(tokenizer);
  for (const TaskItem& item : items) {
    for (const TextRequest& request : item.requests) {
      if (is_rolling || request.context.empty()) {
        encoder.add(request.continuation, !is_rolling);
        continue;
      }
      const TextRequest moved = with_spaces_moved(request);
      encoder.add(moved.context, false);
      encoder.add(moved.context + moved.continuation, false);
    }
  }
  encoder.encode();
  EncodedItems encoded;
  for (const TaskItem& item : items) {
    const size_t first = encoded.requests.size();
    for (const TextRequest& text : item.requests) {
      if (is_rolling) {
        const auto& ids = encoder.ids(text.continuation, false);
        if (ids.empty()) continue;  // an empty page
        auto windows = rolling_windows(ids, encoder.prefix(item.place), max_length);
        std::ranges::move(windows, std::back_inserter(encoded.requests));
        continue;
      }
      encoded.requests.push_back(encoded_pair(text, encoder, item.place));
      const Request& request = encoded.requests.back();
      if (request.context.empty() || request.continuation.empty())
        throw DataError("{}: '{}' behind '{}' is no token of its own", item.place, text.continuation, text.context);
      if (static_cast<int64_t>(request.continuation.size()) > max_length) {
        throw DataError("{}: task {}: a choice of {} tokens is longer than the {} that are seen at once: raise --context-length",
                        item.place, task.name, request.continuation.size(), max_length);
      }
    }
    int64_t num_tokens = 0;
    for (size_t i = first; i < encoded.requests.size(); ++i) {
      const Request& request = encoded.requests[i];
      check_rows(request.context, tokenizer, num_rows, item.place);
      check_rows(request.continuation, tokenizer, num_rows, item.place);
      num_tokens += static_cast<int64_t>(request.continuation.size());
    }
    encoded.ends.push_back(encoded.requests.size());
    encoded.num_tokens.push_back(num_tokens);
  }
  return encoded;
}

}  // namespace distil_xlstm::eval
