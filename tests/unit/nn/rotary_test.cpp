#include "nn/rotary.h"

#include <cmath>

#include "base/error.h"
#include "unit/nn/nn_testing.h"

namespace distil_xlstm::nn {
namespace {

using testing::devices;
using testing::error_of;
using testing::relative_error;

// By the definition: complex numbers x_i + j x_(i + K / 2) turned by position * frequency_i, in float64.
Tensor rotated(const Tensor& x_BSHK, const Tensor& frequencies, int64_t first_position, double magnitude) {
  const int64_t S = x_BSHK.size(1);
  const Tensor angles = at::arange(first_position, first_position + S, at::kFloat).unsqueeze(1) * frequencies;
  const auto parts = x_BSHK.to(at::kCPU, at::kDouble).chunk(2, 3);
  const Tensor turn = at::polar(at::full_like(angles, magnitude, at::kDouble), angles.to(at::kDouble)).unsqueeze(1);
  const Tensor result = at::complex(parts[0].contiguous(), parts[1].contiguous()) * turn;
  return at::cat({at::real(result), at::imag(result)}, 3);
}

TEST(Rotary, TurnsPairsOfChannelsOnEveryPath) {
  at::manual_seed(1);
  RopeConfig config;
  config.theta = 500.0;
  config.attention_factor = 1.25;
  for (const at::Device device : devices()) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      for (const int64_t head_dim : {2, 6, 16}) {
        Rotary rotary(config, head_dim, device);
        const Tensor packed = at::randn({2, 7, 5, head_dim}, at::TensorOptions(device).dtype(dtype));
        const Tensor untouched = packed.clone();
        const Tensor x = packed.narrow(2, 1, 3);  // heads in the middle of a wider row, as in a fused q, k, v product
        const Tensor expected = rotated(x, rope_frequencies(config, head_dim), 600, 1.25);
        rotary.rotate_(x, 600);
        EXPECT_LT(relative_error(x, expected), dtype == at::kBFloat16 ? 1e-2 : 1e-6) << dtype << " " << head_dim;
        EXPECT_TRUE(at::equal(packed.select(2, 0), untouched.select(2, 0)));
        EXPECT_TRUE(at::equal(packed.select(2, 4), untouched.select(2, 4)));
      }
    }
  }
}

TEST(Rotary, ScoresDependOnDistanceOnly) {
  at::manual_seed(2);
  Rotary rotary({}, 8, at::kCPU);
  const Tensor q = at::randn({1, 1, 1, 8}), k = at::randn({1, 1, 1, 8});
  auto score = [&](int64_t query_position, int64_t key_position) {
    const Tensor turned_q = q.clone(), turned_k = k.clone();
    rotary.rotate_(turned_q, query_position);
    rotary.rotate_(turned_k, key_position);
    return (turned_q * turned_k).sum().item<double>();
  };
  EXPECT_NEAR(score(5, 2), score(103, 100), 1e-4);
  EXPECT_GT(std::abs(score(5, 2) - score(5, 4)), 1e-3);
}

TEST(Rotary, RefusesWrongWidths) {
  EXPECT_NE(error_of<ShapeError>([] { Rotary({}, 7, at::kCPU); }).find("head_dim = 7"), std::string::npos);
  Rotary rotary({}, 8, at::kCPU);
  EXPECT_NE(error_of<ShapeError>([&] { rotary.rotate_(at::zeros({1, 1, 1, 6}), 0); }).find("width 6"), std::string::npos);
}

TEST(RopeFrequencies, LinearDividesAll) {
  RopeConfig config;
  config.scaling = RopeScaling::linear;
  config.factor = 4;
  EXPECT_LT(relative_error(rope_frequencies(config, 16) * 4, rope_frequencies({}, 16)), 1e-7);
}

TEST(RopeFrequencies, Llama3KeepsShortWavesAndStretchesLongOnes) {
  RopeConfig plain, scaled;
  plain.theta = scaled.theta = 500000.0;
  scaled.scaling = RopeScaling::llama3;
  scaled.factor = 32;
  scaled.original_context = 8192;
  const Tensor ratio = rope_frequencies(scaled, 64) / rope_frequencies(plain, 64);
  EXPECT_FLOAT_EQ(ratio[0].item<float>(), 1.0f);
  EXPECT_NEAR(ratio[31].item<double>(), 1.0 / 32, 1e-7);
  const Tensor steps = ratio.narrow(0, 1, 31) - ratio.narrow(0, 0, 31);
  EXPECT_TRUE((steps <= 1e-6).all().item<bool>());
  EXPECT_TRUE(((ratio > 0.04) & (ratio < 0.99)).any().item<bool>()) << "nothing lies between the two";
}

TEST(RopeFrequencies, YarnKeepsFastChannelsAndStretchesSlowOnes) {
  RopeConfig plain, scaled;
  scaled.scaling = RopeScaling::yarn;
  scaled.factor = 4;
  scaled.original_context = 4096;
  const Tensor ratio = rope_frequencies(scaled, 64) / rope_frequencies(plain, 64);
  EXPECT_NEAR(ratio[0].item<double>(), 1.0, 1e-6);
  EXPECT_NEAR(ratio[31].item<double>(), 0.25, 1e-6);
}

}  // namespace
}  // namespace distil_xlstm::nn
