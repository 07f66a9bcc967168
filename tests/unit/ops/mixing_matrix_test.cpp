// The tiled error of mixing matrices against whole ones in float64.
#include "ops/mixing_matrix.h"

#include <cmath>

#include "base/error.h"
#include "op_testing.h"

namespace distil_xlstm::ops {
namespace {

using namespace testing;

class MixingMatrixTest : public OpTest {
 protected:
  struct Sizes {
    int64_t B, S, H, G, K, F;
  };

  static MixingMatrices random(const Sizes& n, bool has_starts) {
    MixingMatrices in{.q_BSHF = at::rand({n.B, n.S, n.H, n.F}, at::kDouble) + 0.01,
                      .k_BSHF = at::rand({n.B, n.S, n.H, n.F}, at::kDouble) + 0.01,
                      .igate_BSH = randn({n.B, n.S, n.H}),
                      .fgate_BSH = randn({n.B, n.S, n.H}) + 2.0,
                      .attention_q_BSHK = randn({n.B, n.S, n.H, n.K}),
                      .attention_k_BSGK = randn({n.B, n.S, n.G, n.K}),
                      .mask_BS = (at::rand({n.B, n.S}) < 0.8).to(at::kByte)};
    if (has_starts) in.is_start_BS = random_starts(n.B, n.S);
    return in;
  }

  // A matrix at a time, entry by entry.
  static double plain(const MixingMatrices& in) {
    const int64_t B = in.q_BSHF.size(0), S = in.q_BSHF.size(1), H = in.q_BSHF.size(2), G = in.attention_k_BSGK.size(2);
    double sum = 0.0;
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t h = 0; h < H; ++h) {
        double difference = 0.0, size = 0.0;
        int64_t start = 0;
        for (int64_t i = 0; i < S; ++i) {
          if (in.is_start_BS.defined() && in.is_start_BS[b][i].item<int>() != 0) start = i;
          std::vector<double> a, m;
          double a_sum = 0.0, m_sum = 0.0;
          for (int64_t j = start; j <= i; ++j) {
            const double score = in.attention_q_BSHK[b][i][h].dot(in.attention_k_BSGK[b][j][h / (H / G)]).item<double>();
            a.push_back(std::exp(score / std::sqrt(static_cast<double>(in.attention_q_BSHK.size(3)))));
            const double decay = at::log_sigmoid(in.fgate_BSH[b].select(1, h).narrow(0, j + 1, i - j)).sum().item<double>();
            m.push_back(in.q_BSHF[b][i][h].dot(in.k_BSHF[b][j][h]).item<double>() * std::exp(decay + in.igate_BSH[b][j][h].item<double>()));
            a_sum += a.back();
            m_sum += m.back();
          }
          if (in.mask_BS[b][i].item<int>() == 0) continue;
          for (size_t j = 0; j < a.size(); ++j) {
            difference += std::pow(a[j] / a_sum - m[j] / m_sum, 2);
            size += std::pow(a[j] / a_sum, 2);
          }
        }
        sum += size == 0.0 ? 0.0 : difference / size / static_cast<double>(H);
      }
    }
    return sum;
  }
};

TEST_F(MixingMatrixTest, TilesGiveTheWhole) {
  for (const at::Device device : devices()) {
    for (const Sizes& n : {Sizes{2, 11, 4, 2, 3, 5}, Sizes{1, 1, 1, 1, 2, 2}, Sizes{3, 7, 2, 2, 4, 1}}) {
      for (const bool has_starts : {false, true}) {
        const MixingMatrices in = random(n, has_starts);
        MixingMatrices there = in;
        for (Tensor* x : {&there.q_BSHF, &there.k_BSHF, &there.igate_BSH, &there.fgate_BSH, &there.attention_q_BSHK,
                          &there.attention_k_BSGK, &there.mask_BS})
          *x = x->to(device);
        const double expected = plain(in);
        for (const int64_t elements : {int64_t{1}, n.B * n.H * n.S * 3, int64_t{1} << 24})
          EXPECT_NEAR(mixing_error_sum(there, elements).item<double>(), expected, 1e-10 * (1.0 + expected)) << elements;
        there.q_BSHF = there.q_BSHF.to(at::kFloat);
        there.k_BSHF = there.k_BSHF.to(at::kFloat);
        const Tensor single = mixing_error_sum(there, 2 * n.B * n.H * n.S);
        EXPECT_EQ(single.scalar_type(), at::kFloat);
        EXPECT_NEAR(single.item<double>(), expected, 1e-5 * (1.0 + expected));
      }
    }
  }
}

TEST_F(MixingMatrixTest, GradientsMatchDifferences) {
  const MixingMatrices in = random({2, 6, 2, 1, 3, 4}, true);
  for (const int64_t elements : {int64_t{50}, int64_t{1} << 24}) {
    const auto error = [&](const std::vector<Tensor>& x) {
      MixingMatrices moved = in;
      moved.q_BSHF = x[0];
      moved.k_BSHF = x[1];
      moved.igate_BSH = x[2];
      moved.fgate_BSH = x[3];
      return mixing_error_sum(moved, elements) * 1.7;
    };
    expect_gradients_match(error, {in.q_BSHF, in.k_BSHF, in.igate_BSH, in.fgate_BSH}, 1e-6);
  }
}

// Memories of a thousand and more tokens, and gates that shut: sums of logarithms far from 0.
TEST_F(MixingMatrixTest, LongSumsKeepTheirDigits) {
  MixingMatrices in = random({1, 300, 1, 1, 2, 3}, false);
  in.fgate_BSH = in.fgate_BSH - 6.0;  // each token forgets nearly all: sums of -1 000
  const double exact = mixing_error_sum(in, 1 << 24).item<double>();
  in.q_BSHF = in.q_BSHF.to(at::kFloat);
  in.k_BSHF = in.k_BSHF.to(at::kFloat);
  EXPECT_NEAR(mixing_error_sum(in, 300 * 7).item<double>(), exact, 1e-5 * (1.0 + exact));
}

TEST_F(MixingMatrixTest, TheSameMatrixHasNoError) {
  MixingMatrices in = random({2, 9, 3, 3, 1, 1}, false);
  in.attention_q_BSHK.zero_();  // attention that sees all alike
  in.q_BSHF.fill_(1.0);
  in.k_BSHF.fill_(1.0);
  in.igate_BSH.zero_();
  in.fgate_BSH.fill_(60.0);
  EXPECT_LT(mixing_error_sum(in).item<double>(), 1e-12);
  in.mask_BS.zero_();
  in.igate_BSH = randn({2, 9, 3});
  EXPECT_EQ(mixing_error_sum(in).item<double>(), 0.0);
  in.mask_BS = at::ones({2, 8}, at::kByte);
  EXPECT_THROW((void)mixing_error_sum(in), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
