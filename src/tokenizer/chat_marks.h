// Marks around what the assistant wrote in a conversation: where they stand in the rendered text, there are the answers.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace distil_xlstm {

constexpr std::string_view kSpace = " \t\r\n";

bool is_blank(std::string_view text);
bool is_answer(const json& message);
bool has_calls(const json& message);
// Whether the assistant wrote reasoning or tool calls beside a content.
bool has_more_than_content(const json& message);
// Whether it wrote a content, with words, and nothing else.
bool has_plain_content(const json& message);

// Where the marks of one message stood: before the first of its texts, behind the last.
struct MarkPlaces {
  std::optional<size_t> begin, end;
};

// A number between two characters for private use that no message has: a template carries it along unread.
class Marks {
 public:
  // Throws DataError where `conversation`, as JSON, leaves no two of these characters.
  explicit Marks(const std::string& conversation);

  [[nodiscard]] std::string begin(size_t message) const { return mark(2 * message); }
  [[nodiscard]] std::string end(size_t message) const { return mark(2 * message + 1); }

  // Takes every mark out of `text`; where those of each message stood, counted without marks.
  std::map<size_t, MarkPlaces> take_out(std::string& text) const;

 private:
  [[nodiscard]] std::string mark(size_t number) const;

  std::vector<std::string> characters_;
};

// What is marked of a message beside its reasoning and its contents that are not blank. A template may trim contents, ask whether one is
// empty, or look at a function's name, so not every choice leaves what it writes as it was.
struct MarkChoice {
  bool inside_space = false;   // marks stand inside the spaces around a text, not outside
  bool blank_contents = true;  // also contents without a word, in messages without tool calls
  bool call_names = true;      // the names of called functions; else the strings among their arguments
};

// Puts marks around the texts of message `index`. Returns the last text of its content, with its marks; none where the content has none.
std::optional<std::string> mark_message(json& message, size_t index, const Marks& marks, const MarkChoice& choice);

}  // namespace distil_xlstm
