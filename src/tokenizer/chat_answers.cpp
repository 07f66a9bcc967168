#include "tokenizer/chat_answers.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"

namespace distil_xlstm {

namespace {

constexpr std::string_view kSpace = " \t\r\n";

// Marks that a template carries along unread: a number between two characters for private use that no message has.
class Marks {
 public:
  explicit Marks(const std::string& conversation) {
    for (unsigned code = 0xE000; code <= 0xF8FF && characters_.size() < 2; ++code) {
      const std::string character = {static_cast<char>(0xE0 | (code >> 12)), static_cast<char>(0x80 | ((code >> 6) & 0x3F)),
                                     static_cast<char>(0x80 | (code & 0x3F))};
      if (conversation.find(character) == std::string::npos) characters_.push_back(character);
    }
    if (characters_.size() < 2) {
      throw DataError("a conversation holds (nearly) every character for private use (U+E000 to U+F8FF): its answers cannot be marked");
    }
  }

  [[nodiscard]] std::string begin(size_t message) const { return mark(2 * message); }
  [[nodiscard]] std::string end(size_t message) const { return mark(2 * message + 1); }

  // Takes every mark out of `text`; the places where the marks stood (the last one of each), counted without marks.
  std::map<std::string, size_t> take_out(std::string& text) const {
    std::map<std::string, size_t> places;
    std::string clean;
    size_t at = 0;
    for (size_t open = text.find(characters_[0]); open != std::string::npos; open = text.find(characters_[0], at)) {
      const size_t close = text.find(characters_[1], open);
      if (close == std::string::npos) break;
      clean.append(text, at, open - at);
      at = close + characters_[1].size();
      places[text.substr(open, at - open)] = clean.size();
    }
    text = clean.append(text, at);
    return places;
  }

 private:
  [[nodiscard]] std::string mark(size_t number) const { return fmt::format("{}{}{}", characters_.at(0), number, characters_.at(1)); }

