#include "measure/operations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "measure/selfcheck.h"

namespace distil_xlstm::measure {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(Errors, NotANumberIsTheLargest) {
  EXPECT_EQ(largest_error({0.25, 0.5, 0.0}), 0.5);
  EXPECT_TRUE(std::isnan(largest_error({0.25, kNan})));
  EXPECT_TRUE(std::isnan(largest_error({kNan, 0.25})));
}

TEST(Errors, NoDrawHidesOneThatIsNotANumber) {
  int draws = 0;
  EXPECT_EQ(best_of_three([&] { return 3.0 - draws++; }), 1.0);
  draws = 0;
  EXPECT_TRUE(std::isnan(best_of_three([&] { return draws++ == 1 ? kNan : 0.5; })));
}

TEST(Errors, AnOperationThatGivesNoNumbersShows) {
  const auto operation = [](double factor) {
    return Operation{{{draw({3, 4})}, {draw({4}), true}},
                     [factor](const auto& x, at::ScalarType type) { return std::vector{x[0] * x[1].to(type) * factor}; }};
  };
  EXPECT_LT(errors_of(operation(2.0), at::kCPU, at::kFloat).all, 1e-6);
  const OperationErrors errors = errors_of(operation(kNan), at::kCPU, at::kFloat);
  EXPECT_TRUE(std::isnan(errors.all));
  EXPECT_TRUE(std::isnan(errors.wide));
}

}  // namespace
}  // namespace distil_xlstm::measure
