#include "kernels/cuda/head_loss.h"

#include <climits>
#include <cmath>

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

// Four blocks share a multiprocessor: while one adds up its row, the others keep the memory busy.
constexpr int kThreads = 256, kWarps = kThreads / 32, kBlocksPerMultiprocessor = 4;
constexpr float kLog2E = 1.44269504088896340736f;
constexpr unsigned kAll = 0xffffffffu;

enum class Mode { student_only, unit_temperature, any_temperature, jsd };

// Sums over a row, a reference near the maximum taken off each side: e = exp(logit - reference), eT = exp((logit - reference) / T),
// d = (t - reference_t) - (s - reference_s), r the residual of the mse.
enum SumIndex { kEs1, kEt1, kEsT, kEtT, kEt1D, kEtTD, kEsTD, kEt1S, kR, kR2, kNumSums };

// The gradient of one logit: q1 exp(s - lse_s1) + ... with the log-sum-exps inside the exponents, in powers of 2.
struct Gradient {
  float q1, q1_shift, p1, p1_shift, qT, qT_shift, pT, pT_shift;
  float reverse, reverse_shift;  // reverse * qT_probability * (reverse_shift - (t - s) / T)
  float mse, r_mean, label;
  float jsd, jsd_kl_q, log_zs, log_zt;  // of the softmaxes at T, as exponents of e
};

__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <typename T>
__device__ inline float vector_max(const uint4& bits) {
  if constexpr (sizeof(T) == 4) {
    return fmaxf(fmaxf(__uint_as_float(bits.x), __uint_as_float(bits.y)), fmaxf(__uint_as_float(bits.z), __uint_as_float(bits.w)));
  } else {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    const auto pair = [](const unsigned& x) { return *reinterpret_cast<const Pair*>(&x); };
    const Pair max = __hmax2(__hmax2(pair(bits.x), pair(bits.y)), __hmax2(pair(bits.z), pair(bits.w)));
    return fmaxf(to_float(max.x), to_float(max.y));
  }
}

struct Maximum {
  float value = -INFINITY;
  int at = INT_MAX;  // of equal ones the first
  __device__ void take(float other, int other_at) {
    if (other > value || (other == value && other_at < at)) {
      value = other;
      at = other_at;
    }
  }
};

__device__ inline Maximum max_warp(Maximum x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float value = __shfl_xor_sync(kAll, x.value, offset);
    x.take(value, __shfl_xor_sync(kAll, x.at, offset));
  }
  return x;
}

template <typename Real>
__device__ inline Real sum_warp(Real x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAll, x, offset);
  return x;
}

// What the sums of an element need.
struct RowConstants {
  float inverse_T, log2e_T, mse_scale, r_shift;
};

template <Mode kMode>
__device__ inline void accumulate(float (&sums)[kNumSums], const RowConstants& row, float xs, float xt, float r) {
  const float es1 = exp2_approx(xs * kLog2E);
  sums[kEs1] += es1;
  if constexpr (kMode == Mode::student_only) return;
  const float et1 = exp2_approx(xt * kLog2E), d = xt - xs;
  sums[kEt1] += et1;
  sums[kEt1D] += et1 * d;
  sums[kEt1S] += et1 * xs;
  if constexpr (kMode == Mode::unit_temperature) {
    sums[kEsTD] += es1 * d;
  } else {
    const float esT = exp2_approx(xs * row.log2e_T), etT = exp2_approx(xt * row.log2e_T);
    sums[kEsT] += esT;
    sums[kEtT] += etT;
    sums[kEtTD] += etT * d;
    sums[kEsTD] += esT * d;
  }
  sums[kR] += r;
  sums[kR2] += r * r;
}

