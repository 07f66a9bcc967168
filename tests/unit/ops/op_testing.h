// What the tests of differentiable operations share: fresh random input with a printed seed, devices, relative errors, differences.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "ops/tensor.h"
#include "support/devices.h"

namespace distil_xlstm::testing {

// A test whose random numbers are new in each run; DISTIL_XLSTM_TEST_SEED repeats one.
class OpTest : public ::testing::Test {
 protected:
  OpTest() : seed_(choose_seed()), trace_(__FILE__, __LINE__, "DISTIL_XLSTM_TEST_SEED=" + std::to_string(seed_)) { at::manual_seed(seed_); }

  static uint64_t choose_seed() {
    const char* given = std::getenv("DISTIL_XLSTM_TEST_SEED");
    return given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  }

  uint64_t seed_;
  ::testing::ScopedTrace trace_;
};

// Relative norm |out - ref| / |ref|, in double on the CPU.
inline double relative_error(const Tensor& out, const Tensor& ref) {
  const Tensor a = out.detach().to(at::kCPU, at::kDouble), b = ref.detach().to(at::kCPU, at::kDouble);
  EXPECT_EQ(a.sizes(), b.sizes());
  const double difference = (a - b).norm().item<double>(), scale = b.norm().item<double>();
  return scale == 0 ? difference : difference / scale;
}

inline double tolerance(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return 1e-10;
    case at::kFloat:
      return 1e-5;
    default:
      return 1e-2;
  }
}

inline Tensor randn(at::IntArrayRef sizes, double scale = 1.0) {
  return at::randn(sizes, at::kDouble) * scale;
}

// Starts of documents at random places, always some in the middle where the row is long enough.
inline Tensor random_starts(int64_t B, int64_t S, double probability = 0.15) {
  return (at::rand({B, S}) < probability).to(at::kByte);
}

inline Tensor leaf(const Tensor& x) {
  return x.detach().clone().requires_grad_(true);
}

// Gradients of a scalar function by autograd.
inline std::vector<Tensor> gradients(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                                     const std::vector<Tensor>& at_point) {
  std::vector<Tensor> leaves;
  for (const Tensor& x : at_point) leaves.push_back(leaf(x));
  function(leaves).backward();
  std::vector<Tensor> grads;
  for (const Tensor& x : leaves) grads.push_back(x.grad().defined() ? x.grad() : at::zeros_like(x));
  return grads;
}

// Central differences of a scalar function of float64 CPU tensors with respect to input `i`, element by element.
inline Tensor central_differences(const std::function<Tensor(const std::vector<Tensor>&)>& function, const std::vector<Tensor>& at_point,
                                  size_t i, double step) {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> moved(at_point.begin(), at_point.end());
  moved[i] = at_point[i].contiguous().clone();
  double* data = moved[i].data_ptr<double>();
  Tensor numeric = at::zeros_like(moved[i]);
  for (int64_t j = 0; j < moved[i].numel(); ++j) {
    const double value = data[j];
    data[j] = value + step;
    const double above = function(moved).item<double>();
    data[j] = value - step;
    const double below = function(moved).item<double>();
    data[j] = value;
    numeric.data_ptr<double>()[j] = (above - below) / (2 * step);
  }
  return numeric;
}

// Compares autograd with central differences. False where the differences themselves do not converge (a kink, such as the maximum in the
// mLSTM's denominator, lies within a step of `at_point`): then nothing was compared.
[[nodiscard]] inline bool gradients_were_compared(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                                                  const std::vector<Tensor>& at_point, double max_error) {
  const std::vector<Tensor> grads = gradients(function, at_point);
  for (size_t i = 0; i < at_point.size(); ++i) {
    const Tensor numeric = central_differences(function, at_point, i, 1e-5);
    const double error = relative_error(grads[i], numeric);
    if (error < max_error) continue;
    if (relative_error(central_differences(function, at_point, i, 2e-6), numeric) > max_error / 2) return false;
    ADD_FAILURE() << "gradient of input " << i << ": relative error " << error << ", allowed " << max_error;
  }
  return true;
}

inline void expect_gradients_match(const std::function<Tensor(const std::vector<Tensor>&)>& function, const std::vector<Tensor>& at_point,
                                   double max_error = 1e-6) {
  EXPECT_TRUE(gradients_were_compared(function, at_point, max_error)) << "differences do not converge here";
}

}  // namespace distil_xlstm::testing
