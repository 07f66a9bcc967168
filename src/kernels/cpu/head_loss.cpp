#include "kernels/cpu/head_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/kernels.h"

// Vectors of 16 floats are one AVX-512 register, two AVX2 or four SSE ones; everything that takes them is inlined into one function per
// instruction set, so that no vector crosses a call.
#pragma GCC diagnostic ignored "-Wpsabi"
#define DX_INLINE inline __attribute__((always_inline))

namespace distil_xlstm::kernels {
namespace {

typedef float Floats __attribute__((vector_size(64)));  // 16 of them
typedef int32_t Ints __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(128)));

constexpr int64_t kBlock = 1024;

// The widest lane of a type; remainders run with the scalar itself.
template <typename Real>
struct WideLane {
  using type = Real;
};
template <>
struct WideLane<float> {
  using type = Floats;
};
template <typename Lane>
constexpr int64_t kWidth = 1;
template <>
constexpr int64_t kWidth<Floats> = 16;

template <typename Lane, typename Real>
DX_INLINE Lane load(const Real* from) {
  Lane lane;
  std::memcpy(&lane, from, sizeof(Lane));
  return lane;
}
template <typename Lane, typename Real>
DX_INLINE void store(Real* to, const Lane& lane) {
  std::memcpy(to, &lane, sizeof(Lane));
}

DX_INLINE double exponential(double x) {
  return std::exp(x);
}
DX_INLINE float exponential(float x) {
  return std::exp(x);
}

// Shorter than that of vector.inc, since up to seven are taken an element: exp for x <= 0 (and a little above), 2^n * exp(r) with |r| <=
// ln(2) / 2; below -87 the result is 0. Within 2 ulp; NaN stays NaN.
DX_INLINE Floats exponential(const Floats& x) {
  const Floats clamped = x < -87.0F ? Floats{} - 87.0F : x;
  const Floats shifted = clamped * 1.44269504F + 12582912.0F;  // adding 1.5 * 2^23 leaves the rounded integer in the low bits
  const Floats n = shifted - 12582912.0F;
  Floats r = clamped - n * 0.693359375F;
  r = r + n * 2.12194440e-4F;
  Floats p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  const Floats result = p * power;
  return x < -87.0F ? Floats{} : result;
}

DX_INLINE double exponential_minus_1(double x) {
  return std::expm1(x);
}
DX_INLINE float exponential_minus_1(float x) {
  return std::expm1(x);
}
DX_INLINE Floats exponential_minus_1(const Floats& x) {
  Floats p = x * 1.9875691500e-4F + 1.3981999507e-3F;  // the series of exp without its 1, which would cancel near 0
  p = p * x + 8.3334519073e-3F;
  p = p * x + 4.1665795894e-2F;
  p = p * x + 1.6666665459e-1F;
  p = p * x + 5.0000001201e-1F;
  p = p * (x * x) + x;
  const Floats far = exponential(x) - 1.0F;
  return ((x > -0.34F) & (x < 0.34F)) ? p : far;
}

DX_INLINE double log_1_plus(double x) {
  return std::log1p(x);
}
DX_INLINE float log_1_plus(float x) {
  return std::log1p(x);
}
// log(1 + x) for normal 1 + x: 2^n m with m in [sqrt(1/2), sqrt(2)), a polynomial in m - 1, and what the sum 1 + x rounded away.
DX_INLINE Floats log_1_plus(const Floats& x) {
  const Floats w = x + 1.0F;
  Ints bits;
  std::memcpy(&bits, &w, sizeof bits);
  const Ints exponent = (bits - 0x3f3504f3) >> 23;
  const Ints mantissa_bits = bits - (exponent << 23);
  Floats m;
  std::memcpy(&m, &mantissa_bits, sizeof m);
  const Floats f = m - 1.0F, n = __builtin_convertvector(exponent, Floats), f2 = f * f;
  Floats p = f * 7.0376836292e-2F - 1.1514610310e-1F;
  p = p * f + 1.1676998740e-1F;
  p = p * f - 1.2420140846e-1F;
  p = p * f + 1.4249322787e-1F;
  p = p * f - 1.6668057665e-1F;
  p = p * f + 2.0000714765e-1F;
  p = p * f - 2.4999993993e-1F;
  p = p * f + 3.3333331174e-1F;
  const Floats rounded_away = (x - (w - 1.0F)) / w;
  return (p * f * f2 - f2 * 0.5F + (n * -2.12194440e-4F + rounded_away)) + f + n * 0.693359375F;
}