// The sums with other references: old minus new ones are given.
template <Mode kMode>
__device__ inline void rebase(float (&sums)[kNumSums], const RowConstants& row, float delta_s, float delta_t) {
  const float s1 = exp2_approx(delta_s * kLog2E);
  if constexpr (kMode == Mode::student_only) {
    sums[kEs1] *= s1;
    return;
  }
  const float t1 = exp2_approx(delta_t * kLog2E), delta = delta_t - delta_s;
  sums[kEt1D] = t1 * (sums[kEt1D] + sums[kEt1] * delta);
  sums[kEt1S] = t1 * (sums[kEt1S] + sums[kEt1] * delta_s);
  sums[kEt1] *= t1;
  if constexpr (kMode == Mode::unit_temperature) {
    sums[kEsTD] = s1 * (sums[kEsTD] + sums[kEs1] * delta);
  } else {
    const float sT = exp2_approx(delta_s * row.log2e_T), tT = exp2_approx(delta_t * row.log2e_T);
    sums[kEsTD] = sT * (sums[kEsTD] + sums[kEsT] * delta);
    sums[kEtTD] = tT * (sums[kEtTD] + sums[kEtT] * delta);
    sums[kEsT] *= sT;
    sums[kEtT] *= tT;
  }
  sums[kEs1] *= s1;
}

// JSD_b with u = log p - log q: log(q / m) = -l and log(p / m) = u - l, l = log(1 + b (e^u - 1)); beyond |u| = 80 the smaller probability
// has no weight left.
struct JsdElement {
  float p, q, u, l;
  __device__ JsdElement(float s, float t, float inverse_T, float b, const Gradient& g) {
    const float log_q = fmaf(s, inverse_T, -g.log_zs), log_p = fmaf(t, inverse_T, -g.log_zt);
    u = fminf(fmaxf(log_p - log_q, -80.0f), 80.0f);
    p = exp2_approx(log_p * kLog2E);
    q = exp2_approx(log_q * kLog2E);
    l = log1pf(b * expm1f(u));
  }
};

template <Mode kMode, int N>
__device__ inline void gradient_of(float (&out)[N], const float (&s)[N], const float (&t)[N], const Gradient& g, float inverse_T,
                                   float mse_scale, float jsd_beta) {
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = 0.0f;
  if (kMode == Mode::student_only || kMode == Mode::unit_temperature || g.q1 != 0.0f) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float q1 = exp2_approx(fmaf(s[i], kLog2E, g.q1_shift));
      float factor = g.q1;
      if constexpr (kMode == Mode::unit_temperature) {
        if (g.reverse != 0.0f) factor += g.reverse * (g.reverse_shift - (t[i] - s[i]));
      }
      out[i] = factor * q1;
    }
  }
  if constexpr (kMode == Mode::student_only) return;
  if (g.p1 != 0.0f) {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] += g.p1 * exp2_approx(fmaf(t[i], kLog2E, g.p1_shift));
  }
  if constexpr (kMode == Mode::any_temperature) {
    const float log2e_T = kLog2E * inverse_T;
    if (g.reverse != 0.0f) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        out[i] += g.reverse * (g.reverse_shift - (t[i] - s[i]) * inverse_T) * exp2_approx(fmaf(s[i], log2e_T, g.qT_shift));
      }
    } else if (g.qT != 0.0f) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        out[i] += g.qT * exp2_approx(fmaf(s[i], log2e_T, g.qT_shift)) + g.pT * exp2_approx(fmaf(t[i], log2e_T, g.pT_shift));
      }
    }
  }
  if constexpr (kMode == Mode::jsd) {
    if (g.jsd != 0.0f) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const JsdElement e(s[i], t[i], inverse_T, jsd_beta, g);
        out[i] -= e.q * (e.l + g.jsd_kl_q) * g.jsd;
      }
    }
  }
  if (g.mse != 0.0f) {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] += g.mse * (fmaf(-mse_scale, t[i], s[i]) - g.r_mean);
  }
}

// A row's totals; the logarithms leave the maxima out.
struct RowTotals {
  double sums[kNumSums];
  double max_s, max_t;
  bool agrees;
  double log_zs1, log_zt1, log_zsT, log_ztT;
};

// By one warp, from the sums of each warp. Out of line, as the next one: once a row, and long in double.
__noinline__ __device__ void total_row(const float (*warp_sums)[kNumSums], bool unit_T, RowTotals* out) {
  const int lane = int(threadIdx.x) % 32;
  double sum = 0.0;
  if (lane < kNumSums) {
    for (int i = 0; i < kWarps; ++i) sum += warp_sums[i][lane];
  }
#pragma unroll
  for (int i = 0; i < kNumSums; ++i)
    out->sums[i] = __shfl_sync(kAll, sum, unit_T && i == kEsT ? kEs1 : unit_T && i == kEtT ? kEt1 : unit_T && i == kEtTD ? kEt1D : i);
  // Four logarithms at the price of one.
  const double log_z = log(lane == 0 ? out->sums[kEs1] : lane == 1 ? out->sums[kEt1] : lane == 2 ? out->sums[kEsT] : out->sums[kEtT]);
  out->log_zs1 = __shfl_sync(kAll, log_z, 0);
  out->log_zt1 = __shfl_sync(kAll, log_z, 1);
  out->log_zsT = __shfl_sync(kAll, log_z, 2);
  out->log_ztT = __shfl_sync(kAll, log_z, 3);
}

