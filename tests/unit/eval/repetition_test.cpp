#include "eval/repetition.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "base/error.h"

namespace distil_xlstm::eval {
namespace {

TEST(Repetition, IsTheShareOfNgramsThatCameBefore) {
  std::vector<int32_t> all_new(50);
  std::iota(all_new.begin(), all_new.end(), 0);
  EXPECT_EQ(repeated_ngrams(all_new), 0.0);
  EXPECT_DOUBLE_EQ(repeated_ngrams(std::vector<int32_t>(20, 7)), 1.0 - 1.0 / 17);
  std::vector<int32_t> loop;  // 1 2 3 4 5 again and again: five 4-grams, of 197
  for (int i = 0; i < 200; ++i) loop.push_back(1 + i % 5);
  EXPECT_DOUBLE_EQ(repeated_ngrams(loop), 1.0 - 5.0 / 197);
  // 1 2 3 4 | 1 2 3 4: 1234, 2341, 3412, 4123, 1234.
  EXPECT_DOUBLE_EQ(repeated_ngrams(std::vector<int32_t>{1, 2, 3, 4, 1, 2, 3, 4}), 1.0 - 4.0 / 5);
  EXPECT_DOUBLE_EQ(repeated_ngrams(std::vector<int32_t>{1, 2, 1, 2, 1}, 1), 1.0 - 2.0 / 5);
  EXPECT_EQ(repeated_ngrams(std::vector<int32_t>{1, 1, 1}), 0.0);
  EXPECT_EQ(repeated_ngrams(std::vector<int32_t>{1, 1, 1, 1}), 0.0);
  EXPECT_EQ(repeated_ngrams(std::vector<int32_t>{}), 0.0);
  EXPECT_THROW(repeated_ngrams(all_new, 0), ValueError);
}

}  // namespace
}  // namespace distil_xlstm::eval