DX_INLINE double total(double lane) {
  return lane;
}
DX_INLINE double total(float lane) {
  return lane;
}
DX_INLINE double total(const Floats& lane) {
  const Doubles wide = __builtin_convertvector(lane, Doubles);
  double sums[4] = {};  // four chains, so that the additions need not wait for each other
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += wide[i + j];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}
DX_INLINE double highest(double lane) {
  return lane;
}
DX_INLINE float highest(const Floats& lane) {
  float max = lane[0];
  for (int i = 1; i < 16; ++i) max = lane[i] > max ? lane[i] : max;
  return max;
}

template <typename Lane, typename Real>
DX_INLINE Real block_maximum(const Real* x, int64_t begin, int64_t end, Real max) {
  Lane lane = Lane{} + max;
  int64_t i = begin;
  for (; i + kWidth<Lane> <= end; i += kWidth<Lane>) {
    const Lane next = load<Lane>(x + i);
    lane = next > lane ? next : lane;
  }
  max = highest(lane);
  for (; i < end; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

// Takes [begin, end) of a row into its maximum and the first place of it; says whether it rose.
template <typename Real>
DX_INLINE bool raise_maximum(const Real* x, int64_t begin, int64_t end, bool has_begun, double& max, int64_t& index) {
  using Lane = typename WideLane<Real>::type;
  const Real before = has_begun ? static_cast<Real>(max) : x[begin], after = block_maximum<Lane>(x, begin, end, before);
  if (has_begun && !(after > before)) return false;
  max = static_cast<double>(after);
  index = begin;
  while (index + 1 < end && !(x[index] == after)) ++index;
  return true;
}

// Un-normalised sums of a part of a row; e = exp(logit - max), eT = exp((logit - max) / T), d = (t - max_t) - (s - max_s).
template <typename T>
struct Sums {
  T es1{}, et1{}, esT{}, etT{}, et1_d{}, etT_d{}, esT_d{}, et1_s{}, r{}, r2{};
};
template <typename T>
DX_INLINE void add(HeadLossState& all, const Sums<T>& part) {
  all.es1 += total(part.es1), all.et1 += total(part.et1), all.esT += total(part.esT), all.etT += total(part.etT);
  all.et1_d += total(part.et1_d), all.etT_d += total(part.etT_d), all.esT_d += total(part.esT_d), all.et1_s += total(part.et1_s);
  all.r += total(part.r), all.r2 += total(part.r2);
}

// The sums so far, as if they had been taken below the new maxima: student's up by ds, teacher's by dt.
void shift(HeadLossState& all, double ds, double dt, double inv_temperature) {
  const double s1 = std::exp(-ds), t1 = std::exp(-dt), sT = std::exp(-ds * inv_temperature), tT = std::exp(-dt * inv_temperature);
  const double d = dt - ds;
  all.et1_d = t1 * (all.et1_d - d * all.et1);
  all.etT_d = tT * (all.etT_d - d * all.etT);
  all.esT_d = sT * (all.esT_d - d * all.esT);
  all.et1_s = t1 * (all.et1_s - ds * all.et1);
  all.es1 *= s1, all.et1 *= t1, all.esT *= sT, all.etT *= tT;
}

template <typename Real>
struct Row {
  const HeadLossRows<Real>& rows;
  const Real* teacher;
  const Real* student;
  Real max_s, max_t, inv_temperature, mse_scale;
  Real r_offset;  // r = (s - max_s) - mse_scale (t - max_t) + r_offset
};
template <typename Real, bool kTeacher>
DX_INLINE Row<Real> make_row(const HeadLossRows<Real>& rows, const HeadLossState& state, int64_t p) {
  Row<Real> row{.rows = rows,
                .teacher = kTeacher ? rows.teacher_PV + p * rows.vocab_size : nullptr,
                .student = rows.student_PV + p * rows.vocab_size,
                .max_s = static_cast<Real>(state.max_s),
                .max_t = static_cast<Real>(state.max_t),
                .inv_temperature = static_cast<Real>(1.0 / rows.objective.temperature),
                .mse_scale = static_cast<Real>(rows.objective.mse_scale),
                .r_offset = 0};
  if (kTeacher) row.r_offset = static_cast<Real>(state.max_s - rows.objective.mse_scale * state.max_t - state.r_reference);
  return row;
}

template <typename Lane, bool kTeacher, bool kUnitT, typename Real>
DX_INLINE int64_t accumulate(const Row<Real>& row, int64_t begin, int64_t end, Sums<Lane>& sums) {
  int64_t i = begin;
  for (; i + kWidth<Lane> <= end; i += kWidth<Lane>) {
    const Lane xs = load<Lane>(row.student + i) - row.max_s;
    const Lane es1 = exponential(xs);
    sums.es1 += es1;
    if constexpr (kTeacher) {
      const Lane xt = load<Lane>(row.teacher + i) - row.max_t;
      const Lane et1 = exponential(xt);
      const Lane d = xt - xs;
      sums.et1 += et1;
      sums.et1_d += et1 * d;
      sums.et1_s += et1 * xs;
      const Lane esT = kUnitT ? es1 : exponential(xs * row.inv_temperature);
      const Lane etT = kUnitT ? et1 : exponential(xt * row.inv_temperature);
      sums.esT += esT;
      sums.etT += etT;
      sums.etT_d += etT * d;
      sums.esT_d += esT * d;
      const Lane r = (xs - xt * row.mse_scale) + row.r_offset;
      sums.r += r;
      sums.r2 += r * r;
    }
  }
  return i;
}

template <typename Real, bool kTeacher, bool kUnitT>
DX_INLINE void accumulate_row(const HeadLossRows<Real>& rows, HeadLossState& state, int64_t p, int64_t first, int64_t last) {
  using Lane = typename WideLane<Real>::type;
  const Real* student = rows.student_PV + p * rows.vocab_size;
  const Real* teacher = kTeacher ? rows.teacher_PV + p * rows.vocab_size : nullptr;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, last);
    const double old_s = state.max_s, old_t = state.max_t;
    bool rose = raise_maximum(student, begin, end, state.has_begun, state.max_s, state.index_s);
    if constexpr (kTeacher) rose |= raise_maximum(teacher, begin, end, state.has_begun, state.max_t, state.index_t);
    if (!state.has_begun) {
      if (kTeacher && rows.objective.mse_centered) state.r_reference = state.max_s - rows.objective.mse_scale * state.max_t;
    } else if (rose) {
      shift(state, state.max_s - old_s, state.max_t - old_t, 1.0 / rows.objective.temperature);
    }
    state.has_begun = true;
    const Row<Real> row = make_row<Real, kTeacher>(rows, state, p);
    Sums<Lane> wide;
    const int64_t rest = accumulate<Lane, kTeacher, kUnitT>(row, begin, end, wide);
    add(state, wide);
    if (rest < end) {
      Sums<Real> narrow;
      accumulate<Real, kTeacher, kUnitT>(row, rest, end, narrow);
      add(state, narrow);
    }
  }
}

