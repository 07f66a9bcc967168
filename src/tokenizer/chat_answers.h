// Finds what the assistant wrote in a rendered conversation, for templates that do not mark it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer/chat_template.h"

namespace distil_xlstm {

using RenderConversation = std::function<std::string(const Conversation&, bool add_generation_prompt)>;

// Places in `rendered`, in order: the assistants' contents, with their reasoning and tool calls, and the one of `turn_ends` (the
// longest first) that follows. Of an empty answer the end of its turn is left. None when the template changes the contents.
std::optional<std::vector<TextRange>> find_answers(const Conversation& conversation, const std::string& rendered,
                                                   const RenderConversation& render, const std::vector<std::string>& turn_ends);

}  // namespace distil_xlstm
