#include "ops/linear.h"

#include <ATen/Parallel.h>

#include "base/error.h"
#include "unit/ops/op_testing.h"

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

TEST(Linear, GradientsAreThoseOfDifferences) {
  for (const std::vector<int64_t>& rows : {std::vector<int64_t>{}, {1}, {2, 3}}) {
    std::vector<int64_t> x_size = rows;
    x_size.push_back(5);
    const auto loss = [](const std::vector<Tensor>& at) {
      return linear_with_grad(at[0], at[1], at.size() > 2 ? at[2] : Tensor()).pow(2).sum();
    };
    testing::expect_gradients_match(loss, {testing::randn(x_size), testing::randn({4, 5}), testing::randn({4})});
    testing::expect_gradients_match(loss, {testing::randn(x_size), testing::randn({4, 5})});
  }
}

// Every choice of what is trained, and types of their own for the weights.
// Into the weight's type, whatever x has; half precision x on a GPU sees a rounded weight.
TEST(Linear, WideProductsAndTheirGradients) {
  for (const at::Device device : testing::devices()) {
    for (const auto& [x_type, type] : {std::pair{at::kDouble, at::kDouble}, {at::kFloat, at::kFloat}, {at::kBFloat16, at::kFloat}}) {
      const Tensor x = testing::randn({2, 7, 24}).to(x_type).to(at::kDouble), weight = testing::randn({6, 24}), bias = testing::randn({6}),
                   w = testing::randn({2, 7, 6});
      const double limit = testing::tolerance(x_type);
      const std::vector<Tensor> inputs = {x.to(device, x_type), weight.to(device, type), bias.to(device, type)};
      const Tensor out = wide_linear(inputs[0], inputs[1], inputs[2]);
      EXPECT_EQ(out.scalar_type(), type);
      EXPECT_LT(testing::relative_error(out, at::linear(x, weight, bias)), limit);
      const auto found = testing::gradients(
          [&](const std::vector<Tensor>& p) { return (wide_linear(p[0], p[1], p[2]) * w.to(device)).sum(at::kDouble); }, inputs);
      const auto expected =
          testing::gradients([&](const std::vector<Tensor>& p) { return (at::linear(p[0], p[1], p[2]) * w).sum(); }, {x, weight, bias});
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(found[i].scalar_type(), inputs[i].scalar_type());
        EXPECT_LT(testing::relative_error(found[i], expected[i]), limit) << i;
      }
    }
  }
  EXPECT_THROW((void)wide_linear(testing::randn({2, 3}), testing::randn({4, 5}), testing::randn({4})), ShapeError);
}

TEST(Linear, GradientsOfWhatAsksForThem) {
  for (const at::Device device : testing::devices()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const auto given = at::TensorOptions(device).dtype(type), master = given.dtype(at::kFloat);
      for (int asked = 1; asked < 8; ++asked) {
        const Tensor x = at::randn({2, 3, 5}, given), weight = at::randn({4, 5}, master), bias = at::randn({4}, master);
        const Tensor up = at::randn({2, 3, 4}, given);
        x.requires_grad_((asked & 1) != 0), weight.requires_grad_((asked & 2) != 0), bias.requires_grad_((asked & 4) != 0);
        linear_with_grad(x, weight, bias).backward(up);
        const Tensor up_NE = up.flatten(0, 1).to(at::kDouble);
        const std::vector<std::pair<Tensor, Tensor>> expected = {{x, at::matmul(up.to(at::kDouble), weight.detach().to(at::kDouble))},
                                                                 {weight, at::mm(up_NE.t(), x.detach().flatten(0, 1).to(at::kDouble))},
                                                                 {bias, up_NE.sum(0)}};
        for (size_t i = 0; i < 3; ++i) {
          const auto& [leaf, gradient] = expected[i];
          ASSERT_EQ(leaf.grad().defined(), (asked >> i & 1) != 0) << asked << " " << i;
          if (!leaf.grad().defined()) continue;
          EXPECT_EQ(leaf.grad().scalar_type(), leaf.scalar_type());
          EXPECT_LT(testing::relative_error(leaf.grad(), gradient), testing::tolerance(type)) << asked << " " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::ops