// Losses of the row into out[kNumHeadSums], and the factors of its gradient; what the JSD needs of a walk of its own is left at 0.
__noinline__ __device__ void finish_row(const HeadLoss& x, const RowTotals& row, double target_s, double target_t, double r_shift,
                                        bool unit_T, double* out, Gradient* gradient) {
  constexpr double kLog2EDouble = 1.44269504088896340736;
  const double T = x.objective.temperature, V = double(x.V), scale = x.gradient_scale;
  const double lse_s1 = row.max_s + row.log_zs1, lse_t1 = row.max_t + row.log_zt1;
  const double lse_sT = row.max_s / T + row.log_zsT, lse_tT = row.max_t / T + row.log_ztT;
  for (int i = 1; i < kNumHeadSums; ++i) out[i] = NAN;
  out[kCe] = lse_s1 - target_s;
  Gradient g{};
  double q1 = x.objective.ce_weight + x.objective.label_weight, p1 = 0.0, qT = 0.0, pT = 0.0;
  double label = x.objective.ce_weight + x.objective.label_weight;
  if (x.teacher_PV) {
    const double to_student = row.sums[kEtTD] / row.sums[kEtT] / T - row.log_ztT + row.log_zsT;
    const double to_teacher = -row.sums[kEsTD] / row.sums[kEsT] / T - row.log_zsT + row.log_ztT;
    const double divergence = x.objective.divergence == Divergence::forward_kl   ? to_student
                              : x.objective.divergence == Divergence::reverse_kl ? to_teacher
                                                                                 : 0.0;
    const double r_mean = x.objective.mse_centered ? row.sums[kR] / V : 0.0;
    out[kKd] = T * T * divergence;
    out[kKlAt1] = row.sums[kEt1D] / row.sums[kEt1] - row.log_zt1 + row.log_zs1;
    out[kTeacherNll] = lse_t1 - target_t;
    out[kAgreement] = row.agrees ? 1.0 : 0.0;
    out[kMse] = row.sums[kR2] / V - r_mean * r_mean;
    out[kMixedCe] = x.objective.label_mix * out[kCe] + (1.0 - x.objective.label_mix) * (row.log_zs1 - row.sums[kEt1S] / row.sums[kEt1]);
    p1 = -x.objective.label_weight * (1.0 - x.objective.label_mix);
    label = x.objective.ce_weight + x.objective.label_weight * x.objective.label_mix;
    g.mse = float(scale * x.objective.mse_weight * 2.0 / V);
    g.r_mean = float(r_shift + r_mean);
    if (x.objective.divergence == Divergence::forward_kl) {
      (unit_T ? q1 : qT) += x.objective.kd_weight * T;
      (unit_T ? p1 : pT) -= x.objective.kd_weight * T;
    } else if (x.objective.divergence == Divergence::reverse_kl) {
      g.reverse = float(scale * x.objective.kd_weight * T);
      g.reverse_shift = float(lse_tT - lse_sT - divergence);
    } else {
      g.jsd = float(scale * x.objective.kd_weight * T * (1.0 - x.objective.jsd_beta));
    }
  }
  g.q1 = float(scale * q1);
  g.p1 = float(scale * p1);
  g.qT = float(scale * qT);
  g.pT = float(scale * pT);
  g.label = float(scale * label);
  g.q1_shift = float(-lse_s1 * kLog2EDouble);
  g.p1_shift = float(-lse_t1 * kLog2EDouble);
  g.qT_shift = float(-lse_sT * kLog2EDouble);
  g.pT_shift = float(-lse_tT * kLog2EDouble);
  g.log_zs = float(lse_sT);
  g.log_zt = float(lse_tT);
  *gradient = g;
}

