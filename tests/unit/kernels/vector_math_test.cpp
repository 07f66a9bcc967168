// Accuracy of the vectorised point-wise functions, in every instruction set that this machine has.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/kernels.h"

namespace distil_xlstm::kernels {
namespace {

template <typename T>
std::vector<T> samples() {
  const uint64_t seed = std::random_device{}();
  ::testing::Test::RecordProperty("seed", std::to_string(seed));
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<T> x{0, T(-0.0), 1, -1, 50, -50, 80, -80};
  for (const double scale : {1e-6, 1e-3, 0.1, 1.0, 10.0, 25.0}) {
    for (int i = 0; i < 501; ++i) x.push_back(T(std::clamp(scale * normal(engine), -85.0, 85.0)));
  }
  return x;
}

template <typename T>
double worst_error(void (*function)(const T*, T*, int64_t), double (*exact)(double), const std::vector<T>& x) {
  std::vector<T> y(x.size());
  function(x.data(), y.data(), int64_t(x.size()));
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = exact(double(x[i])), error = std::abs(double(y[i]) - expected);
    worst = std::max(worst, expected == 0 ? error : error / std::abs(expected));
  }
  return worst;
}

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}
double log_sigmoid(double x) {
  return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x)));
}

template <typename T>
void check_accuracy(double limit) {
  for (const InstructionSet set : supported_instruction_sets()) {
    SCOPED_TRACE(name(set));
    const CpuKernels<T>& k = cpu_kernels<T>(set);
    const std::vector<T> x = samples<T>();
    EXPECT_LT(worst_error<T>(k.exp, std::exp, x), limit);
    EXPECT_LT(worst_error<T>(k.tanh, std::tanh, x), limit);
    EXPECT_LT(worst_error<T>(k.sigmoid, sigmoid, x), limit);
    EXPECT_LT(worst_error<T>(k.log_sigmoid, log_sigmoid, x), limit);
  }
}

TEST(VectorMath, IsAccurateInFloat) {
  check_accuracy<float>(5e-7);
}
TEST(VectorMath, IsAccurateInDouble) {
  check_accuracy<double>(1e-15);
}

template <typename T>
void check_limits() {
  const T inf = std::numeric_limits<T>::infinity();
  const std::vector<T> x{-inf, T(-1e30), T(-1000), T(1000), T(1e30), inf, std::numeric_limits<T>::quiet_NaN()};
  for (const InstructionSet set : supported_instruction_sets()) {
    SCOPED_TRACE(name(set));
    const CpuKernels<T>& k = cpu_kernels<T>(set);
    std::vector<T> y(x.size());
    k.exp(x.data(), y.data(), int64_t(x.size()));
    for (int i = 0; i < 3; ++i) EXPECT_EQ(y[i], T(0)) << i;
    for (int i = 3; i < 6; ++i) EXPECT_GT(y[i], T(1e38)) << i;
    EXPECT_TRUE(std::isnan(y[6]));
    k.tanh(x.data(), y.data(), int64_t(x.size()));
    for (int i = 0; i < 6; ++i) EXPECT_EQ(y[i], i < 3 ? T(-1) : T(1)) << i;
    EXPECT_TRUE(std::isnan(y[6]));
    k.sigmoid(x.data(), y.data(), int64_t(x.size()));
    for (int i = 0; i < 6; ++i) EXPECT_NEAR(double(y[i]), i < 3 ? 0.0 : 1.0, 1e-37) << i;
    k.log_sigmoid(x.data(), y.data(), int64_t(x.size()));
    EXPECT_EQ(y[1], T(-1e30));
    EXPECT_EQ(y[2], T(-1000));
    for (int i = 3; i < 6; ++i) EXPECT_EQ(y[i], T(0)) << i;
  }
}

TEST(VectorMath, KeepsItsLimitsInFloat) {
  check_limits<float>();
}
TEST(VectorMath, KeepsItsLimitsInDouble) {
  check_limits<double>();
}

}  // namespace
}  // namespace distil_xlstm::kernels
