#include "ops/rotary.h"

#include "base/error.h"
#include "unit/ops/op_testing.h"

namespace distil_xlstm::ops {
namespace {

using testing::devices;
using testing::randn;
using testing::relative_error;
using testing::tolerance;

class RotaryTest : public testing::OpTest {};

// x_i + j x_(i + K / 2) times cos + j sin, channel by channel, in float64. Any numbers do for the tables.
Tensor turned(const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position) {
  const Tensor x = x_BSHK.to(at::kCPU, at::kDouble).contiguous(), out = at::empty_like(x);
  const int64_t B = x.size(0), S = x.size(1), H = x.size(2), half = x.size(3) / 2;
  const auto in = x.accessor<double, 4>();
  auto to = out.accessor<double, 4>();
  const auto cos = cos_TI.accessor<float, 2>(), sin = sin_TI.accessor<float, 2>();
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t s = 0; s < S; ++s) {
      for (int64_t h = 0; h < H; ++h) {
        for (int64_t i = 0; i < half; ++i) {
          const double c = cos[first_position + s][i], d = sin[first_position + s][i];
          to[b][s][h][i] = in[b][s][h][i] * c - in[b][s][h][i + half] * d;
          to[b][s][h][i + half] = in[b][s][h][i + half] * c + in[b][s][h][i] * d;
        }
      }
    }
  }
  return out;
}

TEST_F(RotaryTest, TurnsHeadsOfAJointProduct) {
  for (const int64_t K : {2, 6, 16, 48, 64, 72, 128}) {
    for (const auto& [B, S] : {std::pair<int64_t, int64_t>{1, 1}, {2, 37}, {3, 130}}) {
      for (const int64_t first_position : {0, 5}) {
        const Tensor cos = at::randn({first_position + S + 2, K / 2}), sin = at::randn(cos.sizes());
        const Tensor values = randn({B, S, 7, K});
        for (const at::Device device : devices()) {
          for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
            SCOPED_TRACE(fmt::format("{} {} {} x {} heads of {} from {}", device.str(), at::toString(type), B, S, K, first_position));
            const Tensor joint = values.to(device, type), before = joint.clone();
            rotate_(joint.narrow(2, 1, 4), cos.to(device), sin.to(device), first_position);
            EXPECT_LT(relative_error(joint.narrow(2, 1, 4), turned(before.narrow(2, 1, 4), cos, sin, first_position)), tolerance(type));
            EXPECT_TRUE(at::equal(joint.narrow(2, 0, 1), before.narrow(2, 0, 1)));
            EXPECT_TRUE(at::equal(joint.narrow(2, 5, 2), before.narrow(2, 5, 2)));
          }
        }
      }
    }
  }
}

TEST_F(RotaryTest, TakesAnyStridesAndPlacesInMemory) {
  const int64_t B = 2, S = 9, H = 3, K = 16;
  const Tensor cos = at::randn({S, K / 2}), sin = at::randn({S, K / 2});
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto options = at::TensorOptions(device).dtype(type);
      const std::vector<std::pair<const char*, Tensor>> views{
          {"[B, H, S, K] in memory", at::randn({B, H, S, K}, options).transpose(1, 2)},
          {"channels apart", at::randn({B, S, K, H}, options).transpose(2, 3)},
          {"not at a multiple of 16 bytes", at::randn({B * S * H * K + 1}, options).narrow(0, 1, B * S * H * K).view({B, S, H, K})},
          {"heads not at multiples of 16 bytes", at::randn({B, S, H, K + 1}, options).narrow(3, 1, K)},
          {"no rows", at::randn({B, 0, H, K}, options)}};
      for (const auto& [name, x] : views) {
        SCOPED_TRACE(fmt::format("{} {} {}", device.str(), at::toString(type), name));
        const Tensor expected = turned(x, cos, sin, 0);
        rotate_(x, cos.to(device), sin.to(device), 0);
        EXPECT_LT(relative_error(x, expected), tolerance(type));
      }
    }
  }
}

TEST_F(RotaryTest, RefusesWhatDoesNotFit) {
  const Tensor x = at::randn({2, 5, 3, 8}), table = at::randn({6, 4});
  EXPECT_NO_THROW(rotate_(x, table, table, 1));
  EXPECT_THROW(rotate_(x, table, table, 2), ShapeError) << "positions 2 to 6 of a table of 6";
  EXPECT_THROW(rotate_(x, table, table, -1), ShapeError);
  EXPECT_THROW(rotate_(x, table, at::randn({6, 3}), 0), ShapeError);
  EXPECT_THROW(rotate_(x, table.to(at::kDouble), table, 0), ShapeError);
  EXPECT_THROW(rotate_(at::randn({2, 5, 3, 7}), table, table, 0), ShapeError);
  EXPECT_THROW(rotate_(x.select(0, 0), table, table, 0), ShapeError);
}

TEST_F(RotaryTest, InANewTensorItIsTheSameWithAGradient) {
  const Tensor cos = at::randn({9, 3}), sin = at::randn({9, 3}), joint = randn({2, 5, 4, 6}), before = joint.clone();
  const Tensor x = joint.narrow(2, 1, 2), projection = randn({2, 5, 2, 6});
  testing::expect_gradients_match([&](const std::vector<Tensor>& at) { return (rotate(at[0], cos, sin, 3) * projection).sum(); }, {x});
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
      const Tensor copy = x.to(device, type, /*non_blocking=*/false, /*copy=*/true);
      const Tensor out = rotate(copy, cos.to(device), sin.to(device), 3);
      rotate_(copy, cos.to(device), sin.to(device), 3);
      EXPECT_TRUE(at::equal(out, copy)) << device.str() << " " << at::toString(type);
    }
  }
  EXPECT_TRUE(at::equal(joint, before));
}

}  // namespace
}  // namespace distil_xlstm::ops
