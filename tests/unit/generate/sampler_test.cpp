#include "generate/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"

namespace distil_xlstm::generate {
namespace {

const std::vector<float> kLogits = {0.0F, std::log(4.0F), std::log(2.0F), std::log(3.0F)};  // probabilities 0.1, 0.4, 0.2, 0.3

std::map<int32_t, double> shares(const SamplingOptions& options, const std::vector<int32_t>& context = {}) {
  Sampler sampler(options);
  std::map<int32_t, double> result;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) result[sampler.sample(kLogits, context)] += 1.0 / kDraws;
  return result;
}

TEST(Sampler, GreedyTakesTheLikeliestAndTheLowestOfEquals) {
  Sampler sampler({.temperature = 0});
  EXPECT_EQ(sampler.sample(kLogits, {}), 1);
  const std::vector<float> equal = {1.0F, 5.0F, 5.0F};
  EXPECT_EQ(sampler.sample(equal, {}), 1);
}

TEST(Sampler, FollowsTheDistribution) {
  auto result = shares({.temperature = 1.0});
  EXPECT_NEAR(result[0], 0.1, 0.015);
  EXPECT_NEAR(result[1], 0.4, 0.015);
  EXPECT_NEAR(result[2], 0.2, 0.015);
  EXPECT_NEAR(result[3], 0.3, 0.015);
  auto sharp = shares({.temperature = 0.5});  // squares, normalised: 1 16 4 9
  EXPECT_NEAR(sharp[1], 16.0 / 30, 0.015);
}

TEST(Sampler, TopKTopPAndMinP) {
  auto top_k = shares({.temperature = 1.0, .top_k = 2});
  EXPECT_EQ(top_k.size(), 2U);
  EXPECT_NEAR(top_k[1], 4.0 / 7, 0.015);
  EXPECT_EQ(shares({.temperature = 1.0, .top_p = 0.65}).size(), 2U);  // 0.4 + 0.3 reach it
  EXPECT_EQ(shares({.temperature = 1.0, .top_p = 0.75}).size(), 3U);
  EXPECT_EQ(shares({.temperature = 1.0, .top_p = 0.01}).size(), 1U);
  EXPECT_EQ(shares({.temperature = 1.0, .min_p = 0.6}).size(), 2U);  // at least 0.24
}

TEST(Sampler, RepetitionPenaltyActsOnBothSigns) {
  Sampler sampler({.temperature = 0, .repetition_penalty = 2.0});
  const std::vector<float> logits = {-1.0F, 3.0F, 2.0F};
  const std::vector<int32_t> seen = {1};
  EXPECT_EQ(sampler.sample(logits, seen), 2);  // 3 / 2 < 2
  const std::vector<float> negative = {-1.0F, -1.5F};
  const std::vector<int32_t> seen_first = {0};
  EXPECT_EQ(sampler.sample(negative, seen_first), 1);  // -1 * 2 < -1.5
}

TEST(Sampler, SameSeedSameTokensWhateverTheStreams) {
  Sampler a({.temperature = 1.0, .seed = 5}, 2), b({.temperature = 1.0, .seed = 5}, 2), c({.temperature = 1.0, .seed = 5}, 3);
  std::vector<int32_t> first, second, third;
  for (int i = 0; i < 50; ++i) {
    first.push_back(a.sample(kLogits, {}));
    second.push_back(b.sample(kLogits, {}));
    third.push_back(c.sample(kLogits, {}));
  }
  EXPECT_EQ(first, second);
  EXPECT_NE(first, third);
}

TEST(Sampler, RefusesBadOptionsAndBrokenLogits) {
  EXPECT_THROW(Sampler({.temperature = -1}), ValueError);
  EXPECT_THROW(Sampler({.top_k = -1}), ValueError);
  EXPECT_THROW(Sampler({.top_p = 0}), ValueError);
  EXPECT_THROW(Sampler({.min_p = 1}), ValueError);
  EXPECT_THROW(Sampler({.repetition_penalty = 0}), ValueError);
  Sampler sampler({});
  const std::vector<float> broken(4, std::numeric_limits<float>::quiet_NaN());
  EXPECT_THROW(sampler.sample(broken, {}), NotFiniteLogits);
}

// Rows without a token: behind the last one, and between others; with every option.
TEST(Sampler, NeverChoosesWhatIsLeftOut) {
  const std::vector<float> logits = {9.0F, 1.0F, 2.0F, 8.0F, 0.5F, 7.0F, std::numeric_limits<float>::quiet_NaN()};
  const std::vector<int32_t> left_out = {0, 3, 5, 6}, context = {0, 1, 3, 6};
  std::map<int32_t, int> seen;
  for (const double temperature : {0.0, 0.7, 3.0}) {
    for (const int64_t top_k : {0, 1, 5}) {
      for (const double top_p : {0.5, 1.0}) {
        for (const double repetition_penalty : {1.0, 2.0}) {
          const SamplingOptions options{
              .temperature = temperature, .top_k = top_k, .top_p = top_p, .repetition_penalty = repetition_penalty};
          Sampler sampler(options, 0, left_out);
          for (int draw = 0; draw < 50; ++draw) ++seen[sampler.sample(logits, context)];
        }
      }
    }
  }
  EXPECT_EQ(seen.size(), 3U);
  for (const auto& [id, count] : seen) EXPECT_TRUE(id == 1 || id == 2 || id == 4) << id;
}

TEST(Sampler, RowsLeftOutChangeNothingForTheOthers) {
  std::vector<float> padded = kLogits;
  padded.insert(padded.end(), {50.0F, 60.0F});
  const std::vector<int32_t> left_out = {4, 5};
  for (const uint64_t seed : {1, 2, 3}) {
    Sampler plain({.temperature = 1.0, .seed = seed}), masked({.temperature = 1.0, .seed = seed}, 0, left_out);
    for (int draw = 0; draw < 100; ++draw) EXPECT_EQ(masked.sample(padded, {}), plain.sample(kLogits, {}));
  }
}

TEST(Sampler, RefusesLogitsOfWhichOneIsNoNumber) {
  Sampler sampler({});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    EXPECT_THROW(sampler.sample(std::vector<float>{1.0F, bad, 2.0F}, {}), NotFiniteLogits);
  EXPECT_EQ(Sampler({.temperature = 0}).sample(std::vector<float>{1.0F, -std::numeric_limits<float>::infinity(), 2.0F}, {}), 2);
}

}  // namespace
}  // namespace distil_xlstm::generate