// One block a row. Two walks over it: sums, then the gradient.
template <typename T, typename G, Mode kMode>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) tile_kernel(const __grid_constant__ HeadLoss x) {
  constexpr int N = kVectorSize<T>;
  constexpr bool kTeacher = kMode != Mode::student_only, kUnitT = kMode == Mode::student_only || kMode == Mode::unit_temperature;
  __shared__ float warp_sums[kWarps][kNumSums];
  __shared__ Maximum warp_max[2][kWarps];
  __shared__ int argmax[2];
  __shared__ Gradient gradient;
  __shared__ double values[kNumHeadSums];

  const int tid = int(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int64_t row = blockIdx.x;
  const T* student = static_cast<const T*>(x.student_PV) + row * x.stride;
  const T* teacher = kTeacher ? static_cast<const T*>(x.teacher_PV) + row * x.stride : student;
  G* out = x.gradient_PV ? static_cast<G*>(x.gradient_PV) + row * x.gradient_stride : nullptr;
  const int V = int(x.V), full = V / N;
  // The elements after the last whole vector are one thread's.
  const int tail = tid == kThreads - 1 ? full * N : V;

  if (x.valid_P && !x.valid_P[row]) {
    if (out) {
      const float zeros[N] = {};
      for (int v = tid; v < full; v += kThreads) store_values(out + v * N, zeros);
      for (int i = tail; i < V; ++i) out[i] = from_float<G>(0.0f);
    }
    if (tid < kNumHeadSums) x.values_P7[row * kNumHeadSums + tid] = 0.0;
    return;
  }

  const auto* student_vectors = reinterpret_cast<const uint4*>(student);
  const auto* teacher_vectors = reinterpret_cast<const uint4*>(teacher);
  // Read before the gradient is written.
  const int64_t target = x.targets_P[row];
  const bool has_target = target >= 0 && target < x.V;
  const float target_s = has_target ? to_float(student[target]) : NAN;
  const float target_t = kTeacher && has_target ? to_float(teacher[target]) : NAN;
  RowConstants constants{};
  constants.inverse_T = float(1.0 / x.objective.temperature);
  constants.log2e_T = kLog2E * constants.inverse_T;
  constants.mse_scale = float(x.objective.mse_scale);
  // Centred residuals are taken from near their mean, or a common offset of the logits would cancel.
  if (kTeacher && x.objective.mse_centered) constants.r_shift = fmaf(-constants.mse_scale, to_float(teacher[0]), to_float(student[0]));

  // First walk. The references follow the maxima only where they fall behind by far: until then exponentials above 1 do no harm.
  const float slack = 10.0f * fminf(1.0f, float(x.objective.temperature));
  Maximum own_s, own_t;
  float reference_s = to_float(student[0]), reference_t = to_float(teacher[0]);
  float sums[kNumSums] = {};
  const auto follow = [&](float max_s, float max_t, int at) {
    if (max_s > own_s.value) own_s = {max_s, at};
    if (kTeacher && max_t > own_t.value) own_t = {max_t, at};
    if (max_s > reference_s + slack || (kTeacher && max_t > reference_t + slack)) {
      const float old_s = reference_s, old_t = reference_t;
      reference_s = fmaxf(old_s, max_s);
      reference_t = fmaxf(old_t, max_t);
      rebase<kMode>(sums, constants, old_s - reference_s, old_t - reference_t);
    }
  };
  const auto add = [&](float s, float t) {
    accumulate<kMode>(sums, constants, s - reference_s, t - reference_t, fmaf(-constants.mse_scale, t, s) - constants.r_shift);
  };
  uint4 next_s{}, next_t{};
  if (tid < full) {
    next_s = student_vectors[tid];
    if constexpr (kTeacher) next_t = teacher_vectors[tid];
  }
#pragma unroll 1
  for (int v = tid; v < full; v += kThreads) {
    const uint4 bits_s = next_s, bits_t = next_t;
    if (v + kThreads < full) {
      next_s = student_vectors[v + kThreads];
      if constexpr (kTeacher) next_t = teacher_vectors[v + kThreads];
    }
    follow(vector_max<T>(bits_s), kTeacher ? vector_max<T>(bits_t) : 0.0f, v * N);
    float s[N], t[N] = {};
    unpack<T>(bits_s, s);
    if constexpr (kTeacher) unpack<T>(bits_t, t);
#pragma unroll
    for (int i = 0; i < N; ++i) add(s[i], t[i]);
  }
  for (int i = tail; i < V; ++i) {
    follow(to_float(student[i]), to_float(teacher[i]), i);
    add(to_float(student[i]), to_float(teacher[i]));
  }

  // The row's maxima, and the sums relative to them.
  Maximum row_s = max_warp(own_s), row_t = kTeacher ? max_warp(own_t) : own_t;
  if (lane == 0) {
    warp_max[0][warp] = row_s;
    warp_max[1][warp] = row_t;
  }
  if (tid < 2) argmax[tid] = INT_MAX;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    row_s.take(warp_max[0][i].value, warp_max[0][i].at);
    row_t.take(warp_max[1][i].value, warp_max[1][i].at);
  }
  // The index of a vector stood for its elements.
  const auto find = [&](const T* logits, const Maximum& own) {
    int i = own.at;
    while (i + 1 < V && i + 1 < own.at + N && to_float(logits[i]) != own.value) ++i;
    return i;
  };
  if (own_s.at == row_s.at && own_s.at != INT_MAX) argmax[0] = find(student, own_s);
  if (kTeacher && own_t.at == row_t.at && own_t.at != INT_MAX) argmax[1] = find(teacher, own_t);
  rebase<kMode>(sums, constants, reference_s - row_s.value, kTeacher ? reference_t - row_t.value : 0.0f);
#pragma unroll
  for (int i = 0; i < kNumSums; ++i) {
    if (!kTeacher && i > 0) continue;
    const float sum = sum_warp(sums[i]);
    if (lane == 0) warp_sums[warp][i] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    RowTotals totals;
    totals.max_s = row_s.value;
    totals.max_t = row_t.value;
    totals.agrees = argmax[0] == argmax[1];
    total_row(warp_sums, kUnitT, &totals);
    if (lane == 0) finish_row(x, totals, target_s, target_t, constants.r_shift, kUnitT, values, &gradient);
  }
  if (kMode == Mode::jsd || out) __syncthreads();
  const float b = float(x.objective.jsd_beta);
  if constexpr (kMode == Mode::jsd) {
    float kl_p = 0.0f, kl_q = 0.0f;
    const Gradient g = gradient;
    const auto add_jsd = [&](float s, float t) {
      const JsdElement e(s, t, constants.inverse_T, b, g);
      kl_p += e.p * (e.u - e.l);
      kl_q -= e.q * e.l;
    };
    for (int v = tid; v < full; v += kThreads) {
      float s[N], t[N];
      unpack<T>(student_vectors[v], s);
      unpack<T>(teacher_vectors[v], t);
#pragma unroll
      for (int i = 0; i < N; ++i) add_jsd(s[i], t[i]);
    }
    for (int i = tail; i < V; ++i) add_jsd(to_float(student[i]), to_float(teacher[i]));
    kl_p = sum_warp(kl_p);
    kl_q = sum_warp(kl_q);
    if (lane == 0) {
      warp_sums[warp][0] = kl_p;
      warp_sums[warp][1] = kl_q;
    }
    __syncthreads();
    if (tid == 0) {
      double sum_p = 0.0, sum_q = 0.0;
      for (int i = 0; i < kWarps; ++i) {
        sum_p += warp_sums[i][0];
        sum_q += warp_sums[i][1];
      }
      values[kKd] =
          x.objective.temperature * x.objective.temperature * (x.objective.jsd_beta * sum_p + (1.0 - x.objective.jsd_beta) * sum_q);
      gradient.jsd_kl_q = float(sum_q);
    }
    __syncthreads();
  }
  if (tid == 0) {
    for (int i = 0; i < kNumHeadSums; ++i) x.values_P7[row * kNumHeadSums + i] = values[i];
  }
  if (!out) return;

  // Second walk, backwards: what was read last is likely still in L2. A narrower gradient over the logits that it comes from must go
  // forwards, and must not overtake their reading.
  const Gradient g = gradient;
  const int label_at = has_target ? int(target) : -1;
  constexpr bool kNarrows = sizeof(G) < sizeof(T);
  const int rounds = (full + kThreads - 1) / kThreads, step = kNarrows ? kThreads : -kThreads;
  int v = tid + (kNarrows ? 0 : (rounds - 1) * kThreads);
  const auto load = [&](int at) {
    if (unsigned(at) >= unsigned(full)) return;
    next_s = student_vectors[at];
    if constexpr (kTeacher) next_t = teacher_vectors[at];
  };
  load(v);
#pragma unroll 1
  for (int round = 0; round < rounds; ++round, v += step) {
    float s[N], t[N] = {}, values_N[N];
    unpack<T>(next_s, s);
    if constexpr (kTeacher) unpack<T>(next_t, t);
    load(v + step);
    if constexpr (kNarrows) __syncthreads();
    if (v >= full) continue;
    gradient_of<kMode, N>(values_N, s, t, g, constants.inverse_T, constants.mse_scale, b);
    if (unsigned(label_at - v * N) < unsigned(N)) {
#pragma unroll
      for (int i = 0; i < N; ++i) values_N[i] -= i == label_at - v * N ? g.label : 0.0f;
    }
    store_values(out + v * N, values_N);
  }
  for (int i = tail; i < V; ++i) {
    const float s[1] = {to_float(student[i])}, t[1] = {to_float(teacher[i])};
    float value[1];
    gradient_of<kMode, 1>(value, s, t, g, constants.inverse_T, constants.mse_scale, b);
    out[i] = from_float<G>(value[0] - (i == label_at ? g.label : 0.0f));
  }
}

