#include "distill/layer_error.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"

namespace distil_xlstm::distill {
namespace {

struct Case {
  Tensor student_BSD = at::randn({3, 5, 4}, at::kDouble).requires_grad_(true), teacher_BSD = at::randn({3, 5, 4}, at::kDouble),
         mask_BS = (at::rand({3, 5}) < 0.7).to(at::kByte);
  explicit Case(uint64_t seed) {
    at::manual_seed(seed);
    mask_BS[0][0] = 1;
    mask_BS[1].zero_();  // a row without a target
    mask_BS[2][3] = 1;
  }
};

TEST(LayerError, IsTheRelativeErrorOfEachRowsTargets) {
  const Case c(3);
  double expected = 0.0;
  Tensor gradient = at::zeros_like(c.teacher_BSD);
  for (int64_t row = 0; row < 3; ++row) {
    double off = 0.0, size = 0.0;
    for (int64_t t = 0; t < 5; ++t) {
      if (c.mask_BS[row][t].item<int64_t>() == 0) continue;
      off += (c.student_BSD[row][t] - c.teacher_BSD[row][t]).square().sum().item<double>();
      size += c.teacher_BSD[row][t].square().sum().item<double>();
    }
    if (size == 0.0) continue;
    expected += off / size;
    for (int64_t t = 0; t < 5; ++t) {
      if (c.mask_BS[row][t].item<int64_t>() != 0) gradient[row][t] = 2.0 * (c.student_BSD[row][t] - c.teacher_BSD[row][t]).detach() / size;
    }
  }
  const Tensor sum = relative_error_sum(c.student_BSD, c.teacher_BSD, c.mask_BS);
  EXPECT_NEAR(sum.item<double>(), expected, 1e-12);
  (3.0 * sum).backward();
  EXPECT_TRUE(at::allclose(c.student_BSD.grad(), 3.0 * gradient, 1e-12, 1e-12));
}

// A mixer that gives nothing is wrong by 1 in every row.
TEST(LayerError, OfNothingIsOne) {
  const Tensor teacher_BSD = at::randn({4, 6, 3}), mask_BS = at::ones({4, 6}, at::kByte);
  EXPECT_NEAR(relative_error_sum(at::zeros_like(teacher_BSD), teacher_BSD, mask_BS).item<double>(), 4.0, 1e-5);
}

TEST(LayerError, TokensThatDoNotCountMayBeAnything) {
  const Case c(4);
  const auto expected = relative_error_sum(c.student_BSD, c.teacher_BSD, c.mask_BS);
  const Tensor student_BSD = c.student_BSD.detach().clone(), teacher_BSD = c.teacher_BSD.clone();
  const Tensor is_masked = (c.mask_BS == 0).unsqueeze(2);
  student_BSD.masked_fill_(is_masked, std::numeric_limits<double>::quiet_NaN());
  teacher_BSD.masked_fill_(is_masked, std::numeric_limits<double>::infinity());
  const Tensor leaf = student_BSD.requires_grad_(true), sum = relative_error_sum(leaf, teacher_BSD, c.mask_BS);
  EXPECT_EQ(sum.item<double>(), expected.item<double>());
  sum.backward();
  EXPECT_TRUE(leaf.grad().isfinite().all().item<bool>());
}

TEST(LayerError, RefusesWhatDoesNotFit) {
  const Tensor x = at::randn({2, 3, 4}), mask = at::ones({2, 3}, at::kByte);
  EXPECT_THROW((void)relative_error_sum(x, at::randn({2, 3, 5}), mask), ShapeError);
  EXPECT_THROW((void)relative_error_sum(x, x, at::ones({2, 4}, at::kByte)), ShapeError);
  EXPECT_THROW((void)relative_error_sum(x[0], x[0], mask), ShapeError);
}

// Terms of whole models and of single layers are not taken for each other.
TEST(LayerError, TermsSayWhereTheyBelong) {
  const config::DistillSettings settings;
  const auto layers = make_hidden_term("layer_error", {settings, 4, 4}), models = make_hidden_term("alignment_loss", {settings, 4, 4});
  EXPECT_THROW((void)layers->loss_sum({}, {}, {}), ConfigError);
  EXPECT_THROW((void)models->layer_loss_sum({}, {}, {}), ConfigError);
}

}  // namespace
}  // namespace distil_xlstm::distill