// What JSD_b needs at an element, u = log p - log q: log(q / m) = -l and log(p / m) = u - l with l = log(1 + b (e^u - 1)).
// Beyond |u| = 80 the smaller probability has no weight left.
template <typename Lane>
struct JsdElement {
  Lane p, q, u, l;
};
template <typename Lane, typename Real>
DX_INLINE JsdElement<Lane> jsd_element(const Row<Real>& row, const Lane& xs, const Lane& xt, Real log_zs, Real log_zt) {
  const Lane lq = xs * row.inv_temperature - log_zs, lp = xt * row.inv_temperature - log_zt;
  Lane u = lp - lq;
  const Lane limit = Lane{} + Real(80);
  u = u > limit ? limit : u;
  u = u < -limit ? -limit : u;
  return {exponential(lp), exponential(lq), u, log_1_plus(exponential_minus_1(u) * static_cast<Real>(row.rows.objective.jsd_beta))};
}

// Adds to the sums p (u - l), that is KL(p || m), and -q l, that is KL(q || m).
template <typename Lane, typename Real>
DX_INLINE int64_t accumulate_jsd(const Row<Real>& row, Real log_zs, Real log_zt, int64_t begin, int64_t end, double& kl_p, double& kl_q) {
  Lane sum_p{}, sum_q{};
  int64_t i = begin;
  for (; i + kWidth<Lane> <= end; i += kWidth<Lane>) {
    const Lane xs = load<Lane>(row.student + i) - row.max_s, xt = load<Lane>(row.teacher + i) - row.max_t;
    const JsdElement<Lane> e = jsd_element(row, xs, xt, log_zs, log_zt);
    sum_p += e.p * (e.u - e.l);
    sum_q -= e.q * e.l;
  }
  kl_p += total(sum_p);
  kl_q += total(sum_q);
  return i;
}