// One warp a column, in a fixed order.
__global__ void sum_kernel(const double* values_P7, int64_t P, double* sums_7) {
  const int lane = int(threadIdx.x) % 32, column = int(threadIdx.x) / 32;
  double sum = 0.0;
  for (int64_t p = lane; p < P; p += 32) sum += values_P7[p * kNumHeadSums + column];
  sum = sum_warp(sum);
  if (lane == 0) sums_7[column] += sum;
}

template <typename T, typename G, Mode kMode>
cudaError_t launch(const HeadLoss& x, cudaStream_t stream) {
  tile_kernel<T, G, kMode><<<unsigned(x.P), kThreads, 0, stream>>>(x);
  return cudaGetLastError();
}

template <typename T, typename G>
cudaError_t launch_mode(const HeadLoss& x, cudaStream_t stream) {
  if (!x.teacher_PV) return launch<T, G, Mode::student_only>(x, stream);
  if (x.objective.divergence == Divergence::jsd) return launch<T, G, Mode::jsd>(x, stream);
  if (x.objective.temperature == 1.0) return launch<T, G, Mode::unit_temperature>(x, stream);
  return launch<T, G, Mode::any_temperature>(x, stream);
}

cudaError_t launch_types(const HeadLoss& x, cudaStream_t stream) {
  return with_type(x.logits_type, [&](auto logits) {
    using T = decltype(logits);
    if (x.gradient_type == x.logits_type) return launch_mode<T, T>(x, stream);
    if constexpr (std::is_same_v<T, float>) {
      return x.gradient_type == Type::bfloat16 ? launch_mode<float, __nv_bfloat16>(x, stream) : launch_mode<float, __half>(x, stream);
    }
    return cudaErrorInvalidValue;
  });
}

size_t size_of(Type type) {
  return type == Type::float32 ? 4 : 2;
}

bool has_aligned_rows(const void* x, int64_t stride, Type type) {
  return reinterpret_cast<uintptr_t>(x) % 16 == 0 && stride * int64_t(size_of(type)) % 16 == 0;
}

}  // namespace

cudaError_t head_loss_tile(const HeadLoss& x, cudaStream_t stream) {
  if (x.P == 0) return cudaSuccess;
  if (x.P < 0 || x.P > INT_MAX || x.V < 1 || x.V > INT_MAX / 2 || !has_aligned_rows(x.student_PV, x.stride, x.logits_type) ||
      (x.teacher_PV && !has_aligned_rows(x.teacher_PV, x.stride, x.logits_type)) ||
      (x.gradient_PV && !has_aligned_rows(x.gradient_PV, x.gradient_stride, x.gradient_type))) {
    return cudaErrorInvalidValue;
  }
  const cudaError_t error = launch_types(x, stream);
  if (error != cudaSuccess || !x.sums_7) return error;
  sum_kernel<<<1, 32 * kNumHeadSums, 0, stream>>>(x.values_P7, x.P, x.sums_7);
  return cudaGetLastError();
}

}  // namespace distil_xlstm::kernels::cuda
