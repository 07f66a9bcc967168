// What a model's log-likelihoods on a task's items amount to, and how two models compare.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "eval/task_items.h"

namespace distil_xlstm::eval {

// A model's answer to one item.
struct ItemOutcome {
  std::vector<double> log_likelihoods;  // one for each choice; else one: of the continuation, or of the whole text
  bool is_greedy = false;               // loglikelihood: greedy decoding would write the continuation
  int64_t num_tokens = 0;               // of the continuations
};

// The outcomes of all items from the scores of their requests.
std::vector<ItemOutcome> gather_outcomes(const Task& task, const EncodedItems& encoded, std::span<const RequestScore> scores);

struct MetricValue {
  double value = 0.0;
  std::optional<double> standard_error;  // of the mean over items; none where the metric is a quotient of sums
};

// Over items that all belong to the same group, or to none.
//   acc       share of items whose most likely choice is right (loglikelihood: whose continuation is greedy)
//   acc_norm  the same, log-likelihoods divided by the choices' characters; acc_bytes: by their bytes
//   perplexity  exp of the mean negative log-likelihood of the continuations
//   word_perplexity, byte_perplexity, token_perplexity, bits_per_byte  of all text together
// Of groups: the mean of their values, each group counting the same.
MetricValue metric_value(std::string_view metric, std::span<const TaskItem> items, std::span<const ItemOutcome> outcomes);

// Share of items that are right by chance: one of an item's choices.
double chance_level(const Task& task, std::span<const TaskItem> items);

// Of the same items: standard error of the difference of their means (of an accuracy).
std::optional<double> paired_standard_error(std::string_view metric, std::span<const TaskItem> items, std::span<const ItemOutcome> model,
                                            std::span<const ItemOutcome> teacher);

// One task's part of the JSON; `teacher` may be empty. docs/eval.md describes it.
json task_json(const Task& task, std::span<const TaskItem> items, std::span<const ItemOutcome> model, std::span<const ItemOutcome> teacher,
               bool with_samples);

// Means over the primary accuracies of tasks, from their task_json(); null where no task has one.
json average_json(const json& tasks);

}  // namespace distil_xlstm::eval
