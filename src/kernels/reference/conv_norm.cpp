#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/reference/reference.h"

namespace distil_xlstm::kernels::reference {

void causal_conv_silu(const ConvSizes& sizes, const double* x_BSF, const double* weight_FK, const double* bias_F,
                      const uint8_t* is_start_BS, double* state_BJF, double* y_BSF) {
  const auto [B, S, F, K] = sizes;
  std::vector<double> window(K);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t f = 0; f < F; ++f) {
      for (int64_t j = 0; j + 1 < K; ++j) window[j + 1] = state_BJF[(b * (K - 1) + j) * F + f];
      for (int64_t t = 0; t < S; ++t) {
        std::rotate(window.begin(), window.begin() + 1, window.end());
        if (is_start_BS && is_start_BS[b * S + t]) std::fill(window.begin(), window.end(), 0.0);
        window[K - 1] = x_BSF[(b * S + t) * F + f];
        double sum = bias_F[f];
        for (int64_t j = 0; j < K; ++j) sum += weight_FK[f * K + j] * window[j];
        y_BSF[(b * S + t) * F + f] = sum / (1.0 + std::exp(-sum));
      }
      for (int64_t j = 0; j + 1 < K; ++j) state_BJF[(b * (K - 1) + j) * F + f] = window[j + 1];
    }
  }
}

void residual_layer_norm(int64_t num_rows, int64_t num_groups, int64_t group_width, const double* x, const double* weight, double eps,
                         double* y) {
  for (int64_t group = 0; group < num_rows * num_groups; ++group) {
    const double* in = x + group * group_width;
    double mean = 0.0, variance = 0.0;
    for (int64_t i = 0; i < group_width; ++i) mean += in[i] / group_width;
    for (int64_t i = 0; i < group_width; ++i) variance += (in[i] - mean) * (in[i] - mean) / group_width;
    for (int64_t i = 0; i < group_width; ++i) {
      y[group * group_width + i] = (in[i] - mean) / std::sqrt(variance + eps) * (1.0 + weight[group % num_groups * group_width + i]);
    }
  }
}

void rms_norm(int64_t num_rows, int64_t width, const double* x, const double* weight, double eps, double* y) {
  for (int64_t row = 0; row < num_rows; ++row) {
    double mean_square = 0.0;
    for (int64_t i = 0; i < width; ++i) mean_square += x[row * width + i] * x[row * width + i] / width;
    for (int64_t i = 0; i < width; ++i) y[row * width + i] = x[row * width + i] / std::sqrt(mean_square + eps) * weight[i];
  }
}

}  // namespace distil_xlstm::kernels::reference