  std::vector<std::string> characters_;
};

// A template may drop the beginning of a content (its reasoning, in past turns). What it kept ends at `end` in `rendered`: it is
// as far back as both agree, without the header of the turn, and without the space before it when the header is not known.
size_t begin_of_rest(const std::string& rendered, size_t end, const std::string& marked_content, const std::string& end_mark,
                     const std::string& header) {
  size_t begin = end;
  for (size_t at = marked_content.find(end_mark); at > 0 && begin > 0 && marked_content[at - 1] == rendered[begin - 1]; --at) --begin;
  const size_t place = header.empty() ? std::string::npos : rendered.rfind(header, end);
  if (place == std::string::npos) return std::min(rendered.find_first_not_of(kSpace, begin), end);
  return std::max(begin, std::min(place + header.size(), end));
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

bool is_answer(const json& message) {
  return message.at("role") == "assistant";
}

bool is_set(const json& message, const char* key) {
  const auto it = message.find(key);
  return it != message.end() && !it->is_null() && !it->empty();
}

// Whether the assistant wrote more than a content, or nothing: then a search by content does not find all of it.
bool has_more_than_content(const json& message) {
  for (const char* key : {"tool_calls", "reasoning_content", "reasoning", "thinking"}) {
    if (is_set(message, key)) return true;
  }
  const auto is_blank = [](const json* text) { return text->get_ref<const std::string&>().find_first_not_of(kSpace) == std::string::npos; };
  return std::ranges::all_of(texts_of(message), is_blank);
}

struct Search {
  const Conversation& conversation;
  const std::string& rendered;
  const RenderConversation& render;
  const std::vector<std::string>& turn_ends;

  // Where the answers' contents stand in `rendered`, found by rendering again with marks around them. With `inside_space` the
  // marks stand inside the spaces around a content, for templates that trim; `with_empty`: contents without a word are marked too.
  // None when the marks change what is written.
  [[nodiscard]] std::optional<std::map<size_t, TextRange>> find_contents(bool inside_space, bool with_empty) const;
  // The whole of the assistant's turn `index`, where the conversation up to it is rendered as it is in the whole.
  [[nodiscard]] std::optional<TextRange> find_turn(size_t index) const;
  [[nodiscard]] std::optional<size_t> begin_of_turn(size_t index) const;
  [[nodiscard]] Conversation first(size_t count) const;
  [[nodiscard]] std::optional<std::vector<TextRange>> answers() const;
  [[nodiscard]] size_t end_of_turn(size_t content_end) const;
};

std::optional<std::map<size_t, TextRange>> Search::find_contents(bool inside_space, bool with_empty) const {
  const Marks marks(conversation.messages.dump(-1, ' ', false, json::error_handler_t::replace));
  Conversation marked = conversation;
  std::map<size_t, std::string> contents;  // of the answers, from their last begin on, with the marks
  for (size_t i = 0; i < marked.messages.size(); ++i) {
    const std::vector<json*> texts = texts_of(marked.messages[i]);
    if (!is_answer(marked.messages[i]) || texts.empty()) continue;
    auto& first = texts.front()->get_ref<std::string&>();
    auto& last = texts.back()->get_ref<std::string&>();
    const bool is_blank = first.find_first_not_of(kSpace) == std::string::npos || last.find_first_not_of(kSpace) == std::string::npos;
    if (is_blank && !with_empty) continue;
    last.insert(inside_space ? last.find_last_not_of(kSpace) + 1 : last.size(), marks.end(i));
    first.insert(inside_space && !is_blank ? first.find_first_not_of(kSpace) : 0, marks.begin(i));
    contents[i] = last;
  }
  std::string text = render(marked, false);
  const std::map<std::string, size_t> places = marks.take_out(text);
  if (text != rendered) return std::nullopt;
  const std::string prompted = render(conversation, true);
  const std::string header = prompted.starts_with(rendered) ? prompted.substr(rendered.size()) : "";
  std::map<size_t, TextRange> ranges;
  for (const auto& [i, content] : contents) {
    const auto end = places.find(marks.end(i));
    if (end == places.end()) continue;  // the template left this answer out
    const auto begin = places.find(marks.begin(i));
    ranges[i] = {begin != places.end() ? begin->second : begin_of_rest(rendered, end->second, content, marks.end(i), header), end->second};
  }
  return ranges;
}

Conversation Search::first(size_t count) const {
  return {json(conversation.messages.begin(), conversation.messages.begin() + static_cast<ptrdiff_t>(count)), conversation.variables};
}

// Where the assistant's words begin, in a conversation of which `index` messages are there. Most templates write the header of the
// turn when they are asked to prompt for it; of the others it stands before a content that is put there. None where what comes before
// is rendered in another way than in the whole.
std::optional<size_t> Search::begin_of_turn(size_t index) const {
  const std::string prompted = render(first(index), true);
  if (!rendered.starts_with(prompted)) return std::nullopt;
  if (prompted != render(first(index), false)) return prompted.size();
  const Marks marks(rendered);
  Conversation probe = first(index);
  probe.messages.push_back(chat_message("assistant", marks.begin(index)));
  const std::string probed = render(probe, false);
  const size_t end = std::min(probed.find(marks.begin(index)), probed.size());
  size_t begin = prompted.size();
  while (begin < std::min(end, rendered.size()) && rendered[begin] == probed[begin]) ++begin;
  return begin;
}

std::optional<TextRange> Search::find_turn(size_t index) const {
  try {
    std::string with = render(first(index + 1), false);
    with.erase(with.find_last_not_of(kSpace) + 1);
    const auto begin = begin_of_turn(index);
    if (begin && rendered.starts_with(with) && with.size() > *begin) return TextRange{*begin, with.size()};
  } catch (const DataError&) {  // NOLINT(bugprone-empty-catch): a template may refuse a conversation that is not whole
  }
  return std::nullopt;
}

std::optional<std::vector<TextRange>> Search::answers() const {
  std::map<size_t, TextRange> turns;
  std::vector<size_t> answers;
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    if (!is_answer(conversation.messages[i])) continue;
    answers.push_back(i);
    if (!has_more_than_content(conversation.messages[i])) continue;
    if (const auto turn = find_turn(i)) turns[i] = *turn;
  }
  std::optional<std::map<size_t, TextRange>> contents;
  if (turns.size() == answers.size()) contents.emplace();
  for (const bool with_empty : {true, false}) {
    for (const bool inside_space : {false, true}) {
      if (!contents) contents = find_contents(inside_space, with_empty);
    }
  }
  if (!contents) return std::nullopt;
  for (auto& [index, content] : *contents) content.end = end_of_turn(content.end);
  for (const auto& [index, turn] : turns) (*contents)[index] = turn;
  std::vector<TextRange> ranges;
  for (const auto& [index, range] : *contents) ranges.push_back(range);
  return ranges;
}

size_t Search::end_of_turn(size_t content_end) const {
  const size_t token = std::min(rendered.find_first_not_of(kSpace, content_end), rendered.size());
  const std::string_view rest = std::string_view(rendered).substr(token);
  for (const std::string& end : turn_ends) {
    if (rest.starts_with(end)) return token + end.size();
  }
  return content_end;
}

}  // namespace

std::optional<std::vector<TextRange>> find_answers(const Conversation& conversation, const std::string& rendered,
                                                   const RenderConversation& render, const std::vector<std::string>& turn_ends) {
  return Search{conversation, rendered, render, turn_ends}.answers();
}

}  // namespace distil_xlstm
