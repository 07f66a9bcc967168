#include <algorithm>
#include <cmath>

#include "kernels/reference/reference.h"

namespace distil_xlstm::kernels::reference {

void mlstm(const MlstmSizes& sizes, const MlstmInputsView& inputs, MlstmStateView state, double* h_BSHV) {
  const auto [B, S, H, K, V] = sizes;
  constexpr double kEps = 1e-6;
  const double scale = 1.0 / std::sqrt(static_cast<double>(K));
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < S; ++t) {
      for (int64_t h = 0; h < H; ++h) {
        double* C = state.cell_BHKV + (b * H + h) * K * V;
        double* n = state.normalizer_BHK + (b * H + h) * K;
        double& m = state.stabilizer_BH[b * H + h];
        if (inputs.is_start_BS && inputs.is_start_BS[b * S + t]) {
          std::fill_n(C, K * V, 0.0);
          std::fill_n(n, K, 0.0);
          m = 0.0;
        }
        const int64_t token = (b * S + t) * H + h;
        const double *q = inputs.q_BSHK + token * K, *k = inputs.k_BSHK + token * K, *v = inputs.v_BSHV + token * V;
        const double f = inputs.fgate_BSH[token], i = inputs.igate_BSH[token];
        const double carried = std::min(f, 0.0) - std::log1p(std::exp(-std::abs(f))) + m;
        m = std::max(carried, i);
        const double forget = std::exp(carried - m), input = std::exp(i - m);
        double denominator = 0.0;
        for (int64_t d = 0; d < K; ++d) {
          const double weighted = input * k[d] * scale;
          for (int64_t e = 0; e < V; ++e) C[d * V + e] = forget * C[d * V + e] + weighted * v[e];
          n[d] = forget * n[d] + weighted;
          denominator += q[d] * n[d];
        }
        const double divisor = std::max(std::abs(denominator), std::exp(-m)) + kEps;
        for (int64_t e = 0; e < V; ++e) {
          double numerator = 0.0;
          for (int64_t d = 0; d < K; ++d) numerator += q[d] * C[d * V + e];
          h_BSHV[token * V + e] = numerator / divisor;
        }
      }
    }
  }
}

}  // namespace distil_xlstm::kernels::reference
