#include "tokenizer/chat_answers.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "tokenizer/chat_marks.h"

namespace distil_xlstm {

namespace {

// How often the whole of a conversation may be rendered for turns that no mark shows: up to here in bytes.
constexpr size_t kMaxRendered = size_t{64} << 20;

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

class Search {
 public:
  Search(const Conversation& conversation, const std::string& rendered, const RenderConversation& render,
         const std::vector<std::string>& turn_ends)
      : conversation_(conversation), rendered_(rendered), render_(render), turn_ends_(turn_ends) {}

  std::optional<FoundAnswers> answers();

 private:
  // Where answers stand in the rendered text.
  struct Marked {
    MarkPlaces places;
    size_t begin_of_content = 0;  // differs from places.begin where the template drops the beginning
  };

  std::optional<std::map<size_t, Marked>> find_marked();
  std::optional<std::map<size_t, Marked>> find_marked(const MarkChoice& choice);
  std::optional<TextRange> range_of(size_t index, const Marked& marked, size_t previous_end);
  // The whole of the assistant's turn `index`, where the conversation up to it is rendered as it is in the whole.
  std::optional<TextRange> find_turn(size_t index);
  std::optional<size_t> begin_of_turn(size_t index);
  std::optional<size_t> begin_after_header(size_t before, size_t previous_end);
  std::optional<size_t> end_of_calls(size_t from);
  void learn_turn();
  const std::string& prompt_header();
  [[nodiscard]] size_t end_of_turn(size_t content_end) const;
  [[nodiscard]] std::string turn_end_at(const std::string& text, size_t from) const;
  [[nodiscard]] Conversation first(size_t count) const;
  [[nodiscard]] std::string dump() const;
  std::string render_again(const Conversation& conversation, bool add_generation_prompt);

