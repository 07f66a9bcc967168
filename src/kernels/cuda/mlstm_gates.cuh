// Stabilizers, decays and the weights of states, from the gates of all tokens.
#pragma once

#include "kernels/cuda/mlstm_work.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

__device__ inline float log2_sigmoid(float x) {
  return kLog2E * (fminf(x, 0.0f) - log1pf(expf(-fabsf(x))));
}

// Stabilizers over tokens: m -> max(sum + m, top). sum is -inf where a document starts within.
struct Rise {
  float sum, top;
};
__device__ inline Rise then(Rise a, Rise b) {
  return {a.sum + b.sum, fmaxf(a.top + b.sum, b.top)};
}
__device__ inline Rise inclusive_scan(Rise x) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const Rise before{__shfl_up_sync(~0u, x.sum, d), __shfl_up_sync(~0u, x.top, d)};
    if (lane >= d) x = then(before, x);
  }
  return x;
}

// A warp reads one chunk; lane l has tokens 2 l and 2 l + 1.
struct LaneGates {
  float log_forget[2], igate[2];
  bool starts[2];
  Rise rise[2];
};
template <typename T>
__device__ LaneGates load_gates(const Work<T>& w, int bh, int n) {
  const int lane = threadIdx.x & 31;
  LaneGates g;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = n * L + 2 * lane + i;
    const bool present = t < w.length;
    const float raw = present ? log2_sigmoid(w.fgate_BSH[w.token(bh, t)]) : 0.0f;
    g.log_forget[i] = raw < -1e6f ? -1e6f : raw;  // not fmaxf: NaN must stay NaN
    g.igate[i] = present ? kLog2E * w.igate_BSH[w.token(bh, t)] : none();
    g.starts[i] = present && w.is_start_BS && w.is_start_BS[int64_t(bh / w.H) * w.S + w.first + t];
    const float empty = w.plain_sum ? kMlstmEmptyStabilizer : 0.0f;
    g.rise[i] = g.starts[i] ? Rise{none(), fmaxf(g.log_forget[i] + empty, g.igate[i])} : Rise{g.log_forget[i], g.igate[i]};
  }
  return g;
}

template <typename T>
__device__ void weigh_tokens(const Work<T>& w, int bh, int n) {
  const int lane = threadIdx.x & 31;
  const LaneGates g = load_gates(w, bh, n);
  const float m_before = w.stabilizer_BHM[int64_t(bh) * (w.N + 1) + n], m_after = w.stabilizer_BHM[int64_t(bh) * (w.N + 1) + n + 1];
  const Rise both = inclusive_scan(then(g.rise[0], g.rise[1]));
  const Rise before{__shfl_up_sync(~0u, both.sum, 1), __shfl_up_sync(~0u, both.top, 1)};
  const Rise here[2] = {lane == 0 ? g.rise[0] : then(before, g.rise[0]), both};
  double decay = double(g.log_forget[0]) + double(g.log_forget[1]);  // double: differences of these sums must keep their digits
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const double earlier = __shfl_up_sync(~0u, decay, d);
    if (lane >= d) decay += earlier;
  }
  const double all = __shfl_sync(~0u, decay, 31), decays[2] = {decay - double(g.log_forget[1]), decay};
  const uint32_t starts0 = __ballot_sync(~0u, g.starts[0]), starts1 = __ballot_sync(~0u, g.starts[1]), below = (1u << lane) - 1;
  const int documents[2] = {__popc(starts0 & (below | (1u << lane))) + __popc(starts1 & below),
                            __popc(starts0 & (below | (1u << lane))) + __popc(starts1 & (below | (1u << lane)))};
  const int last = __popc(starts0) + __popc(starts1);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t at = (int64_t(bh) * w.N + n) * L + 2 * lane + i;
    const float m = fmaxf(here[i].sum + m_before, here[i].top), frame = w.plain_sum ? m : fmaxf(m, kMinFrame);
    const float hi = float(decays[i]), lo = float(decays[i] - double(hi));
    w.decay_UL[at] = hi;
    w.row_shift_UL[at] = lo - frame;
    w.col_shift_UL[at] = g.igate[i] - lo;
    w.entry_UL[at] = exp2f(here[i].sum + m_before - frame);
    w.exit_UL[at] = documents[i] == last ? w.scale * exp2f(float(all - decays[i]) + g.igate[i] - m_after) : 0.0f;
    w.bound_UL[at] = w.plain_sum ? kEps : exp2f(-frame);
    w.document_UL[at] = documents[i];
  }
}

// One block a head of a row: stabilizers at the chunks' borders, then everything per token.
template <typename T>
__global__ void __launch_bounds__(1024) gates_kernel(Work<T> w) {
  const int bh = blockIdx.x, warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x & 31;
  float *carry = w.carry_U + int64_t(bh) * w.N, *m = w.stabilizer_BHM + int64_t(bh) * (w.N + 1);
  for (int n = warp; n < w.N; n += warps) {
    const LaneGates g = load_gates(w, bh, n);
    const Rise chunk = inclusive_scan(then(g.rise[0], g.rise[1]));
    if (lane == 31) {
      carry[n] = chunk.sum;
      m[n + 1] = chunk.top;
    }
  }
  __syncthreads();
  if (warp == 0) {
    float border = w.initial_stabilizer_BH ? kLog2E * w.initial_stabilizer_BH[bh] : w.plain_sum ? kMlstmEmptyStabilizer : 0.0f;
    if (lane == 0) m[0] = border;
    for (int n = 0; n < w.N; n += 32) {
      const bool inside = n + lane < w.N;
      const Rise own = inside ? Rise{carry[n + lane], m[n + lane + 1]} : Rise{0.0f, none()};
      const Rise upto = inclusive_scan(own);
      const float after = fmaxf(upto.sum + border, upto.top), previous = __shfl_up_sync(~0u, after, 1);
      if (inside) {
        m[n + lane + 1] = after;
        carry[n + lane] = exp2f(own.sum + (lane == 0 ? border : previous) - after);
      }
      border = __shfl_sync(~0u, after, 31);
    }
    if (lane == 0 && w.stabilizer_BH) w.stabilizer_BH[bh] = kLn2 * border;
  }
  __syncthreads();
  for (int n = warp; n < w.N; n += warps) weigh_tokens(w, bh, n);
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
