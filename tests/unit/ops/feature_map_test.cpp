#include "ops/feature_map.h"

#include <cmath>

#include "base/error.h"
#include "op_testing.h"

namespace distil_xlstm::ops {
namespace {

using namespace distil_xlstm::testing;

struct Case {
  int64_t B, S, H, K, M;
};
const std::vector<Case> kCases = {{1, 1, 1, 2, 1},   {2, 3, 2, 4, 4},    {1, 7, 3, 5, 9},    {2, 9, 8, 8, 8},
                                  {1, 5, 2, 16, 33}, {2, 33, 9, 64, 64}, {1, 3, 2, 64, 128}, {1, 2, 1, 6, 300}};

Tensor plain(const Tensor& x, const Tensor& map, double scale, FeatureScale scale_of) {
  const Tensor z = at::einsum("bshk,hkm->bshm", {x, map});
  const Tensor both = at::cat({z.softmax(3), (-z).softmax(3)}, 3);
  return both * (scale_of == FeatureScale::length ? scale / both.square().sum(3, true).sqrt() : at::full({}, scale, both.options()));
}

constexpr std::array kScales = {FeatureScale::sums, FeatureScale::length};

std::string name(const Case& c) {
  return fmt::format("B={} S={} H={} K={} M={}", c.B, c.S, c.H, c.K, c.M);
}

class FeatureMapTest : public OpTest {};

TEST_F(FeatureMapTest, MatchesPlainOperationsAndTheirGradients) {
  for (const Case& c : kCases) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
      // Both see the rounded input.
      const Tensor x = randn({c.B, c.S, c.H, c.K}, 2.0 / std::sqrt(double(c.K))).to(type).to(at::kDouble),
                   map = randn({c.H, c.K, c.M}).to(type).to(at::kDouble);
      const Tensor w = randn({c.B, c.S, c.H, 2 * c.M});
      const double scale = 2.5;
      for (const FeatureScale scale_of : kScales) {
        const auto loss = [&](const std::vector<Tensor>& p) { return (plain(p[0], p[1], scale, scale_of) * w).sum(); };
        const auto expected = gradients(loss, {x, map});
        for (const at::Device& device : devices()) {
          SCOPED_TRACE(fmt::format("{} {} {} {}", name(c), device.str(), at::toString(type), static_cast<int>(scale_of)));
          const auto as = [&](const Tensor& t) { return t.to(device, type); };
          const Tensor out = feature_map(as(x), as(map), scale, type, scale_of);
          EXPECT_EQ(out.scalar_type(), type);
          EXPECT_TRUE(out.is_contiguous());
          EXPECT_LT(relative_error(out, plain(x, map, scale, scale_of)), 4 * tolerance(type));
          const auto found = gradients(
              [&](const std::vector<Tensor>& p) {
                return (feature_map(p[0], p[1], scale, type, scale_of).to(at::kDouble) * w.to(device)).sum();
              },
              {as(x), as(map)});
          for (size_t i = 0; i < found.size(); ++i) EXPECT_LT(relative_error(found[i], expected[i]), 8 * tolerance(type)) << i;
        }
      }
    }
  }
}

TEST_F(FeatureMapTest, GradientsMatchDifferences) {
  for (const Case& c : {kCases[1], kCases[2]}) {
    const Tensor w = randn({c.B, c.S, c.H, 2 * c.M});
    for (const FeatureScale scale_of : kScales) {
      expect_gradients_match([&](const std::vector<Tensor>& p) { return (feature_map(p[0], p[1], 1.5, at::kDouble, scale_of) * w).sum(); },
                             {randn({c.B, c.S, c.H, c.K}), randn({c.H, c.K, c.M})});
    }
  }
}

// As halves of a joint product are.
TEST_F(FeatureMapTest, HeadsMayBeStrided) {
  for (const at::Device& device : devices()) {
    const Tensor joint = randn({2, 7, 3 * 2 * 8}).to(device), map = randn({2, 8, 8}).to(device);
    const Tensor part = joint.narrow(2, 16, 16).view({2, 7, 2, 8});
    EXPECT_TRUE(at::equal(feature_map(part, map, 1.0, at::kDouble), feature_map(part.contiguous(), map, 1.0, at::kDouble)));
  }
}

// The largest is 1 and the others 0, whatever the size of the logits.
TEST_F(FeatureMapTest, LogitsMayBeLarge) {
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
      const Tensor x = at::tensor({1.0, -1.0}, at::kDouble).view({1, 1, 1, 2}).to(device, type);
      const Tensor out = feature_map(x, at::eye(2, at::kDouble).mul(1e4).unsqueeze(0).to(device, type), 1.0, type);
      EXPECT_TRUE(at::equal(out.flatten().to(at::kCPU, at::kDouble), at::tensor({1.0, 0.0, 0.0, 1.0}, at::kDouble))) << out;
      const Tensor unit =
          feature_map(x, at::eye(2, at::kDouble).mul(1e4).unsqueeze(0).to(device, type), std::sqrt(2.0), type, FeatureScale::length);
      EXPECT_LT(relative_error(unit, out), tolerance(type));
    }
  }
}

TEST_F(FeatureMapTest, RefusesWhatDoesNotFit) {
  EXPECT_THROW((void)feature_map(randn({2, 3, 4}), randn({4, 3, 3}), 1.0, at::kDouble), ShapeError);
  EXPECT_THROW((void)feature_map(randn({2, 3, 4, 5}), randn({4, 6, 3}), 1.0, at::kDouble), ShapeError);
  EXPECT_THROW((void)feature_map(randn({2, 3, 4, 5}), randn({3, 5, 3}), 1.0, at::kDouble), ShapeError);
  EXPECT_THROW((void)feature_map(randn({2, 0, 4, 5}), randn({4, 5, 3}), 1.0, at::kDouble), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
