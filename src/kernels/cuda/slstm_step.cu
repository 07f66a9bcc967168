#include "kernels/cuda/slstm_unit.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// A thread a unit of a row; neighbours are units of one head.
template <typename Scan>
struct Unit {
  int b, h, d;
  bool exists;
  int64_t token, state, row;  // of [B S H], [B H K] and [H B]
  __device__ Unit(const Scan& x, int t) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    d = int(i % x.K);
    h = int(i / x.K % x.H);
    b = int(i / x.K / x.H);
    exists = b < x.B;
    token = (int64_t(b) * x.S + t) * x.H + h;
    state = (int64_t(b) * x.H + h) * x.K + d;
    row = int64_t(h) * x.B + b;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(SlstmForward x, int t, const float* product_HBGK, T* hidden_HBK) {
  const Unit<SlstmForward> unit(x, t);
  if (!unit.exists) return;
  const int b = unit.b, h = unit.h, d = unit.d;
  const int64_t token = unit.token, state = unit.state, row = unit.row;
  const bool starts = x.is_start_BS && x.is_start_BS[int64_t(b) * x.S + t];
  float c = starts ? 0.0f : x.cell_BHK[state], n = starts ? 0.0f : x.normalizer_BHK[state], m = starts ? 0.0f : x.stabilizer_BHK[state];
  float p[4], values[kSlstmSaved];
  for (int g = 0; g < 4; ++g) {
    p[g] = to_float(static_cast<const T*>(x.wx_BSHGK)[(token * 4 + g) * x.K + d]) + x.bias_HGK[(h * 4 + g) * x.K + d] +
           product_HBGK[(row * 4 + g) * x.K + d];
  }
  const float y = advance_unit(p, c, n, m, values);
  x.cell_BHK[state] = c;
  x.normalizer_BHK[state] = n;
  x.stabilizer_BHK[state] = m;
  static_cast<T*>(x.y_BSHK)[token * x.K + d] = from_float<T>(y);
  if (x.saved) store_saved(x, token, d, values);
  const bool is_last = t + 1 == x.S;
  if (is_last) x.hidden_BHK[state] = y;
  const bool starts_next = !is_last && x.is_start_BS && x.is_start_BS[int64_t(b) * x.S + t + 1];
  hidden_HBK[row * x.K + d] = from_float<T>(starts_next ? 0.0f : y);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) backward_kernel(SlstmBackward x, int t, const float* product_HBK, T* dp_HBGK) {
  const Unit<SlstmBackward> unit(x, t);
  if (!unit.exists) return;
  const int b = unit.b, h = unit.h, d = unit.d;
  const int64_t token = unit.token, state = unit.state, row = unit.row;
  const auto starts_at = [&](int s) { return x.is_start_BS && x.is_start_BS[int64_t(b) * x.S + s]; };
  const bool starts = starts_at(t);
  const float dy = t + 1 == x.S ? x.grad_hidden_BHK[state] : starts_at(t + 1) ? 0.0f : product_HBK[row * x.K + d];
  float dc = x.grad_cell_BHK[state], dn = x.grad_normalizer_BHK[state], dp[4];
  unit_gradients(load_saved<T>(x, b, h, d, t, starts), dy, starts, dc, dn, dp);
  x.grad_cell_BHK[state] = dc;
  x.grad_normalizer_BHK[state] = dn;
  for (int g = 0; g < 4; ++g) {
    dp_HBGK[(row * 4 + g) * x.K + d] = from_float<T>(dp[g]);
    static_cast<T*>(x.grad_wx_BSHGK)[(token * 4 + g) * x.K + d] = from_float<T>(dp[g]);
  }
}

unsigned num_blocks(int B, int H, int K) {
  return unsigned((int64_t(B) * H * K + kThreads - 1) / kThreads);
}

}  // namespace

cudaError_t slstm_step_forward(const SlstmForward& x, int t, const float* product_HBGK, void* hidden_HBK, cudaStream_t stream) {
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    forward_kernel<T><<<num_blocks(x.B, x.H, x.K), kThreads, 0, stream>>>(x, t, product_HBGK, static_cast<T*>(hidden_HBK));
    return cudaGetLastError();
  });
}

cudaError_t slstm_step_backward(const SlstmBackward& x, int t, const float* product_HBK, void* dp_HBGK, cudaStream_t stream) {
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    backward_kernel<T><<<num_blocks(x.B, x.H, x.K), kThreads, 0, stream>>>(x, t, product_HBK, static_cast<T*>(dp_HBGK));
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
