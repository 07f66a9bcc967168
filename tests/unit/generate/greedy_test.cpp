#include "generate/greedy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "generate/generator.h"
#include "support/rule_model.h"

namespace distil_xlstm::generate {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Ids = std::vector<int32_t>;

constexpr int64_t kVocabulary = 23;

// Depends on every token so far and on their order.
int64_t digest(const std::vector<int64_t>& tokens) {
  int64_t value = 7;
  for (const int64_t token : tokens) value = (value * 5 + token + 1) % kVocabulary;
  return value;
}

Ids expected(Ids prompt, int64_t count) {
  Ids written;
  for (int64_t i = 0; i < count; ++i) {
    written.push_back(static_cast<int32_t>(digest({prompt.begin(), prompt.end()})));
    prompt.push_back(written.back());
  }
  return written;
}

TEST(Greedy, EveryPromptIsContinuedAsIfItWereAlone) {
  RuleModel model(kVocabulary, digest);
  std::vector<Ids> prompts;
  for (const size_t length : {5, 1, 9, 9, 40, 25, 26, 3, 17, 60, 8}) {
    prompts.emplace_back(length);
    for (size_t at = 0; at < length; ++at) prompts.back()[at] = static_cast<int32_t>((at * at + length * 3) % kVocabulary);
  }
  for (const int64_t batch_tokens : {1, 20, 64, 4096}) {
    std::vector<size_t> done;
    const auto result = greedy_continuations(model, prompts, {.max_new_tokens = 12, .batch_tokens = batch_tokens},
                                             [&](size_t count) { done.push_back(count); });
    int64_t rows = 0, prefill = 0, decode = 0;
    for (const auto& batch : result.batches) {
      rows += batch.num_rows;
      prefill += batch.prefill_tokens;
      decode += batch.decode_tokens;
      EXPECT_EQ(batch.state_bytes, 16 * batch.num_rows);
      EXPECT_GT(batch.prefill_seconds, 0);
      EXPECT_GT(batch.decode_seconds, 0);
    }
    EXPECT_EQ(rows, 11);
    size_t tokens = 0;
    for (const auto& prompt : prompts) tokens += prompt.size();
    EXPECT_GE(prefill + decode, static_cast<int64_t>(tokens) + 11 * 11);  // the last token written is not read
    if (batch_tokens == 1) {
      EXPECT_EQ(result.batches.size(), 11U);
      EXPECT_EQ(prefill, static_cast<int64_t>(tokens));
      EXPECT_EQ(decode, 11 * 11);
    }
    EXPECT_EQ(done.back(), 11U);
    for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(result.continuations[i], expected(prompts[i], 12)) << i << " " << batch_tokens;
  }
  EXPECT_EQ(model.largest_max_tokens, 60 + 12);
}

TEST(Greedy, ReadsNoMoreTokensAtATimeThanAskedFor) {
  RuleModel model(kVocabulary, digest);
  std::vector<Ids> prompts(6, Ids(30, 3));
  const auto result = greedy_continuations(model, prompts, {.max_new_tokens = 2, .batch_tokens = 64});
  EXPECT_EQ(result.batches.size(), 3U);
  EXPECT_LE(model.largest_step, 64);
  model.largest_step = 0;
  prompts.resize(1);
  EXPECT_EQ(greedy_continuations(model, prompts, {.max_new_tokens = 2, .batch_tokens = 7}).continuations[0], expected(prompts[0], 2));
  EXPECT_EQ(model.largest_step, 7);
}

TEST(Greedy, EndsAtStopIdsAndNeverWritesWhatIsLeftOut) {
  RuleModel counting(kVocabulary, [](const std::vector<int64_t>& tokens) { return (tokens.back() + 1) % kVocabulary; });
  const std::vector<Ids> prompts = {{3}, {9}, {11}, {1, 2}};
  const auto result = greedy_continuations(counting, prompts, {.max_new_tokens = 4, .stop_ids = {0, 12}});
  EXPECT_THAT(result.continuations[0], ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(result.continuations[1], ElementsAre(10, 11));
  EXPECT_THAT(result.continuations[2], IsEmpty());
  EXPECT_THAT(result.continuations[3], ElementsAre(3, 4, 5, 6));

  Tensor logits = at::zeros({5, 5});
  logits.select(1, 4).fill_(9.0);
  logits.select(1, 1).fill_(8.0);
  logits.select(1, 2).fill_(7.0);
  ToyModel model(logits);
  EXPECT_THAT(greedy_continuations(model, std::vector<Ids>{{0}}, {.max_new_tokens = 3, .left_out_rows = {1, 4}}).continuations[0],
              ElementsAre(2, 2, 2));
}

TEST(Greedy, RefusesWhatMakesNoSenseAndNamesWhatIsNotFinite) {
  RuleModel model(kVocabulary, digest);
  EXPECT_THROW(greedy_continuations(model, std::vector<Ids>{{1}, {}}, {}), ValueError);
  EXPECT_THROW(greedy_continuations(model, std::vector<Ids>{{1}}, {.max_new_tokens = 0}), ValueError);
  EXPECT_THAT(greedy_continuations(model, std::vector<Ids>{}, {}).continuations, IsEmpty());
  Tensor logits = at::zeros({7, 7});
  logits[4][2] = std::nan("");
  ToyModel broken(logits);
  try {
    greedy_continuations(broken, std::vector<Ids>{{1, 2}, {4}}, {.model_name = "m"});
    FAIL() << "went on";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("m in fp32: 'lm_head.weight' holds values that are not finite"));
  }
}

}  // namespace
}  // namespace distil_xlstm::generate
