// What of prepared text counts for the loss.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/file.h"
#include "base/json.h"
#include "data/packer.h"

namespace distil_xlstm::data {

struct TargetCounts {
  uint64_t conversations = 0;
  uint64_t without_answer = 0;   // of them: nothing in them counts
  uint64_t missing_answers = 0;  // of all: RenderedChat::num_missing_answers
  json roles = json::array();    // of those without an answer, each set of roles once (a few)
  int64_t target_tokens = 0;     // ids that count, of texts all, but the first of each, which nothing predicts

  // The first `num_ids` ids of a document.
  void add(const TokenDocument& document, size_t num_ids);
};

json to_json(const TargetCounts& targets);
TargetCounts target_counts(const json& value, std::string_view where);

// Conversations that teach nothing are rather a mistake: another name for the assistant, or prompts alone.
void warn_of_no_answers(const TargetCounts& targets, const fs::path& output);

}  // namespace distil_xlstm::data
