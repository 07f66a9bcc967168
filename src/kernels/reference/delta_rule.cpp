#include <algorithm>
#include <cmath>

#include "kernels/reference/reference.h"

namespace distil_xlstm::kernels::reference {
namespace {

double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

// Column e of C times the vector.
double read(const double* C, int64_t K, int64_t V, int64_t e, const double* vector) {
  double sum = 0.0;
  for (int64_t d = 0; d < K; ++d) sum += vector[d] * C[d * V + e];
  return sum;
}

}  // namespace

void delta_rule(const DeltaRuleSizes& sizes, const DeltaRuleInputsView& inputs, double* cell_BHKV, double* h_BSHV) {
  const auto [B, S, H, K, V] = sizes;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < S; ++t) {
      for (int64_t h = 0; h < H; ++h) {
        double* C = cell_BHKV + (b * H + h) * K * V;
        if (inputs.is_start_BS && inputs.is_start_BS[b * S + t]) std::fill_n(C, K * V, 0.0);
        const int64_t token = (b * S + t) * H + h;
        const double *q = inputs.q_BSHK + token * K, *k = inputs.k_BSHK + token * K, *v = inputs.v_BSHV + token * V;
        const double forget = sigmoid(inputs.fgate_BSH[token]), beta = sigmoid(inputs.igate_BSH[token]);
        for (int64_t e = 0; e < V; ++e) {
          const double u = beta * (v[e] - forget * read(C, K, V, e, k));
          for (int64_t d = 0; d < K; ++d) C[d * V + e] = forget * C[d * V + e] + k[d] * u;
          h_BSHV[token * V + e] = read(C, K, V, e, q);
        }
      }
    }
  }
}

}  // namespace distil_xlstm::kernels::reference