// HeadLossCoefficients in the type of the logits.
template <typename Real>
struct Gradient {
  Real q1, p1, qT, pT, reverse, reverse_shift, mse, r_mean, jsd, jsd_log_zs, jsd_log_zt, jsd_kl_q;
  explicit Gradient(const HeadLossCoefficients& c)
      : q1(static_cast<Real>(c.q1)),
        p1(static_cast<Real>(c.p1)),
        qT(static_cast<Real>(c.qT)),
        pT(static_cast<Real>(c.pT)),
        reverse(static_cast<Real>(c.reverse)),
        reverse_shift(static_cast<Real>(c.reverse_shift)),
        mse(static_cast<Real>(c.mse)),
        r_mean(static_cast<Real>(c.r_mean)),
        jsd(static_cast<Real>(c.jsd)),
        jsd_log_zs(static_cast<Real>(c.jsd_log_zs)),
        jsd_log_zt(static_cast<Real>(c.jsd_log_zt)),
        jsd_kl_q(static_cast<Real>(c.jsd_kl_q)) {}
};

template <typename Lane, bool kTeacher, bool kUnitT, typename Real>
DX_INLINE int64_t write_gradient(const Row<Real>& row, const Gradient<Real>& c, int64_t begin, int64_t end, Real* out) {
  int64_t i = begin;
  for (; i + kWidth<Lane> <= end; i += kWidth<Lane>) {
    const Lane xs = load<Lane>(row.student + i) - row.max_s;
    Lane g{};
    if constexpr (!kTeacher) {
      g = exponential(xs) * c.q1;
    } else {
      const Lane xt = load<Lane>(row.teacher + i) - row.max_t;
      if (c.q1 != 0 || kUnitT) {
        const Lane es1 = exponential(xs);
        g += es1 * c.q1;
        if constexpr (kUnitT) g += es1 * (c.qT + c.reverse * (c.reverse_shift - (xt - xs)));
      }
      if (c.p1 != 0) g += exponential(xt) * c.p1;
      if constexpr (!kUnitT) {
        if (c.qT != 0 || c.reverse != 0) {
          g += exponential(xs * row.inv_temperature) * (c.qT + c.reverse * (c.reverse_shift - (xt - xs) * row.inv_temperature));
        }
      }
      if (c.pT != 0) g += exponential(xt * row.inv_temperature) * c.pT;
      if (c.mse != 0) g += ((xs - xt * row.mse_scale) + row.r_offset - c.r_mean) * c.mse;
      if (c.jsd != 0) {
        const JsdElement<Lane> e = jsd_element(row, xs, xt, c.jsd_log_zs, c.jsd_log_zt);
        g -= e.q * (e.l + c.jsd_kl_q) * c.jsd;
      }
    }
    store(out + i, g);
  }
  return i;
}

