// One unit of one row at one token (docs/mathematics.md 2), as the scalar form of the scan and its steps share it.
#pragma once

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/slstm_scan.h"

namespace distil_xlstm::kernels::cuda {
namespace {

// What is saved, as in kernels/cpu/kernels.h: float32 [B, S, H, X, K] with X = input, forget, z, o, 1 - sigmoid(p_f), c, n.
constexpr int kSlstmSaved = 7;

__device__ inline float log_sigmoid(float x) {
  return fminf(x, 0.0f) - log1pf(expf(-fabsf(x)));
}

// p: pre-activations of the gates i f z o. Moves c, n, m by a token and returns y.
__device__ inline float advance_unit(const float (&p)[4], float& c, float& n, float& m, float (&saved)[kSlstmSaved]) {
  const float carried = log_sigmoid(p[1]) + m;
  m = n == 0.0f ? p[0] : fmaxf(p[0], carried);
  const float input = expf(fminf(p[0] - m, 0.0f)), forget = expf(fminf(carried - m, 0.0f)), z = tanhf(p[2]), o = sigmoid(p[3]);
  c = forget * c + input * z;
  n = forget * n + input;
  const float values[kSlstmSaved] = {input, forget, z, o, sigmoid(-p[1]), c, n};
  for (int i = 0; i < kSlstmSaved; ++i) saved[i] = values[i];
  return o * c / n;
}

__device__ inline void store_saved(const SlstmForward& x, int64_t token, int d, const float (&values)[kSlstmSaved]) {
  float* saved_BSHXK = static_cast<float*>(x.saved);
  for (int i = 0; i < kSlstmSaved; ++i) saved_BSHXK[(token * kSlstmSaved + i) * x.K + d] = values[i];
}

// One token of one unit as backward needs it.
struct SlstmToken {
  float values[kSlstmSaved], c_before, n_before, y, grad_y;
};

template <typename T>
__device__ inline SlstmToken load_saved(const SlstmBackward& x, int b, int h, int d, int t, bool starts) {
  const int64_t token = (int64_t(b) * x.S + t) * x.H + h, state = (int64_t(b) * x.H + h) * x.K + d;
  const int64_t before = ((token - x.H) * kSlstmSaved + 5) * x.K + d;
  const float* saved_BSHXK = static_cast<const float*>(x.saved);
  SlstmToken s;
  for (int i = 0; i < kSlstmSaved; ++i) s.values[i] = saved_BSHXK[(token * kSlstmSaved + i) * x.K + d];
  s.c_before = starts ? 0.0f : t == 0 ? x.initial_cell_BHK[state] : saved_BSHXK[before];
  s.n_before = starts ? 0.0f : t == 0 ? x.initial_normalizer_BHK[state] : saved_BSHXK[before + x.K];
  s.y = to_float(static_cast<const T*>(x.y_BSHK)[token * x.K + d]);
  s.grad_y = to_float(static_cast<const T*>(x.grad_y_BSHK)[token * x.K + d]);
  return s;
}

// dp of the four gates from dy, which came from the next token, and dc, dn, which become those of the token before.
__device__ inline void unit_gradients(const SlstmToken& s, float dy, bool starts, float& dc, float& dn, float (&dp)[4]) {
  const float input = s.values[0], forget = s.values[1], z = s.values[2], o = s.values[3];
  const float total = s.grad_y + dy, u = total / s.values[6];
  dc += u * o;
  dn -= u * s.y;
  const float values[4] = {input * (z * dc + dn), forget * (s.c_before * dc + s.n_before * dn) * s.values[4], input * (1.0f - z * z) * dc,
                           (1.0f - o) * s.y * total};
  for (int g = 0; g < 4; ++g) dp[g] = values[g];
  dc = starts ? 0.0f : dc * forget;
  dn = starts ? 0.0f : dn * forget;
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
