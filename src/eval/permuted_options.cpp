#include "eval/permuted_options.h"

#include <algorithm>

#include "base/error.h"
#include "eval/means.h"

namespace distil_xlstm::eval {
namespace {

constexpr size_t kNumLetters = 26;

std::string letter(size_t index) {
  return {static_cast<char>('A' + index)};
}

// What stands before the listed options, and the line behind them.
struct Frame {
  std::string before, cue;
};

Frame frame_of(std::string_view context) {
  const size_t line = context.rfind('\n');
  if (line != std::string_view::npos && context.ends_with(':'))
    return {std::string(context.substr(0, line)), std::string(context.substr(line + 1))};
  return {std::string(context), "Answer:"};
}

}  // namespace

std::vector<TaskItem> permuted_items(const Task& task, std::span<const TaskItem> items) {
  std::vector<TaskItem> permuted;
  for (const TaskItem& item : items) {
    if (task.output_type != OutputType::multiple_choice || item.choices.empty())
      throw ConfigError("--permute-options: task {} has no options to list: its forms need 'context' and 'choices'", task.name);
    const std::string& question = item.requests.front().context;
    if (question.find_first_not_of(" \t\r\n") == std::string::npos)
      throw ConfigError("--permute-options: task {}: {}: the context is empty: there is no question to list options for", task.name,
                        item.place);
    const size_t n = item.choices.size();
    if (n > kNumLetters) throw DataError("{}: --permute-options: {} choices, and there are {} letters", item.place, n, kNumLetters);
    const auto [before, cue] = frame_of(question);
    TaskItem asked{.place = item.place, .requests = {}, .choices = item.choices, .answer = item.answer, .group = item.group};
    for (size_t order = 0; order < n; ++order) {
      std::string context = before;
      for (size_t j = 0; j < n; ++j) {
        const std::string& choice = item.choices[(j + order) % n];
        context += "\n" + letter(j) + ". " + choice.substr(std::min(choice.find_first_not_of(' '), choice.size()));
      }
      context += "\n" + cue;
      for (size_t j = 0; j < n; ++j) asked.requests.push_back({context, " " + letter(j)});
    }
    permuted.push_back(std::move(asked));
  }
  return permuted;
}

PermutedScores permuted_scores(std::span<const TaskItem> items, std::span<const ItemOutcome> outcomes) {
  PermutedScores scores;
  std::vector<double> counts;
  double num_chosen = 0.0;
  for (size_t i = 0; i < items.size(); ++i) {
    const size_t n = items[i].choices.size();
    if (counts.size() < n) counts.resize(n, 0.0);
    std::vector<size_t> letters, answers;
    for (size_t order = 0; order < n; ++order) {
      const auto of_order = std::span(outcomes[i].log_likelihoods).subspan(order * n, n);
      letters.push_back(static_cast<size_t>(std::ranges::max_element(of_order) - of_order.begin()));
      answers.push_back((letters.back() + order) % n);
      counts[letters.back()] += 1.0;
    }
    num_chosen += static_cast<double>(n);
    scores.chance += 1.0 / static_cast<double>(n) / static_cast<double>(items.size());
    const auto is_constant = [](const std::vector<size_t>& values) {
      return std::ranges::all_of(values, [&](size_t value) { return value == values.front(); }) ? 1.0 : 0.0;
    };
    const auto num_right = std::ranges::count(answers, static_cast<size_t>(items[i].answer));
    scores.accuracies.push_back(static_cast<double>(num_right) / static_cast<double>(n));
    scores.same_letter.push_back(is_constant(letters));
    scores.same_answer.push_back(is_constant(answers));
  }
  add_mean(scores.metrics, "permuted_acc", scores.accuracies);
  add_mean(scores.metrics, "same_letter", scores.same_letter);
  add_mean(scores.metrics, "same_answer", scores.same_answer);
  for (size_t j = 0; j < counts.size(); ++j) scores.letters[letter(j)] = counts[j] / num_chosen;
  return scores;
}

void add_permuted(json& result, const PermutedScores& model, const PermutedScores* teacher) {
  result["model"].update(model.metrics);
  result["letters"]["model"] = model.letters;
  if (teacher == nullptr) return;
  result["teacher"].update(teacher->metrics);
  result["letters"]["teacher"] = teacher->letters;
  json& comparison = result["comparison"];
  comparison["permuted_acc"] = paired_json(model.accuracies, teacher->accuracies);
  comparison["permuted_acc"]["kept_above_chance"] =
      share_json(mean_of(model.accuracies).mean - model.chance, mean_of(teacher->accuracies).mean - teacher->chance);
  comparison["same_letter"] = paired_json(model.same_letter, teacher->same_letter);
  comparison["same_answer"] = paired_json(model.same_answer, teacher->same_answer);
  for (const char* share : {"same_letter", "same_answer"}) comparison[share].erase("kept");  // more is not better
}

}  // namespace distil_xlstm::eval
