// Figures that are not finite, and rows that are left out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "eval/perplexity.h"
#include "support/toy_model.h"

namespace distil_xlstm::eval {
namespace {

using ::testing::HasSubstr;

std::vector<EvalDocument> documents() {
  return {{.tokens = {1, 2, 3, 4, 5, 1, 2, 3, 4, 5}, .size_bytes = 20}, {.tokens = {3, 2, 1}, .size_bytes = 6}};
}

std::string error_of(nn::LanguageModel& model, nn::LanguageModel* teacher, PerplexityOptions options) {
  options.model_name = "m";
  options.teacher_name = "t";
  try {
    perplexity(model, teacher, documents(), options);
    return "<no exception>";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 1);
    return error.what();
  }
}

TEST(Perplexity, NamesTheModelWhoseFiguresAreNotFinite) {
  const Tensor good = at::randn({7, 7}), bad = good.clone();
  bad[4][2] = std::nan("");
  ToyModel model(good), broken(bad);
  for (const bool carry_state : {false, true}) {
    for (const int64_t batch_size : {1, 8}) {
      const PerplexityOptions options{.context_length = 3, .batch_size = batch_size, .carry_state = carry_state};
      EXPECT_EQ(error_of(model, &model, options), "<no exception>");
      EXPECT_THAT(error_of(broken, nullptr, options), HasSubstr("m in fp32: 'lm_head.weight' holds values that are not finite"));
      EXPECT_THAT(error_of(broken, &model, options), HasSubstr("m in fp32: "));
      EXPECT_THAT(error_of(model, &broken, options), HasSubstr("t in fp32: 'lm_head.weight' holds values that are not finite"));
    }
  }
}

TEST(Perplexity, RowsLeftOutAreAsIfTheyWereNotThere) {
  const Tensor logits = at::randn({9, 9});
  for (const std::vector<int32_t>& left_out : {std::vector<int32_t>{7, 8}, {0, 6}, {6}}) {
    ToyModel model(logits), teacher(at::randn({9, 9}));
    Tensor masked = logits.to(at::kDouble).clone();
    for (const int32_t id : left_out) masked.select(1, id).fill_(-INFINITY);
    const Tensor log_probability = masked.log_softmax(1);
    double expected = 0;
    for (const auto& document : documents()) {
      for (size_t at = 1; at < document.tokens.size(); ++at)
        expected -= log_probability[document.tokens[at - 1]][document.tokens[at]].item<double>();
    }
    const auto result = perplexity(model, &teacher, documents(), {.context_length = 4, .left_out_rows = left_out});
    EXPECT_NEAR(result.nats, expected, 1e-5);
    const auto itself = perplexity(model, &model, documents(), {.context_length = 4, .left_out_rows = left_out});
    EXPECT_NEAR(itself.kl, 0.0, 1e-6);
    EXPECT_NEAR(itself.teacher_nats, expected, 1e-5);
  }
}

}  // namespace
}  // namespace distil_xlstm::eval
