// Conversations, rendered by a model's chat template as `transformers` does.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "io/model_files.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm {

// What `transformers` hands to a template.
struct Conversation {
  json messages;   // a list of objects with any keys: role, content, reasoning_content, tool_calls, ...
  json variables;  // null, or an object: `tools`, `documents`, and what `chat_template_kwargs` names

  [[nodiscard]] bool empty() const { return messages.empty(); }
};

json chat_message(std::string_view role, std::string_view content);

// Takes a conversation out of a row (an object), or out of a bare list of messages. `messages_key` names its list; where it is
// "messages", "conversations" does as well. "" or what is wrong with it.
std::string take_conversation(json&& row, const std::string& messages_key, Conversation& conversation);
bool has_conversation(const json& row, const std::string& messages_key);
// The variables of a template that a row holds beside its messages: `tools`, `documents`, `chat_template_kwargs`.
std::string take_variables(json& row, Conversation& conversation);

// Part of a rendered conversation: the loss counts only where is_answer.
struct ChatSpan {
  std::string text;
  bool is_answer = false;
};

struct RenderedChat {
  std::vector<ChatSpan> spans;      // one after the other the whole text
  int64_t num_missing_answers = 0;  // that the template leaves out, or changes so that they are not found: they do not count
};

// 1 for each id that stands for any part of an answer, else 0. The spans' texts are, one after the other, what was encoded.
std::vector<uint8_t> answer_mask(const EncodedText& encoded, const std::vector<ChatSpan>& spans);

// The `chat_template` of tokenizer_config.json (or chat_template.jinja), in the dialect of `transformers` (trim_blocks, lstrip_blocks,
// raise_exception, strftime_now, tojson, generation). A template is a program of strangers: its steps, texts and values have bounds.
class ChatTemplate {
 public:
  // Throws DataError when the files carry no template, or it does not parse or passes a bound.
  explicit ChatTemplate(const io::TokenizerFiles& files);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  [[nodiscard]] std::string render(const Conversation& conversation, bool add_generation_prompt) const;
  // Rendered whole and cut into spans. Where the template marks what the assistant writes (`{% generation %}`) these are the answers;
  // else what stands behind the headers of the assistants' turns (where there is none, the contents) and the end-of-turn that follows.
  [[nodiscard]] RenderedChat render_spans(const Conversation& conversation) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// XXH3-128 of the template's text, hexadecimal; "" when there is none.
std::string chat_template_fingerprint(const io::TokenizerFiles& files);

}  // namespace distil_xlstm
