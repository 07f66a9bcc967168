#include "tokenizer/chat_marks.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"

namespace distil_xlstm {

namespace {

constexpr std::array kReasoningKeys = {"reasoning_content", "reasoning", "thinking"};

bool is_set(const json& message, const char* key) {
  const auto it = message.find(key);
  return it != message.end() && !it->is_null() && !it->empty();
}

// Strings of a message's content: itself, or the texts of its parts.
template <typename Json>
std::vector<Json*> texts_of(Json& message) {
  std::vector<Json*> texts;
  const auto content = message.find("content");
  if (content == message.end()) return texts;
  if (content->is_string()) texts.push_back(&*content);
  if (!content->is_array()) return texts;
  for (Json& part : *content) {
    if (part.is_object() && part.contains("text") && part["text"].is_string()) texts.push_back(&part["text"]);
  }
  return texts;
}

class MessageMarker {
 public:
  MessageMarker(const Marks& marks, const MarkChoice& choice, size_t index) : marks_(marks), choice_(choice), index_(index) {}

  // Returns the last text of the content, with its marks; none where the content is not marked.
  std::optional<std::string> mark(json& message) {
    for (const char* key : kReasoningKeys) {
      if (const auto it = message.find(key); it != message.end() && it->is_string()) mark_text(*it, *it);
    }
    if (has_calls(message) && message["tool_calls"].is_array()) {
      for (json& call : message["tool_calls"]) mark_call(call);
    }
    const std::vector<json*> texts = texts_of(message);
    if (texts.empty()) return std::nullopt;
    const bool blank = is_blank(texts.front()->get_ref<std::string&>()) || is_blank(texts.back()->get_ref<std::string&>());
    if (blank && (!choice_.blank_contents || has_calls(message))) return std::nullopt;
    if (blank) {
      texts.back()->get_ref<std::string&>().append(marks_.end(index_));
      texts.front()->get_ref<std::string&>().insert(0, marks_.begin(index_));
    } else {
      mark_text(*texts.front(), *texts.back());
    }
    return texts.back()->get<std::string>();
  }

 private:
  void mark_text(json& first_text, json& last_text) {
    auto& first = first_text.get_ref<std::string&>();
    auto& last = last_text.get_ref<std::string&>();
    if (is_blank(first) || is_blank(last)) return;
    last.insert(choice_.inside_space ? last.find_last_not_of(kSpace) + 1 : last.size(), marks_.end(index_));
    first.insert(choice_.inside_space ? first.find_first_not_of(kSpace) : 0, marks_.begin(index_));
  }

  void mark_call(json& call) {
    json* function = call.is_object() && call.contains("function") ? &call["function"] : &call;
    if (!function->is_object()) return;
    if (choice_.call_names) {
      if (const auto name = function->find("name"); name != function->end() && name->is_string()) mark_text(*name, *name);
      return;
    }
    const auto arguments = function->find("arguments");
    if (arguments == function->end()) return;
    if (arguments->is_string()) mark_text(*arguments, *arguments);
    if (!arguments->is_object()) return;
    for (json& argument : *arguments) {
      if (argument.is_string()) mark_text(argument, argument);
    }
  }

  const Marks& marks_;
  const MarkChoice& choice_;
  size_t index_;
};

}  // namespace

bool is_blank(std::string_view text) {
  return text.find_first_not_of(kSpace) == std::string_view::npos;
}

bool is_answer(const json& message) {
  return message.at("role") == "assistant";
}

bool has_calls(const json& message) {
  return is_set(message, "tool_calls");
}

bool has_more_than_content(const json& message) {
  return has_calls(message) || std::ranges::any_of(kReasoningKeys, [&](const char* key) { return is_set(message, key); });
}

bool has_plain_content(const json& message) {
  const auto has_words = [](const json* text) { return !is_blank(text->get_ref<const std::string&>()); };
  return !has_more_than_content(message) && std::ranges::any_of(texts_of(message), has_words);
}

Marks::Marks(const std::string& conversation) {
  for (unsigned code = 0xE000; code <= 0xF8FF && characters_.size() < 2; ++code) {
    const std::string character = {static_cast<char>(0xE0 | (code >> 12)), static_cast<char>(0x80 | ((code >> 6) & 0x3F)),
                                   static_cast<char>(0x80 | (code & 0x3F))};
    if (conversation.find(character) == std::string::npos) characters_.push_back(character);
  }
  if (characters_.size() < 2) {
    throw DataError("a conversation holds (nearly) every character for private use (U+E000 to U+F8FF): its answers cannot be marked");
  }
}

std::string Marks::mark(size_t number) const {
  return fmt::format("{}{}{}", characters_.at(0), number, characters_.at(1));
}

std::map<size_t, MarkPlaces> Marks::take_out(std::string& text) const {
  std::map<size_t, MarkPlaces> places;
  std::string clean;
  size_t at = 0;
  for (size_t open = text.find(characters_[0]); open != std::string::npos; open = text.find(characters_[0], at)) {
    const size_t digits = open + characters_[0].size();
    const size_t close = text.find(characters_[1], open);
    size_t number = 0;
    if (close == std::string::npos || std::from_chars(&text[digits], &text[close], number).ptr != &text[close]) break;
    clean.append(text, at, open - at);
    at = close + characters_[1].size();
    MarkPlaces& of_message = places[number / 2];
    if (number % 2 == 1) of_message.end = clean.size();
    if (number % 2 == 0 && !of_message.begin) of_message.begin = clean.size();
  }
  text = clean.append(text, at);
  return places;
}

std::optional<std::string> mark_message(json& message, size_t index, const Marks& marks, const MarkChoice& choice) {
  return MessageMarker(marks, choice, index).mark(message);
}

}  // namespace distil_xlstm