template <typename Real, bool kTeacher, bool kUnitT>
DX_INLINE void finish_row(const HeadLossRows<Real>& rows, HeadLossState& state, int64_t p) {
  using Lane = typename WideLane<Real>::type;
  const int64_t size = rows.vocab_size, target = rows.targets_P[p];
  const double T = rows.objective.temperature, V = static_cast<double>(size);
  const Row<Real> row = make_row<Real, kTeacher>(rows, state, p);
  const double log_zs1 = std::log(state.es1);

  double* out = rows.sums_P7 + p * kNumHeadSums;
  std::fill_n(out, kNumHeadSums, std::numeric_limits<double>::quiet_NaN());
  out[kCe] = log_zs1 - (static_cast<double>(row.student[target]) - state.max_s);
  HeadLossCoefficients& c = state.gradient;
  const double scale = rows.gradient_scale;
  c.q1 = scale * (rows.objective.ce_weight + rows.objective.label_weight) / state.es1;
  c.target = scale * (rows.objective.ce_weight + rows.objective.label_weight * (kTeacher ? rows.objective.label_mix : 1.0));
  if constexpr (kTeacher) {
    const double log_zt1 = std::log(state.et1);
    const double log_zsT = std::log(state.esT), log_ztT = std::log(state.etT);
    double divergence = 0.0;
    if (rows.objective.divergence == Divergence::forward_kl) {
      divergence = state.etT_d / state.etT / T - log_ztT + log_zsT;
    } else if (rows.objective.divergence == Divergence::reverse_kl) {
      divergence = -state.esT_d / state.esT / T - log_zsT + log_ztT;
    } else {
      double kl_p = 0.0, kl_q = 0.0;
      const Real log_zs = static_cast<Real>(log_zsT), log_zt = static_cast<Real>(log_ztT);
      for (int64_t begin = 0; begin < size; begin += kBlock) {
        const int64_t end = std::min(begin + kBlock, size);
        const int64_t rest = accumulate_jsd<Lane>(row, log_zs, log_zt, begin, end, kl_p, kl_q);
        accumulate_jsd<Real>(row, log_zs, log_zt, rest, end, kl_p, kl_q);
      }
      divergence = rows.objective.jsd_beta * kl_p + (1.0 - rows.objective.jsd_beta) * kl_q;
      c.jsd = scale * rows.objective.kd_weight * T * (1.0 - rows.objective.jsd_beta);
      c.jsd_log_zs = log_zsT;
      c.jsd_log_zt = log_ztT;
      c.jsd_kl_q = kl_q;
    }
    const double r_mean = rows.objective.mse_centered ? state.r / V : 0.0;
    out[kKd] = T * T * divergence;
    out[kKlAt1] = state.et1_d / state.et1 - log_zt1 + log_zs1;
    out[kTeacherNll] = log_zt1 - (static_cast<double>(row.teacher[target]) - state.max_t);
    out[kAgreement] = state.index_s == state.index_t ? 1.0 : 0.0;
    out[kMse] = state.r2 / V - r_mean * r_mean;
    out[kMixedCe] = rows.objective.label_mix * out[kCe] + (1.0 - rows.objective.label_mix) * (log_zs1 - state.et1_s / state.et1);
    c.p1 = -scale * rows.objective.label_weight * (1.0 - rows.objective.label_mix) / state.et1;
    c.mse = scale * rows.objective.mse_weight * 2.0 / V;
    c.r_mean = r_mean;
    if (rows.objective.divergence == Divergence::forward_kl) {
      c.qT = scale * rows.objective.kd_weight * T / state.esT;
      c.pT = -scale * rows.objective.kd_weight * T / state.etT;
    } else if (rows.objective.divergence == Divergence::reverse_kl) {
      c.reverse = scale * rows.objective.kd_weight * T / state.esT;
      c.reverse_shift = log_ztT - log_zsT - divergence;
    }
  }
}

// out[i] is the gradient of logit i.
template <typename Real, bool kTeacher, bool kUnitT>
DX_INLINE void gradient_of_row(const HeadLossRows<Real>& rows, const HeadLossState& state, int64_t p, int64_t first, int64_t last,
                               Real* out) {
  using Lane = typename WideLane<Real>::type;
  const Row<Real> row = make_row<Real, kTeacher>(rows, state, p);
  const Gradient<Real> c(state.gradient);
  const int64_t rest = write_gradient<Lane, kTeacher, kUnitT>(row, c, first, last, out), target = rows.targets_P[p];
  write_gradient<Real, kTeacher, kUnitT>(row, c, rest, last, out);
  if (first <= target && target < last) out[target] -= static_cast<Real>(state.gradient.target);
}

enum class Pass { accumulate, finish, gradient };

template <typename Real>
struct PassArguments {
  const HeadLossRows<Real>& rows;
  HeadLossState* states;
  int64_t begin, end, first, last;
  Real* out = nullptr;
  int64_t out_row = 0;
};

