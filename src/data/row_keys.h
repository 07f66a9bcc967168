// Under which keys a row keeps a prompt and its answer: JSONL objects and Parquet columns alike.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "data/text_reader.h"

namespace distil_xlstm::data {

struct PromptAnswerKeys {
  std::string prompt;
  std::string answer;
  std::string input;  // "" or what is added to the prompt where it is not empty
};

// Those that the options name, else the usual ones in the order in which they are tried.
std::vector<PromptAnswerKeys> prompt_answer_keys(const ReaderOptions& options);
// The same in words, for messages.
std::string conversation_keys(const ReaderOptions& options);
// A conversation of a row that is a tree: its messages, else its prompt and answer. "" or what is wrong with it.
std::string read_conversation(json&& row, const ReaderOptions& options, Conversation& conversation);
// A user's message and the assistant's.
void add_turn(std::string prompt, std::string_view input, const std::string& answer, Conversation& conversation);

}  // namespace distil_xlstm::data
