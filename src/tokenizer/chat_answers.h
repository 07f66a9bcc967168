// Finds what the assistant wrote in a rendered conversation, for templates that do not mark it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer/chat_template.h"

namespace distil_xlstm {

using RenderConversation = std::function<std::string(const Conversation&, bool add_generation_prompt)>;

struct FoundAnswers {
  std::vector<TextRange> ranges;
  int64_t num_missing = 0;  // answers that the template leaves out, or writes in a way in which they are not found
};

// Places in `rendered`, in order, of the assistants' turns: all that stands behind the header of one, where the template writes a header
// (else its content), and the one of `turn_ends` (the longest first) that follows. Of an empty answer the end of its turn is left. None
// when the template changes the contents. The conversation is rendered a few times, whatever its length; where that does not show a turn,
// the part up to it is, within a bound.
std::optional<FoundAnswers> find_answers(const Conversation& conversation, const std::string& rendered, const RenderConversation& render,
                                         const std::vector<std::string>& turn_ends);

}  // namespace distil_xlstm
