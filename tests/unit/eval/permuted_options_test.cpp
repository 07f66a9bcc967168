#include "eval/permuted_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace distil_xlstm::eval {
namespace {

using ::testing::HasSubstr;

TaskItem item(const std::string& context, std::vector<std::string> choices, int64_t answer) {
  TaskItem result{.place = "f: line 1", .requests = {}, .choices = std::move(choices), .answer = answer, .group = ""};
  for (const auto& choice : result.choices) result.requests.push_back({context, " " + choice});
  return result;
}

// What a model of this rule makes of permuted items: the letter that it takes in each order gets the greatest value.
template <typename Rule>
std::vector<ItemOutcome> outcomes_of(const std::vector<TaskItem>& items, const Rule& letter_of) {
  std::vector<ItemOutcome> outcomes;
  for (const auto& one : items) {
    const size_t n = one.choices.size();
    ItemOutcome outcome;
    for (size_t order = 0; order < n; ++order) {
      for (size_t j = 0; j < n; ++j) outcome.log_likelihoods.push_back(letter_of(one, order) == j ? -1.0 : -2.0);
    }
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

TEST(PermutedOptions, ListsEveryCyclicOrderUnderLetters) {
  const std::vector<TaskItem> items = {item("Question: Q?\nAnswer:", {"x", " y", "z"}, 1), item("He went", {"home", "away"}, 0)};
  const auto permuted = permuted_items({}, items);
  ASSERT_EQ(permuted.size(), 2U);
  const auto& requests = permuted[0].requests;
  ASSERT_EQ(requests.size(), 9U);
  EXPECT_EQ(requests[0].context, "Question: Q?\nA. x\nB. y\nC. z\nAnswer:");
  EXPECT_EQ(requests[3].context, "Question: Q?\nA. y\nB. z\nC. x\nAnswer:");
  EXPECT_EQ(requests[8].context, "Question: Q?\nA. z\nB. x\nC. y\nAnswer:");
  for (size_t i = 0; i < 9; ++i) {
    EXPECT_EQ(requests[i].context, requests[i - i % 3].context);
    EXPECT_EQ(requests[i].continuation, std::string(" ") + "ABC"[i % 3]);
  }
  EXPECT_EQ(permuted[1].requests[2].context, "He went\nA. away\nB. home\nAnswer:");
}

TEST(PermutedOptions, TellModelsThatKnowFromThoseThatLikeALetter) {
  const auto permuted = permuted_items({}, std::vector<TaskItem>{item("Q:", {"a", "b", "c", "d"}, 2), item("Q:", {"a", "b"}, 0)});
  const auto knowing = permuted_scores(permuted, outcomes_of(permuted, [](const TaskItem& one, size_t order) {
                                         const size_t n = one.choices.size();
                                         return (static_cast<size_t>(one.answer) + n - order) % n;
                                       }));
  EXPECT_EQ(knowing.metrics["permuted_acc"], 1.0);
  EXPECT_EQ(knowing.metrics["same_answer"], 1.0);
  EXPECT_EQ(knowing.metrics["same_letter"], 0.0);
  EXPECT_EQ(knowing.letters, (json{{"A", 2.0 / 6}, {"B", 2.0 / 6}, {"C", 1.0 / 6}, {"D", 1.0 / 6}}));

  const auto stubborn = permuted_scores(permuted, outcomes_of(permuted, [](const TaskItem&, size_t) { return size_t{1}; }));
  EXPECT_EQ(stubborn.metrics["permuted_acc"], (0.25 + 0.5) / 2);
  EXPECT_EQ(stubborn.metrics["same_answer"], 0.0);
  EXPECT_EQ(stubborn.metrics["same_letter"], 1.0);
  EXPECT_EQ(stubborn.letters, (json{{"A", 0.0}, {"B", 1.0}, {"C", 0.0}, {"D", 0.0}}));

  json result = {{"model", {{"acc", 0.5}}}, {"teacher", {{"acc", 0.5}}}, {"comparison", json::object()}};
  add_permuted(result, stubborn, &knowing);
  EXPECT_EQ(result["model"]["acc"], 0.5);
  EXPECT_EQ(result["teacher"]["permuted_acc"], 1.0);
  EXPECT_EQ(result["comparison"]["permuted_acc"]["difference"], -0.625);
  EXPECT_DOUBLE_EQ(result["comparison"]["permuted_acc"]["difference_stderr"].get<double>(), 0.125);  // of -0.75 and -0.5
  EXPECT_EQ(result["letters"]["model"]["B"], 1.0);
  // Of a model that always takes one letter nothing is kept above chance, here (1/4 + 1/2) / 2; a model beside itself keeps all.
  EXPECT_DOUBLE_EQ(result["comparison"]["permuted_acc"]["kept"].get<double>(), 0.375);
  EXPECT_DOUBLE_EQ(result["comparison"]["permuted_acc"]["kept_above_chance"].get<double>(), 0.0);
  for (const char* share : {"same_letter", "same_answer"}) {
    EXPECT_FALSE(result["comparison"][share].contains("kept")) << share;
    EXPECT_EQ(result["comparison"][share]["difference"], std::string(share) == "same_letter" ? 1.0 : -1.0);
  }
  add_permuted(result, knowing, &knowing);
  EXPECT_EQ(result["comparison"]["permuted_acc"]["kept_above_chance"], 1.0);
  add_permuted(result, knowing, &stubborn);
  EXPECT_TRUE(result["comparison"]["permuted_acc"]["kept_above_chance"].is_null());  // the teacher is no better than chance
}

TEST(PermutedOptions, RefusesWhatHasNoOptions) {
  Task task;
  task.name = "t";
  const std::vector<TaskItem> contexts = {{.place = "f", .requests = {{"a", " c"}, {"b", " c"}}, .choices = {}, .answer = 0, .group = ""}};
  try {
    permuted_items(task, contexts);
    FAIL() << "took it";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("--permute-options: task t has no options to list"));
  }
  for (const char* blank : {"", " \n"}) {
    try {
      permuted_items(task, std::vector<TaskItem>{item("Q", {"x", "y"}, 0), item(blank, {"x", "y"}, 0)});
      FAIL() << "took it";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("--permute-options: task t: f: line 1: the context is empty"));
    }
  }
  EXPECT_THROW(permuted_items({}, std::vector<TaskItem>{item("Q", std::vector<std::string>(27, "x"), 0)}), DataError);
  task.output_type = OutputType::loglikelihood;
  EXPECT_THROW(permuted_items(task, std::vector<TaskItem>{item("Q", {"x", "y"}, 0)}), ConfigError);
}

}  // namespace
}  // namespace distil_xlstm::eval