  const Conversation& conversation_;
  const std::string& rendered_;
  const RenderConversation& render_;
  const std::vector<std::string>& turn_ends_;
  size_t num_rendered_ = 0;
  std::optional<std::string> prompt_header_;  // what a conversation that asks for an answer ends with
  // Of a plain turn, once learn_turn() has looked: what may stand before its words, and the token that ends it ("": none found).
  bool has_learnt_ = false;
  std::vector<std::string> headers_;
  std::string turn_end_;
};

std::string Search::dump() const {
  const json all = json::array({conversation_.messages, conversation_.variables});
  return all.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string Search::render_again(const Conversation& conversation, bool add_generation_prompt) {
  std::string text = render_(conversation, add_generation_prompt);
  num_rendered_ += text.size();
  return text;
}

std::optional<std::map<size_t, Search::Marked>> Search::find_marked(const MarkChoice& choice) {
  const Marks marks(dump());
  Conversation marked = conversation_;
  std::map<size_t, std::string> contents;  // of the answers, from their last begin on, with the marks
  for (size_t i = 0; i < marked.messages.size(); ++i) {
    if (!is_answer(marked.messages[i])) continue;
    if (auto content = mark_message(marked.messages[i], i, marks, choice)) contents[i] = std::move(*content);
  }
  std::string text;
  try {
    text = render_(marked, false);
  } catch (const DataError&) {
    return std::nullopt;  // the template looks at what is marked
  }
  const std::map<size_t, MarkPlaces> places = marks.take_out(text);
  if (text != rendered_) return std::nullopt;
  std::map<size_t, Marked> found;
  for (const auto& [i, place] : places) {
    if (!place.end) continue;  // the template left this answer out
    Marked& answer = found[i];
    answer.places = place;
    answer.begin_of_content = place.begin.value_or(*place.end);
    if (!place.begin && contents.contains(i)) {
      answer.begin_of_content = begin_of_rest(rendered_, *place.end, contents[i], marks.end(i), prompt_header());
    }
  }
  return found;
}

std::optional<std::map<size_t, Search::Marked>> Search::find_marked() {
  const bool with_calls = std::ranges::any_of(conversation_.messages, has_calls);
  for (const bool call_names : {true, false}) {
    if (!call_names && !with_calls) break;
    for (const bool blank_contents : {true, false}) {
      for (const bool inside_space : {false, true}) {
        if (auto found = find_marked({inside_space, blank_contents, call_names})) return found;
      }
    }
  }
  return std::nullopt;
}

Conversation Search::first(size_t count) const {
  return {json(conversation_.messages.begin(), conversation_.messages.begin() + static_cast<ptrdiff_t>(count)), conversation_.variables};
}

// Where the assistant's words begin, in a conversation of which `index` messages are there. Most templates write the header of the
// turn when they are asked to prompt for it; of the others it stands before a content that is put there. None where what comes before
// is rendered in another way than in the whole.
std::optional<size_t> Search::begin_of_turn(size_t index) {
  if (num_rendered_ > kMaxRendered) return std::nullopt;
  const std::string prompted = render_again(first(index), true);
  if (!rendered_.starts_with(prompted)) return std::nullopt;
  if (prompted != render_again(first(index), false)) return prompted.size();
  const Marks marks(dump());
  Conversation probe = first(index);
  probe.messages.push_back(chat_message("assistant", marks.begin(index)));
  const std::string probed = render_again(probe, false);
  const size_t end = std::min(probed.find(marks.begin(index)), probed.size());
  size_t begin = prompted.size();
  while (begin < std::min(end, rendered_.size()) && rendered_[begin] == probed[begin]) ++begin;
  return begin;
}

std::optional<TextRange> Search::find_turn(size_t index) {
  if (num_rendered_ > kMaxRendered) return std::nullopt;
  try {
    std::string with = render_again(first(index + 1), false);
    with.erase(with.find_last_not_of(kSpace) + 1);
    if (!rendered_.starts_with(with)) return std::nullopt;
    const auto begin = begin_of_turn(index);
    // A template may leave out the end of a conversation's last turn: in the whole it is there.
    if (begin && with.size() >= *begin) return TextRange{*begin, std::max(with.size(), end_of_turn(with.size()))};
  } catch (const DataError&) {  // NOLINT(bugprone-empty-catch): a template may refuse a conversation that is not whole
  }
  return std::nullopt;
}

std::string Search::turn_end_at(const std::string& text, size_t from) const {
  const size_t token = std::min(text.find_first_not_of(kSpace, from), text.size());
  const std::string_view rest = std::string_view(text).substr(token);
  const auto end = std::ranges::find_if(turn_ends_, [&](const std::string& candidate) { return rest.starts_with(candidate); });
  return end == turn_ends_.end() ? "" : *end;
}

const std::string& Search::prompt_header() {
  if (!prompt_header_) {
    prompt_header_ = "";
    try {
      const std::string prompted = render_again(conversation_, true);
      if (prompted.starts_with(rendered_)) prompt_header_ = prompted.substr(rendered_.size());
    } catch (const DataError&) {  // NOLINT(bugprone-empty-catch): a template may refuse to ask for an answer behind an answer
    }
  }
  return *prompt_header_;
}

// What stands around a plain answer: where a conversation asks for one, and around one that is put in the place of the first.
void Search::learn_turn() {
  if (std::exchange(has_learnt_, true)) return;
  const auto add_header = [this](std::string header) {
    if (!is_blank(header)) headers_.push_back(std::move(header));
  };
  add_header(prompt_header());
  const auto answer = std::ranges::find_if(conversation_.messages, is_answer);
  const Conversation before = first(static_cast<size_t>(answer - conversation_.messages.begin()));
  const Marks marks(dump());
  for (const bool goes_on : {true, false}) {
    try {
      Conversation probe = before;
      probe.messages.push_back(chat_message("assistant", marks.begin(0)));
      if (goes_on) probe.messages.push_back(chat_message("user", "x"));
      const std::string probed = render_again(probe, false);
      const size_t mark = probed.find(marks.begin(0));
      if (mark == std::string::npos) continue;
      turn_end_ = turn_end_at(probed, mark + marks.begin(0).size());
      if (before.empty()) return;
      const std::string prompt = render_again(before, false);
      if (probed.starts_with(prompt) && prompt.size() <= mark) add_header(probed.substr(prompt.size(), mark - prompt.size()));
      return;
    } catch (const DataError&) {  // NOLINT(bugprone-empty-catch): a template may ask for other turns
    }
  }
}

// Behind the header that stands last before `before`, but not before `previous_end`.
std::optional<size_t> Search::begin_after_header(size_t before, size_t previous_end) {
  learn_turn();
  std::optional<size_t> begin;
  for (const std::string& header : headers_) {
    if (header.size() > before) continue;
    const size_t place = rendered_.rfind(header, before - header.size());
    if (place == std::string::npos || place < previous_end) continue;
    begin = std::max(begin.value_or(0), place + header.size());
  }
  return begin;
}

// Tool calls have marks of their own (`<tool_call>`), so that the first token behind them need not end the turn: the one that ends a
// plain turn does, or, before the next turn, the last.
std::optional<size_t> Search::end_of_calls(size_t from) {
  learn_turn();
  size_t limit = rendered_.size();
  for (const std::string& header : headers_) {
    const std::string opening = turn_end_at(header, 0);
    if (!opening.empty()) limit = std::min(limit, rendered_.find(opening, from));
  }
  if (const size_t end = turn_end_.empty() ? std::string::npos : rendered_.find(turn_end_, from); end < limit) {
    return end + turn_end_.size();
  }
  const std::string_view turn = std::string_view(rendered_).substr(from, limit - from);
  size_t last = 0;
  for (const std::string& token : turn_ends_) {
    if (const size_t place = turn.rfind(token); place != std::string_view::npos) last = std::max(last, place + token.size());
  }
  if (last > 0) return from + last;
  if (limit < rendered_.size() || rendered_.empty()) return std::nullopt;
  return rendered_.find_last_not_of(kSpace) + 1;
}

std::optional<TextRange> Search::range_of(size_t index, const Marked& marked, size_t previous_end) {
  const json& message = conversation_.messages[index];
  TextRange range{marked.begin_of_content, end_of_turn(*marked.places.end)};
  // Also what a template writes before the content, as an empty <think>: it stands where the model begins to write.
  auto begin = begin_after_header(range.begin, previous_end);
  try {
    if (!begin && has_more_than_content(message)) begin = begin_of_turn(index);
  } catch (const DataError&) {  // NOLINT(bugprone-empty-catch): a template may refuse a conversation that is not whole
  }
  if (has_calls(message)) {
    const auto end = end_of_calls(*marked.places.end);
    if (!begin || !end) return std::nullopt;
    return TextRange{*begin, *end};
  }
  if (begin) range.begin = std::min(*begin, range.begin);
  return range;
}

std::optional<FoundAnswers> Search::answers() {
  const auto marked = find_marked();
  FoundAnswers found;
  for (size_t i = 0; i < conversation_.messages.size(); ++i) {
    if (!is_answer(conversation_.messages[i])) continue;
    const size_t previous_end = found.ranges.empty() ? 0 : found.ranges.back().end;
    std::optional<TextRange> range;
    if (marked && marked->contains(i)) range = range_of(i, marked->at(i), previous_end);
    if (!range && (marked || !has_plain_content(conversation_.messages[i]))) range = find_turn(i);
    if (!range && !marked) return std::nullopt;
    if (range) {
      found.ranges.push_back(*range);
    } else {
      ++found.num_missing;
    }
  }
  return found;
}

size_t Search::end_of_turn(size_t content_end) const {
  const std::string end = turn_end_at(rendered_, content_end);
  return end.empty() ? content_end : rendered_.find(end, content_end) + end.size();
}

}  // namespace

std::optional<FoundAnswers> find_answers(const Conversation& conversation, const std::string& rendered, const RenderConversation& render,
                                         const std::vector<std::string>& turn_ends) {
  return Search(conversation, rendered, render, turn_ends).answers();
}

}  // namespace distil_xlstm
