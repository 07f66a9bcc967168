#include "ops/linear.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace distil_xlstm::ops {
namespace {

double error_of(const Tensor& a, const Tensor& b) {
  return ((a.to(at::kDouble) - b).abs().max() / b.abs().max()).item<double>();
}

// A row alone, and rows that LibTorch takes, beside the product in float64.
TEST(Linear, EqualsTheProductInHigherPrecision) {
  at::manual_seed(3);
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    for (const auto& [E, K] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {5, 64}, {64, 65}, {257, 127}, {100, 1029}}) {
      for (const std::vector<int64_t>& rows : {std::vector<int64_t>{}, {1}, {1, 1}, {3}, {2, 3}}) {
        std::vector<int64_t> x_size = rows, y_size = rows;
        x_size.push_back(K);
        y_size.push_back(E);
        const Tensor x = at::randn(x_size, type), weight = at::randn({E, 2 * K}, type).narrow(1, K / 2, K), bias = at::randn({E}, type);
        const Tensor product = at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t());
        const double bound = type == at::kDouble ? 1e-13 : 1e-5;
        EXPECT_LT(error_of(linear_without_grad(x, weight), product), bound) << E << " " << K;
        EXPECT_LT(error_of(linear_without_grad(x, weight, bias), product + bias), bound) << E << " " << K;
        const Tensor before = at::randn(y_size, type), sum = before.clone(), sum_with_bias = before.clone();
        add_linear_(sum, x, weight);
        add_linear_(sum_with_bias, x, weight, bias);
        EXPECT_LT(error_of(sum, product + before), bound) << E << " " << K;
        EXPECT_LT(error_of(sum_with_bias, product + before + bias), bound) << E << " " << K;
      }
    }
  }
}

TEST(Linear, ThreadsChangeNoBitOfARow) {
  const int before = at::get_num_threads();
  const Tensor x = at::randn({1, 1, 1037}), weight = at::randn({4099, 1037}), bias = at::randn({4099});
  at::set_num_threads(1);
  const Tensor expected = linear_without_grad(x, weight, bias);
  for (const int threads : {2, 3, 7}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(linear_without_grad(x, weight, bias), expected)) << threads;
  }
  at::set_num_threads(before);
}

TEST(Linear, RefusesShapesThatDoNotFit) {
  EXPECT_THROW(linear_without_grad(at::randn({1, 3}), at::randn({2, 4})), ShapeError);
  EXPECT_THROW(linear_without_grad(at::randn({1, 4}), at::randn({2, 4}), at::randn({3})), ShapeError);
  EXPECT_THROW(add_linear_(at::randn({1, 4}).as_strided({1, 2}, {4, 2}), at::randn({1, 4}), at::randn({2, 4})), ShapeError);
  EXPECT_THROW(add_linear_(at::randn({2, 2}), at::randn({1, 4}), at::randn({2, 4})), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
