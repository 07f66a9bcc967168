#include "data/row_keys.h"

namespace distil_xlstm::data {

namespace {

// Whether `row` has the key with a string; what else it has there goes to `problem`.
const std::string* string_at(const json& row, const std::string& key, std::string& problem) {
  const auto it = row.find(key);
  if (it == row.end()) return nullptr;
  if (it->is_string()) return &it->get_ref<const std::string&>();
  problem = fmt::format("'{}' is {}", key, it->is_null() ? "null" : "not a string");
  return nullptr;
}

}  // namespace

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

std::string read_conversation(json&& row, const ReaderOptions& options, Conversation& conversation) {
  if (options.prompt_key.empty() && has_conversation(row, options.messages_key)) {
    return take_conversation(std::move(row), options.messages_key, conversation);
  }
  std::string problem;
  for (const auto& keys : prompt_answer_keys(options)) {
    std::string ignored;
    const std::string* prompt = string_at(row, keys.prompt, row.contains(keys.answer) ? problem : ignored);
    const std::string* answer = string_at(row, keys.answer, row.contains(keys.prompt) ? problem : ignored);
    if (prompt == nullptr || answer == nullptr) continue;
    const std::string* input = keys.input.empty() ? nullptr : string_at(row, keys.input, ignored);
    add_turn(*prompt, input != nullptr ? *input : "", *answer, conversation);
    return take_variables(row, conversation);
  }
  if (!problem.empty()) return problem;
  return fmt::format("no {}{}", options.rows == RowKind::chat ? "" : "'" + options.text_key + "' and no ", conversation_keys(options));
}

void add_turn(std::string prompt, std::string_view input, const std::string& answer, Conversation& conversation) {
  if (!input.empty()) prompt += fmt::format("\n\n{}", input);
  conversation.messages = json::array({chat_message("user", prompt), chat_message("assistant", answer)});
}

}  // namespace distil_xlstm::data
