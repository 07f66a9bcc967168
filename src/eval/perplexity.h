// Perplexity of one model, or of two side by side, on texts: every token of a document but its first is a target exactly once.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "eval/perplexity_options.h"
#include "nn/language_model.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::eval {

// A document as ids, BOS first where the tokenizer adds it.
struct EvalDocument {
  std::vector<int32_t> tokens;
  int64_t size_bytes = 0;  // of its text
};

struct PerplexityResult {
  int64_t target_tokens = 0;
  int64_t size_bytes = 0;
  double nats = 0.0;  // sums over targets
  double teacher_nats = 0.0, kl = 0.0;
  int64_t agreements = 0;
  double seconds = 0.0;

  // nats_per_token, perplexity, bits_per_byte, target_tokens; with a teacher also teacher_nats_per_token, teacher_perplexity,
  // perplexity_ratio, top1_agreement, mean_kl.
  [[nodiscard]] json to_json(bool has_teacher) const;
};

// One window of a document: inputs tokens[begin, end), targets tokens[begin+1, end+1), of which those from `first_scored` on count.
struct EvalWindow {
  size_t document = 0;
  int64_t begin = 0, end = 0, first_scored = 0;
};

// The windows of a document of `num_tokens` tokens; together they score targets 1..num_tokens-1 once each.
std::vector<EvalWindow> eval_windows(size_t document, int64_t num_tokens, int64_t context_length, int64_t stride);

// `teacher` may be null. `progress` gets scored targets so far and all of them. Sums run in float64. Throws ValueError for options that
// make no sense and when no document has a target.
PerplexityResult perplexity(nn::LanguageModel& model, nn::LanguageModel* teacher, const std::vector<EvalDocument>& documents,
                            const PerplexityOptions& options, const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace distil_xlstm::eval
