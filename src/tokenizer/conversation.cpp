#include <algorithm>

#include "base/json_limits.h"
#include "base/text.h"
#include "tokenizer/chat_template.h"

namespace distil_xlstm {

namespace {

std::string keys_of(const json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.items()) {
    if (keys.size() < 8) keys.push_back("'" + key + "'");
  }
  return keys.empty() ? "no keys" : join(keys, ", ");
}

// "" or what is wrong with a message; which keys it needs besides is the template's affair.
std::string check_message(const json& message, size_t number, const std::string& key) {
  if (!message.is_object()) return fmt::format("message {} of '{}' is not an object", number, key);
  const auto role = message.find("role");
  if (role == message.end() || !role->is_string()) {
    const bool is_share_gpt = message.contains("from") && message.contains("value");
    return fmt::format("message {} of '{}' lacks the string 'role' (it has {}){}", number, key, keys_of(message),
                       is_share_gpt ? ": rename 'from' to 'role' and 'value' to 'content'" : "");
  }
  if (message.size() == 1) return fmt::format("message {} of '{}' has nothing but a role", number, key);
  const auto content = message.find("content");
  if (content == message.end() || content->is_null() || content->is_string() || content->is_array()) return "";
  return fmt::format("'content' of message {} of '{}' is neither a string nor a list of parts", number, key);
}

// What `transformers` does to a message before a template sees it: a key that is null is as one that is not there, and reasoning
// stands under the names that templates read, whichever name it came by.
void make_plain(json& message) {
  json plain = json::object();
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    if (plain.empty() && message.contains(name) && !message[name].is_null()) plain["thinking"] = message[name];
  }
  const json reasoning = plain.value("thinking", json());
  for (auto& [key, value] : message.items()) {
    if (!value.is_null()) plain[key] = std::move(value);
  }
  if (!reasoning.is_null()) plain["reasoning_content"] = reasoning;
  message = std::move(plain);
}

std::string take_messages(json&& messages, const std::string& key, json& out) {
  if (!messages.is_array() || messages.empty()) return fmt::format("'{}' is not a list of messages", key);
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].is_object()) make_plain(messages[i]);
    if (auto problem = check_message(messages[i], i + 1, key); !problem.empty()) return problem;
  }
  out = std::move(messages);
  return "";
}

std::string key_in(const json& row, const std::string& messages_key) {
  if (messages_key == "messages" && !row.contains(messages_key) && row.contains("conversations")) return "conversations";
  return messages_key;
}

// A list of objects. Data sets also keep tools as the text of such a list.
std::string take_list(json& row, const char* key, json& variables) {
  const auto it = row.find(key);
  if (it == row.end() || it->is_null()) return "";
  json list = std::move(*it);
  if (list.is_string()) {
    const auto text = list.get<std::string>();
    list = json_too_deep_at(text) || json_too_wide_at(text) ? json() : json::parse(text, nullptr, false);
  }
  const auto is_object = [](const json& entry) { return entry.is_object(); };
  if (!list.is_array() || !std::ranges::all_of(list, is_object)) return fmt::format("'{}' is not a list of objects", key);
  variables[key] = std::move(list);
  return "";
}

}  // namespace

json chat_message(std::string_view role, std::string_view content) {
  return {{"role", role}, {"content", content}};
}

bool has_conversation(const json& row, const std::string& messages_key) {
  return row.contains(key_in(row, messages_key));
}

std::string take_variables(json& row, Conversation& conversation) {
  json variables = json::object();
  if (const auto it = row.find("chat_template_kwargs"); it != row.end() && !it->is_null()) {
    if (!it->is_object()) return "'chat_template_kwargs' is not an object";
    for (const char* name : {"messages", "tools", "documents", "add_generation_prompt"}) {
      if (it->contains(name)) return fmt::format("'chat_template_kwargs' holds '{}': it is no variable of its own", name);
    }
    variables = std::move(*it);
  }
  for (const char* key : {"tools", "documents"}) {
    if (auto problem = take_list(row, key, variables); !problem.empty()) return problem;
  }
  if (!variables.empty()) conversation.variables = std::move(variables);
  return "";
}

std::string take_conversation(json&& row, const std::string& messages_key, Conversation& conversation) {
  conversation = {};
  if (row.is_array()) return take_messages(std::move(row), messages_key, conversation.messages);
  const std::string key = key_in(row, messages_key);
  if (!row.contains(key)) return fmt::format("no '{}'", key);
  if (auto problem = take_variables(row, conversation); !problem.empty()) return problem;
  return take_messages(std::move(row[key]), key, conversation.messages);
}

std::vector<uint8_t> answer_mask(const EncodedText& encoded, const std::vector<ChatSpan>& spans) {
  std::vector<uint8_t> mask(encoded.ids.size(), 0);
  size_t span = 0, span_begin = 0, covered = 0;  // covered: the end of the ids so far
  for (size_t i = 0; i < mask.size(); ++i) {
    // An id without a place of its own (a space that the tokenizer leaves out of the places) stands for what was not covered yet.
    auto [begin, end] = encoded.ranges[i];
    if (end <= begin) begin = std::min(covered, end);
    covered = std::max(covered, end);
    while (span < spans.size() && span_begin + spans[span].text.size() <= begin) span_begin += spans[span++].text.size();
    size_t at = span_begin;
    for (size_t s = span; s < spans.size() && at < std::max(end, begin + 1); at += spans[s++].text.size()) {
      if (spans[s].is_answer && !spans[s].text.empty()) mask[i] = 1;
    }
  }
  return mask;
}

}  // namespace distil_xlstm
