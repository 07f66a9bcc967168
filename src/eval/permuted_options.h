// Multiple choice with the options listed under letters, asked in every cyclic order: does a model choose an answer, or a letter?
#pragma once

#include <span>
#include <vector>

#include "base/json.h"
#include "eval/task_items.h"
#include "eval/task_scores.h"

namespace distil_xlstm::eval {

// For each item of n choices an item of n * n requests: order by order, each letter in it. In order s the letter j stands for the choice
// (j + s) mod n. The options are listed before the context's last line where that ends in a colon ("Answer:"), else behind the context and
// before a line "Answer:". Throws ConfigError for a task whose items have no choices behind one context, or an empty one,
// DataError for more than 26.
std::vector<TaskItem> permuted_items(const Task& task, std::span<const TaskItem> items);

// What outcomes of permuted items amount to, as parts of a task's JSON:
//   permuted_acc  share of right answers over items and orders
//   same_letter   share of items where the same letter is chosen in every order
//   same_answer   share of items where the same answer is
// with their standard errors over items, and `letters`: how often each letter is chosen, over items and orders.
struct PermutedScores {
  json metrics, letters;
  std::vector<double> accuracies, same_letter, same_answer;  // of each item
  double chance = 0.0;                                       // of a right answer: the mean of 1 / number of choices
};
PermutedScores permuted_scores(std::span<const TaskItem> items, std::span<const ItemOutcome> outcomes);

// Adds them to task_json's result; `teacher` may be null.
void add_permuted(json& result, const PermutedScores& model, const PermutedScores* teacher);

}  // namespace distil_xlstm::eval
