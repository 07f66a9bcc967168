#include "eval/task_scores.h"

#include <gtest/gtest.h>

#include <cmath>

namespace distil_xlstm::eval {
namespace {

Task task_of(OutputType type, std::vector<std::string> metrics) {
  Task task;
  task.name = "t";
  task.output_type = type;
  task.metrics = std::move(metrics);
  return task;
}

TaskItem choices(std::vector<std::string> texts, int64_t answer, std::string group = "") {
  TaskItem item{.place = "f: line 1", .requests = {}, .choices = std::move(texts), .answer = answer, .group = std::move(group)};
  for (const auto& text : item.choices) item.requests.push_back({"c", " " + text});
  return item;
}

ItemOutcome outcome(std::vector<double> log_likelihoods, bool is_greedy = false, int64_t num_tokens = 1) {
  return {.log_likelihoods = std::move(log_likelihoods), .is_greedy = is_greedy, .num_tokens = num_tokens};
}

TEST(TaskScores, DivideByCharactersOrBytes) {
  // -3 and -4: per character -1.5 and -2 ("ab", "éé"), or -1.5 and -1 per byte; the third item is a tie, which the first choice wins.
  const std::vector<TaskItem> items = {choices({"ab", "éé"}, 1), choices({"abcdefgh", "x"}, 0), choices({"a", "b"}, 0)};
  const std::vector<ItemOutcome> outcomes = {outcome({-3, -4}), outcome({-4, -2}), outcome({-1, -1})};
  EXPECT_DOUBLE_EQ(metric_value("acc", items, outcomes).value, 1.0 / 3);
  EXPECT_DOUBLE_EQ(metric_value("acc_norm", items, outcomes).value, 2.0 / 3);
  EXPECT_DOUBLE_EQ(metric_value("acc_bytes", items, outcomes).value, 1.0);
  // Of 1, 0, 0: standard deviation sqrt(1/3), over sqrt(3).
  EXPECT_NEAR(*metric_value("acc", items, outcomes).standard_error, 1.0 / 3, 1e-12);
}

TEST(TaskScores, OfOneContinuation) {
  const auto task = task_of(OutputType::loglikelihood, {"acc", "perplexity"});
  std::vector<TaskItem> items(2);
  for (auto& item : items) item.requests.resize(1);
  const std::vector<ItemOutcome> outcomes = {outcome({-1}, true), outcome({-3}, false)};
  EXPECT_DOUBLE_EQ(metric_value("acc", items, outcomes).value, 0.5);
  EXPECT_NEAR(metric_value("perplexity", items, outcomes).value, std::exp(2), 1e-12);
  EXPECT_NEAR(*metric_value("perplexity", items, outcomes).standard_error, std::exp(2) * 1.0, 1e-9);
  EXPECT_EQ(chance_level(task, items), 0.0);
}

TEST(TaskScores, OfTextsWordByWord) {
  std::vector<TaskItem> items(2);
  items[0].num_words = 2, items[0].num_bytes = 10, items[1].num_words = 6, items[1].num_bytes = 30;
  const std::vector<ItemOutcome> outcomes = {outcome({-4}, false, 3), outcome({-12}, false, 5)};
  EXPECT_NEAR(metric_value("word_perplexity", items, outcomes).value, std::exp(16.0 / 8), 1e-12);
  EXPECT_NEAR(metric_value("token_perplexity", items, outcomes).value, std::exp(16.0 / 8), 1e-12);
  EXPECT_NEAR(metric_value("byte_perplexity", items, outcomes).value, std::exp(16.0 / 40), 1e-12);
  EXPECT_NEAR(metric_value("bits_per_byte", items, outcomes).value, 16.0 / 40 / std::log(2), 1e-12);
  EXPECT_FALSE(metric_value("word_perplexity", items, outcomes).standard_error);
}

TEST(TaskScores, GroupsCountTheSame) {
  const std::vector<TaskItem> items = {choices({"a", "b"}, 0, "x"), choices({"a", "b"}, 0, "x"), choices({"a", "b"}, 0, "x"),
                                       choices({"a", "b"}, 0, "y")};
  const std::vector<ItemOutcome> outcomes = {outcome({-1, -2}), outcome({-1, -2}), outcome({-2, -1}), outcome({-2, -1})};
  EXPECT_DOUBLE_EQ(metric_value("acc", items, outcomes).value, (2.0 / 3 + 0) / 2);
  const auto json = task_json(task_of(OutputType::multiple_choice, {"acc"}), items, outcomes, {}, false);
  EXPECT_DOUBLE_EQ(json["groups"]["x"]["model"]["acc"].get<double>(), 2.0 / 3);
  EXPECT_EQ(json["groups"]["y"]["num_items"], 1);
}

TEST(TaskScores, ComparesWithATeacherPlainAndAboveChance) {
  const auto task = task_of(OutputType::multiple_choice, {"acc"});
  const std::vector<TaskItem> items(4, choices({"a", "b", "c", "d"}, 0));
  const ItemOutcome right = outcome({-1, -2, -2, -2}), wrong = outcome({-2, -1, -2, -2});
  const std::vector<ItemOutcome> model = {right, right, wrong, wrong}, teacher = {right, right, right, wrong};
  const auto json = task_json(task, items, model, teacher, true);
  EXPECT_EQ(json["num_items"], 4);
  EXPECT_EQ(json["chance"], 0.25);
  EXPECT_EQ(json["model"]["acc"], 0.5);
  EXPECT_EQ(json["teacher"]["acc"], 0.75);
  const auto& comparison = json["comparison"]["acc"];
  EXPECT_DOUBLE_EQ(comparison["kept"].get<double>(), 0.5 / 0.75);
  EXPECT_DOUBLE_EQ(comparison["kept_above_chance"].get<double>(), 0.25 / 0.5);
  EXPECT_DOUBLE_EQ(comparison["difference"].get<double>(), -0.25);
  EXPECT_DOUBLE_EQ(comparison["difference_stderr"].get<double>(), 0.25);  // of 0, 0, -1, 0
  EXPECT_EQ(json["samples"][2]["teacher"]["acc"], 1.0);
  EXPECT_EQ(json["samples"][2]["model"]["acc"], 0.0);
  EXPECT_EQ(json["samples"][2]["model"]["log_likelihoods"][1], -1.0);

  EXPECT_TRUE(task_json(task, items, model, std::vector(4, wrong), false)["comparison"]["acc"]["kept_above_chance"].is_null());

  // The average: over the primary accuracies, perplexities left out.
  auto tasks = json::object();
  tasks["a"] = json;
  tasks["b"] =
      task_json(task, std::vector<TaskItem>(2, choices({"a", "b"}, 0)), std::vector{right, right}, std::vector{right, right}, false);
  tasks["c"] = {{"primary_metric", "word_perplexity"}};
  const auto average = average_json(tasks);
  EXPECT_EQ(average["num_tasks"], 2);
  EXPECT_DOUBLE_EQ(average["model"].get<double>(), 0.75);
  EXPECT_DOUBLE_EQ(average["teacher"].get<double>(), 0.875);
  EXPECT_DOUBLE_EQ(average["kept"].get<double>(), 0.75 / 0.875);
  EXPECT_DOUBLE_EQ(average["kept_above_chance"].get<double>(), (0.75 - 0.375) / (0.875 - 0.375));
  EXPECT_DOUBLE_EQ(average["difference_stderr"].get<double>(), 0.125);
  EXPECT_TRUE(average_json({{"c", {{"primary_metric", "word_perplexity"}}}}).is_null());
}

}  // namespace
}  // namespace distil_xlstm::eval