template <Pass kPass, typename Real, bool kTeacher, bool kUnitT>
DX_INLINE void each_row(const PassArguments<Real>& x) {
  for (int64_t p = x.begin; p < x.end; ++p) {
    if constexpr (kPass == Pass::accumulate) {
      accumulate_row<Real, kTeacher, kUnitT>(x.rows, x.states[p], p, x.first, x.last);
    } else if constexpr (kPass == Pass::finish) {
      finish_row<Real, kTeacher, kUnitT>(x.rows, x.states[p], p);
    } else {
      gradient_of_row<Real, kTeacher, kUnitT>(x.rows, x.states[p], p, x.first, x.last, x.out + p * x.out_row - x.first);
    }
  }
}

template <Pass kPass, typename Real>
DX_INLINE void any_rows(const PassArguments<Real>& x) {
  if (x.rows.teacher_PV == nullptr) {
    each_row<kPass, Real, false, true>(x);
  } else if (x.rows.objective.temperature == 1.0) {
    each_row<kPass, Real, true, true>(x);
  } else {
    each_row<kPass, Real, true, false>(x);
  }
}

template <Pass kPass>
void rows_baseline(const PassArguments<float>& x) {
  any_rows<kPass>(x);
}
#if defined(__x86_64__)
template <Pass kPass>
__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma"))) void rows_avx512(const PassArguments<float>& x) {
  any_rows<kPass>(x);
}
template <Pass kPass>
__attribute__((target("avx2,fma"))) void rows_avx2(const PassArguments<float>& x) {
  any_rows<kPass>(x);
}
#endif

template <Pass kPass>
void run(const PassArguments<float>& x) {
  switch (best_instruction_set()) {
#if defined(__x86_64__)
    case InstructionSet::avx512:
      return rows_avx512<kPass>(x);
    case InstructionSet::avx2:
      return rows_avx2<kPass>(x);
#endif
    default:
      return rows_baseline<kPass>(x);
  }
}
template <Pass kPass>
void run(const PassArguments<double>& x) {
  any_rows<kPass>(x);
}

}  // namespace

template <typename Real>
void head_loss_accumulate(const HeadLossRows<Real>& rows, HeadLossState* states, int64_t begin, int64_t end, int64_t first, int64_t last) {
  run<Pass::accumulate>(PassArguments<Real>{rows, states, begin, end, first, last});
}

template <typename Real>
void head_loss_finish(const HeadLossRows<Real>& rows, HeadLossState* states, int64_t begin, int64_t end) {
  run<Pass::finish>(PassArguments<Real>{rows, states, begin, end, 0, rows.vocab_size});
}

template <typename Real>
void head_loss_gradient(const HeadLossRows<Real>& rows, const HeadLossState* states, int64_t begin, int64_t end, int64_t first,
                        int64_t last, Real* out, int64_t out_row) {
  run<Pass::gradient>(PassArguments<Real>{rows, const_cast<HeadLossState*>(states), begin, end, first, last, out, out_row});
}

template <typename Real>
void head_loss_rows(const HeadLossRows<Real>& rows, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    HeadLossRows<Real> row = rows;
    row.student_PV += p * rows.vocab_size;
    if (rows.teacher_PV != nullptr) row.teacher_PV += p * rows.vocab_size;
    row.targets_P += p;
    row.sums_P7 += p * kNumHeadSums;
    HeadLossState state;
    head_loss_accumulate(row, &state, 0, 1, 0, rows.vocab_size);
    head_loss_finish(row, &state, 0, 1);
    if (rows.with_gradient) head_loss_gradient(row, &state, 0, 1, 0, rows.vocab_size, row.student_PV, rows.vocab_size);
  }
}

template void head_loss_accumulate(const HeadLossRows<float>&, HeadLossState*, int64_t, int64_t, int64_t, int64_t);
template void head_loss_accumulate(const HeadLossRows<double>&, HeadLossState*, int64_t, int64_t, int64_t, int64_t);
template void head_loss_finish(const HeadLossRows<float>&, HeadLossState*, int64_t, int64_t);
template void head_loss_finish(const HeadLossRows<double>&, HeadLossState*, int64_t, int64_t);
template void head_loss_gradient(const HeadLossRows<float>&, const HeadLossState*, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
template void head_loss_gradient(const HeadLossRows<double>&, const HeadLossState*, int64_t, int64_t, int64_t, int64_t, double*, int64_t);
template void head_loss_rows(const HeadLossRows<float>&, int64_t, int64_t);
template void head_loss_rows(const HeadLossRows<double>&, int64_t, int64_t);

}  // namespace distil_xlstm::kernels
