// Perplexity of one model, or of two side by side, on texts: every token of a document but its first is a target exactly once.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/json.h"
#include "eval/perplexity_options.h"
#include "nn/language_model.h"
#include "ops/head_rows.h"

namespace distil_xlstm::eval {

// A document as ids, BOS first where the tokenizer adds it.
struct EvalDocument {
  std::vector<int32_t> tokens;
  int64_t size_bytes = 0;  // of its text
};

// Sums over targets.
struct TargetSums {
  int64_t target_tokens = 0;
  double nats = 0.0;
  double teacher_nats = 0.0, kl = 0.0;
  int64_t agreements = 0;

  void add(const TargetSums& other);
  // nats_per_token, perplexity, target_tokens; with a teacher also teacher_nats_per_token, teacher_perplexity, perplexity_ratio,
  // top1_agreement, mean_kl.
  [[nodiscard]] json sums_json(bool has_teacher) const;
};

struct PerplexityResult : TargetSums {
  int64_t size_bytes = 0;
  double seconds = 0.0;
  std::vector<TargetSums> by_position;  // of each range of PerplexityOptions::position_ends

  // Those of two texts together; `seconds` too.
  void add(const PerplexityResult& other);
  // Those of sums_json, and bits_per_byte.
  [[nodiscard]] json to_json(bool has_teacher) const;
};

// Scores documents as they come: a batch of windows as soon as it is full, so that nothing is kept but the document at hand (4 bytes a
// token) and the windows that wait. `teacher` may be null. Sums run in float64, in the order of the targets.
class PerplexityScorer {
 public:
  // Called in order: the targets that a window scores, and how many are scored after each batch.
  struct Observers {
    std::function<void(std::span<const int32_t>)> targets;
    std::function<void(int64_t)> progress;
  };

  // Throws ValueError for options that make no sense, ShapeError for two vocabularies.
  PerplexityScorer(nn::LanguageModel& model, nn::LanguageModel* teacher, const PerplexityOptions& options, Observers observers = {});

  // This and the following throw Error that names model, precision and layer where a figure is not finite.
  void add(const EvalDocument& document);
  // A document in parts; with carry_state its first part is the whole of it. Throws ValueError for an id outside the vocabulary.
  void append(std::span<const int32_t> tokens);
  void end_document();
  [[nodiscard]] int64_t target_tokens() const { return num_targets_; }  // of the documents that have ended

  // Scores what waits. Throws ValueError when no document had a target.
  PerplexityResult finish();

 private:
  // Inputs tokens[.. - 1], targets tokens[1 ..], of which those from `first_scored` on count.
  struct Window {
    std::vector<int32_t> tokens;
    size_t first_scored = 0;
    int64_t document_tokens = 0;  // so far, where it begins a document; else 0
  };
  void take_window(int64_t end);
  void score();
  void add_losses(const Tensor& hidden_BSD, const Tensor& teacher_hidden_BSD, const Tensor& targets_BS, const Tensor& mask_BS);
  void check_options() const;
  [[nodiscard]] int64_t num_tokens() const { return dropped_ + static_cast<int64_t>(tokens_.size()); }

  nn::LanguageModel& model_;
  nn::LanguageModel* teacher_;
  PerplexityOptions options_;
  Observers observers_;
  std::vector<int32_t> tokens_;                   // of the document at hand, without the first dropped_, which no window needs any more
  int64_t dropped_ = 0, begin_ = 0, scored_ = 1;  // the next window's begin, the next target to score
  std::vector<Window> waiting_;
  std::unique_ptr<nn::DecodeState> state_, teacher_state_;
  ops::HeadRows head_rows_;
  Tensor head_VD_, teacher_head_VD_;  // without the rows left out
  PerplexityResult result_;
  int64_t num_targets_ = 0;  // of the documents that have ended
};

// All of it at once.
PerplexityResult perplexity(nn::LanguageModel& model, nn::LanguageModel* teacher, const std::vector<EvalDocument>& documents,
                            const PerplexityOptions& options);

}  // namespace distil_xlstm::eval
