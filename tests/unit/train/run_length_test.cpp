#include <gtest/gtest.h>

#include "base/error.h"
#include "train/run_length.h"

namespace distil_xlstm::train {
namespace {

config::TrainSettings settings(int64_t epochs, int64_t tokens, int64_t steps) {
  config::TrainSettings train;
  train.micro_batch_size = 8;
  train.gradient_accumulation_steps = 4;
  train.num_epochs = epochs;
  train.max_tokens = tokens;
  train.max_steps = steps;
  return train;
}

TEST(RunLength, BothReadingsOfThePapersTokens) {
  EXPECT_EQ(run_length(settings(10, 0, 0), 1'000'000, 512).total_steps, 312'500);
  EXPECT_EQ(run_length(settings(0, 512'000'000, 0), 100'000, 512).total_steps, 31'250);
  EXPECT_EQ(run_length(settings(0, 512'000'000, 0), 100'000, 512).num_epochs, 10);
}

TEST(RunLength, AShortLastAccumulationIsAStep) {
  const auto length = run_length(settings(3, 0, 0), 33, 10);
  EXPECT_EQ(length.steps_per_epoch, 2);
  EXPECT_EQ(length.total_steps, 6);
  EXPECT_EQ(length.total_tokens, 3 * 33 * 10);
  EXPECT_TRUE(length.ends_with_epochs);
}

TEST(RunLength, NothingSaidMeansOneEpoch) {
  EXPECT_EQ(run_length(settings(0, 0, 0), 64, 10).total_steps, 2);
}

// Counted step by step for many sizes: the run ends with the step that reaches max_tokens.
TEST(RunLength, TokensAreCountedOverShortSteps) {
  for (const int64_t rows : {1, 31, 32, 33, 100}) {
    for (const int64_t tokens : {1, 10, 319, 320, 321, 5000, 7777}) {
      int64_t steps = 0, seen = 0;
      for (int64_t left = rows; seen < tokens; ++steps) {
        if (left == 0) left = rows;
        const int64_t taken = std::min<int64_t>(left, 32);
        left -= taken;
        seen += taken * 10;
      }
      EXPECT_EQ(run_length(settings(0, tokens, 0), rows, 10).total_steps, steps) << rows << " rows, " << tokens << " tokens";
    }
  }
}

TEST(RunLength, StepsAndTheirEpochs) {
  const auto length = run_length(settings(0, 0, 5), 33, 10);
  EXPECT_EQ(length.total_steps, 5);
  EXPECT_EQ(length.num_epochs, 3);
  EXPECT_EQ(length.total_tokens, (33 + 33 + 32) * 10);
  EXPECT_THROW(run_length(settings(1, 0, 0), 0, 10), DataError);
}

TEST(RunLength, TwoLengthsAreRefused) {
  try {
    run_length(settings(0, 100, 5), 33, 10);
    FAIL() << "took two lengths";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "train.max_tokens = 100 and train.max_steps = 5 are set together: set one of them");
  }
}

}  // namespace
}  // namespace distil_xlstm::train
