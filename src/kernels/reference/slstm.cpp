#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/reference/reference.h"

namespace distil_xlstm::kernels::reference {
namespace {

double log_sigmoid(double x) {
  return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x)));
}
double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

}  // namespace

void slstm(const SlstmSizes& sizes, const double* wx_BSHGK, const double* r_HKGK, const double* bias_HGK, const uint8_t* is_start_BS,
           SlstmStateView state, double* y_BSHK) {
  const auto [B, S, H, K] = sizes;
  std::vector<double> p(4 * K);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < S; ++t) {
      for (int64_t h = 0; h < H; ++h) {
        double* hidden = state.hidden_BHK + (b * H + h) * K;
        double* c = state.cell_BHK + (b * H + h) * K;
        double* n = state.normalizer_BHK + (b * H + h) * K;
        double* m = state.stabilizer_BHK + (b * H + h) * K;
        if (is_start_BS && is_start_BS[b * S + t]) {
          for (double* x : {hidden, c, n, m}) std::fill_n(x, K, 0.0);
        }
        for (int64_t j = 0; j < 4 * K; ++j) {
          p[j] = wx_BSHGK[((b * S + t) * H + h) * 4 * K + j] + bias_HGK[h * 4 * K + j];
          for (int64_t e = 0; e < K; ++e) p[j] += r_HKGK[(h * K + e) * 4 * K + j] * hidden[e];
        }
        for (int64_t d = 0; d < K; ++d) {
          const double p_i = p[d], p_f = p[K + d], p_z = p[2 * K + d], p_o = p[3 * K + d];
          const double carried = log_sigmoid(p_f) + m[d];
          const double m_next = n[d] == 0 ? p_i : std::max(p_i, carried);
          const double input = std::min(1.0, std::exp(p_i - m_next));
          const double forget = std::min(1.0, std::exp(carried - m_next));
          c[d] = forget * c[d] + input * std::tanh(p_z);
          n[d] = forget * n[d] + input;
          m[d] = m_next;
          hidden[d] = sigmoid(p_o) * c[d] / n[d];
          y_BSHK[((b * S + t) * H + h) * K + d] = hidden[d];
        }
      }
    }
  }
}

}  // namespace distil_xlstm::kernels::reference
