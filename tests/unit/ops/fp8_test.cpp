#include "ops/fp8.h"

#include "base/error.h"
#include "op_testing.h"
#include "ops/gated.h"
#include "ops/norm.h"

namespace distil_xlstm::ops {
namespace {

using namespace distil_xlstm::testing;

class Fp8Test : public OpTest {};

constexpr double kMaxE4m3 = 448.0;

Tensor wide(const Fp8Rows& rows) {
  return rows.values_NK.cpu().to(at::kDouble) * rows.scale_N1.cpu().to(at::kDouble);
}

// What e4m3 may be off by: half a unit of its 3 bits of mantissa, and below 2^-6 half of 2^-9.
void expect_rounded(const Fp8Rows& rows, const Tensor& x_NK, double slack) {
  const Tensor x = x_NK.cpu().to(at::kDouble), scale = rows.scale_N1.cpu().to(at::kDouble);
  const Tensor allowed = at::maximum(x.abs() / 16, scale / 1024) * (1 + slack) + x.abs().amax(1, true) * slack;
  EXPECT_TRUE(((wide(rows) - x).abs() <= allowed).all().item<bool>());
  const Tensor largest = x.abs().amax(1, true);
  EXPECT_LT(relative_error(scale, largest / kMaxE4m3), std::max(slack, 1e-6));
}

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{1, 16}, {3, 17}, {17, 576}, {5, 1536}, {2, 8960}, {4, 8}, {7, 4104}};

TEST_F(Fp8Test, RowsKeepThreeBitsOfEachValue) {
  for (const at::Device device : devices()) {
    for (const auto& [N, K] : kShapes) {
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        SCOPED_TRACE(fmt::format("{} x {} {} {}", N, K, device.str(), at::toString(type)));
        const Tensor x_NK = (randn({N, K}) * at::randn({N, 1}, at::kDouble).exp()).to(device, type);
        const Fp8Rows rows = fp8_rows(x_NK);
        EXPECT_EQ(rows.values_NK.scalar_type(), at::kFloat8_e4m3fn);
        expect_rounded(rows, x_NK, 1e-6);
        EXPECT_LT(relative_error(wide(rows), x_NK), 0.04);
        EXPECT_GT(relative_error(wide(rows), x_NK), 0.005) << "nothing was rounded";
      }
    }
  }
}

TEST_F(Fp8Test, RowsOfZerosAndOfOneLargeValue) {
  for (const at::Device device : devices()) {
    const Tensor x_NK = at::zeros({3, 32}, at::TensorOptions(at::kFloat).device(device));
    x_NK[1][5] = 3e30;
    x_NK[2].fill_(-1e-20);
    EXPECT_LT(relative_error(wide(fp8_rows(x_NK)), x_NK.to(at::kDouble)), 1e-6);
    x_NK[2].fill_(1e-37);  // its scale has no reciprocal
    x_NK[2][0] = 0;
    EXPECT_LT((wide(fp8_rows(x_NK))[2] - x_NK[2].cpu().to(at::kDouble)).abs().max().item<double>(), 1e-38);
    EXPECT_TRUE(fp8_rows(x_NK).values_NK.to(at::kFloat)[0].eq(0).all().item<bool>());
    EXPECT_EQ(fp8_rows(at::empty({0, 32}, x_NK.options())).values_NK.size(0), 0);
  }
}

TEST_F(Fp8Test, NotANumberStaysSo) {
  for (const at::Device device : devices()) {
    const Tensor x_NK = at::ones({2, 64}, at::TensorOptions(at::kBFloat16).device(device));
    x_NK[1][63] = std::numeric_limits<float>::quiet_NaN();
    const Tensor out = wide(fp8_rows(x_NK));
    EXPECT_TRUE(out[1][63].isnan().item<bool>());
    EXPECT_FALSE(out[0].isnan().any().item<bool>());
  }
}

// The norm and the gate are not rounded before they become fp8.
TEST_F(Fp8Test, NormAndGateInOnePass) {
  for (const at::Device device : devices()) {
    for (const auto& [N, K] : kShapes) {
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        SCOPED_TRACE(fmt::format("{} x {} {} {}", N, K, device.str(), at::toString(type)));
        const double slack = type == at::kFloat ? 1e-5 : type == at::kBFloat16 ? 1e-2 : 2e-3;  // of forms that round in between
        const Tensor x_NK = randn({N, K}).to(device, type), weight_K = (1 + randn({K}, 0.2)).to(device, type);
        expect_rounded(fp8_rms_norm(x_NK, weight_K, 1e-6), rms_norm(x_NK.to(at::kDouble), weight_K.to(at::kDouble), 1e-6), slack);
        const Tensor gate_up = randn({N, 2 * K}).to(device, type);
        expect_rounded(fp8_swiglu(gate_up), swiglu(gate_up.to(at::kDouble)), slack);
      }
    }
  }
}

TEST_F(Fp8Test, ProductsAreThoseOfTheRoundedValues) {
  for (const at::Device device : devices()) {
    for (const auto& [N, K, E] :
         std::vector<std::array<int64_t, 3>>{{1, 16, 16}, {3, 576, 960}, {33, 48, 17}, {5, 37, 32}, {17, 1536, 256}}) {
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const bool with_bias : {false, true}) {
          SCOPED_TRACE(fmt::format("{} x {} x {} {} {} bias {}", N, K, E, device.str(), at::toString(type), with_bias));
          const Fp8Rows x = fp8_rows(randn({N, K}).to(device, type)), weight = fp8_rows(randn({E, K}, 0.05).to(device, type));
          const Tensor bias = with_bias ? randn({E}).to(device, type) : Tensor();
          Tensor expected = at::mm(wide(x), wide(weight).t());
          if (with_bias) expected += bias.cpu().to(at::kDouble);
          const Tensor out = fp8_linear(x, weight, bias, type);
          EXPECT_EQ(out.scalar_type(), type);
          EXPECT_LT(relative_error(out, expected), type == at::kFloat ? 1e-5 : type == at::kBFloat16 ? 5e-3 : 1e-3);
        }
      }
    }
  }
}

TEST_F(Fp8Test, RefusesWhatDoesNotFit) {
  const Fp8Rows x = fp8_rows(at::randn({3, 16})), weight = fp8_rows(at::randn({4, 20}));
  EXPECT_THROW((void)fp8_linear(x, weight, {}, at::kFloat), ShapeError);
  EXPECT_THROW((void)fp8_linear(x, x, at::randn({4}), at::kFloat), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
