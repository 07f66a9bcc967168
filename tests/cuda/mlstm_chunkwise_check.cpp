// Checks the CUDA mLSTM against a double reference (itself checked by differences), then times it.
// Needs a GPU, and no LibTorch: `make cuda` builds it as build/cuda/tests/mlstm_chunkwise_check.
// Run with: check [fp16] | time | sanitize | one A|B (a single call, for a profiler) | ref.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/mlstm_chunkwise.h"
#include "kernels/reference/reference.h"

using namespace distil_xlstm::kernels::cuda;
namespace ref = distil_xlstm::kernels::reference;

#define CK(x)                                                                              \
  do {                                                                                     \
    cudaError_t e_ = (x);                                                                  \
    if (e_ != cudaSuccess) {                                                               \
      std::printf("CUDA error %s at %s:%d\n", cudaGetErrorString(e_), __FILE__, __LINE__); \
      std::exit(2);                                                                        \
    }                                                                                      \
  } while (0)

using Doubles = std::vector<double>;
static std::mt19937_64 rng(std::random_device{}());
static double normal() {
  static thread_local std::normal_distribution<double> d;
  return d(rng);
}

static uint16_t to_bits(double x, Type t) {
  float f = float(x);
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if (t == Type::bfloat16) {
    u += 0x7fff + ((u >> 16) & 1);
    return uint16_t(u >> 16);
  }
  _Float16 h = _Float16(f);
  uint16_t b;
  std::memcpy(&b, &h, 2);
  return b;
}
static double from_bits(uint16_t b, Type t) {
  if (t == Type::bfloat16) {
    uint32_t u = uint32_t(b) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  _Float16 h;
  std::memcpy(&h, &b, 2);
  return double(float(h));
}

struct Case {
  int B, S, H, K, V;
  Type type;
  int starts;
  int gates;
  bool state;
  MlstmNormalizer norm;
  int segment;
  bool unaligned = false;
};

struct Problem {
  Case c;
  Doubles q, k, v, ig, fg, C0, n0, m0, dh, dC, dn;
  std::vector<uint8_t> starts;
};
struct Result {
  Doubles di_terms, df_terms, dn0_terms, dm0_terms;  // roots of the sums of squares of what these gradients add up
  std::vector<char> ill;
  Doubles h, C, n, m, dq, dk, dv, di, df, dC0, dn0, dm0;
};

static Problem make(const Case& c, bool round_inputs = true) {
  Problem p{c};
  const int64_t T = int64_t(c.B) * c.S * c.H, BH = int64_t(c.B) * c.H;
  auto fill = [&](Doubles& x, int64_t n, bool positive = false) {
    x.resize(n);
    for (auto& e : x) {
      e = normal();
      if (positive) e = std::exp(e) * 0.1;
      if (round_inputs) e = from_bits(to_bits(e, c.type), c.type);
    }
  };
  const bool positive = c.norm == MlstmNormalizer::plain_sum;
  fill(p.q, T * c.K, positive);
  fill(p.k, T * c.K, positive);
  fill(p.v, T * c.V);
  fill(p.dh, T * c.V);
  p.ig.resize(T);
  p.fg.resize(T);
  std::uniform_real_distribution<double> U(0, 1);
  for (int64_t i = 0; i < T; ++i) {
    double a = normal(), f = 3 + 2 * normal();
    switch (c.gates) {
      case 1:
        a = U(rng) < 0.5 ? -50 : 50;
        f = U(rng) < 0.5 ? -50 : 50;
        break;
      case 2:
        a = -50 + normal();
        f = -50 + normal();
        break;
      case 3:
        f = 50;
        break;
      case 4:
        a = 50 + normal();
        f = 5;
        break;
      case 5:
        a = -50 + normal();
        f = 5 + normal();
        break;
      case 6:
        a = 10 * normal();
        f = 10 * normal();
        break;
    }
    p.ig[i] = float(a);
    p.fg[i] = float(f);
  }
  p.starts.assign(int64_t(c.B) * c.S, 0);
  if (c.starts == 1)
    for (auto& s : p.starts) s = U(rng) < 0.03;
  if (c.starts == 2)
    for (auto& s : p.starts) s = U(rng) < 0.5;
  if (c.starts == 3)
    for (int b = 0; b < c.B; ++b)
      for (int t = 0; t < c.S; ++t) p.starts[int64_t(b) * c.S + t] = t % 64 == 0 || t % 64 == 63 || t == 0;
  if (c.state) {
    p.C0.resize(BH * c.K * c.V);
    p.n0.resize(BH * c.K);
    p.m0.resize(BH);
    p.dC.resize(BH * c.K * c.V);
    p.dn.resize(BH * c.K);
    for (auto& e : p.C0) e = float(normal() / std::sqrt(c.K));
    for (auto& e : p.n0) e = float((positive ? std::abs(normal()) : normal()) / std::sqrt(c.K));
    for (auto& e : p.m0) e = float(normal());
    for (auto& e : p.dC) e = float(normal() * 0.3);
    for (auto& e : p.dn) e = float(normal() * 0.3);
  }
  return p;
}

static void parallel(int64_t n, const std::function<void(int64_t)>& f) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> pool;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
    pool.emplace_back([&] {
      for (int64_t j; (j = next++) < n;) f(j);
    });
  for (auto& t : pool) t.join();
}

// Token by token, forward and backward, in double. mask_kinks: dh := 0 where the divisor is about to change its branch.
static Result reference(Problem& p, bool mask_kinks = true) {
  const Case& c = p.c;
  const int64_t T = int64_t(c.B) * c.S * c.H, BH = int64_t(c.B) * c.H;
  const int K = c.K, V = c.V, S = c.S;
  const double s = 1 / std::sqrt(double(K));
  const bool plain = c.norm == MlstmNormalizer::plain_sum;
  Result r;
  r.h.resize(T * V);
  r.C.resize(BH * K * V);
  r.n.resize(BH * K);
  r.m.resize(BH);
  r.dq.resize(T * K);
  r.dk.resize(T * K);
  r.dv.resize(T * V);
  r.di.resize(T);
  r.df.resize(T);
  r.dC0.assign(BH * K * V, 0);
  r.dn0.assign(BH * K, 0);
  r.dm0.assign(BH, 0);
  r.dm0_terms.assign(BH, 0);
  r.dn0_terms.assign(BH * K, 0);
  r.di_terms.resize(T);
  r.df_terms.resize(T);
  r.ill.assign(T, 0);
  parallel(BH, [&](int64_t bh) {
    const int64_t b = bh / c.H, hd = bh % c.H;
    Doubles Cs((S + 1) * int64_t(K) * V, 0.0), ns((S + 1) * int64_t(K), 0.0), ms(S + 1), fs(S), is(S), rs(S), Ns(S);
    std::vector<char> act(S);
    if (c.state) {
      std::copy_n(&p.C0[bh * K * V], K * V, Cs.begin());
      std::copy_n(&p.n0[bh * K], K, ns.begin());
      ms[0] = p.m0[bh];
    } else
      ms[0] = plain ? -1e30 : 0;
    for (int t = 0; t < S; ++t) {
      const int64_t tok = (b * S + t) * c.H + hd;
      const bool st = p.starts[b * S + t];
      const double f = p.fg[tok], i = p.ig[tok];
      const double lf = std::min(f, 0.0) - std::log1p(std::exp(-std::abs(f))), mb = st ? (plain ? -1e30 : 0) : ms[t];
      const double m = std::max(lf + mb, i), ff = st ? 0 : std::exp(lf + mb - m), ii = std::exp(i - m) * s;
      ms[t + 1] = m;
      fs[t] = ff;
      is[t] = ii;
      const double *q = &p.q[tok * K], *k = &p.k[tok * K], *v = &p.v[tok * V], *Cb = &Cs[int64_t(t) * K * V], *nb = &ns[int64_t(t) * K];
      double *Ca = &Cs[int64_t(t + 1) * K * V], *na = &ns[int64_t(t + 1) * K], *h = &r.h[tok * V];
      double den = 0, den_terms = 0;
      std::fill_n(h, V, 0.0);
      for (int d = 0; d < K; ++d) {
        na[d] = ff * nb[d] + ii * k[d];
        den += q[d] * na[d];
        den_terms += std::abs(q[d] * na[d]);
        const double w = ii * k[d], qd = q[d];
        for (int e = 0; e < V; ++e) {
          const double x = ff * Cb[d * V + e] + w * v[e];
          Ca[d * V + e] = x;
          h[e] += qd * x;
        }
      }
      const double bound = plain ? 1e-6 : std::exp(-m), size = plain ? den : std::abs(den);
      const double N = std::max(size, bound) + (plain ? 0 : 1e-6);
      for (int e = 0; e < V; ++e) h[e] /= N;
      Ns[t] = N;
      rs[t] = den;
      act[t] = size > bound;
      r.ill[tok] = std::max(size, bound) < 0.02 * den_terms;  // a sum that cancels: its rounding rules
      if (mask_kinks && (r.ill[tok] || std::abs(size / bound - 1) < 0.05)) std::fill_n(&p.dh[tok * V], V, 0.0);
    }
    std::copy_n(&Cs[int64_t(S) * K * V], K * V, &r.C[bh * K * V]);
    std::copy_n(&ns[int64_t(S) * K], K, &r.n[bh * K]);
    r.m[bh] = ms[S];
    Doubles dC(K * V, 0.0), dn(K, 0.0), dC_squares(K * V, 0.0), dn_squares(K, 0.0);  // squares: of what was added up
    if (c.state) {
      std::copy_n(&p.dC[bh * K * V], K * V, dC.begin());
      std::copy_n(&p.dn[bh * K], K, dn.begin());
      for (int i = 0; i < K * V; ++i) dC_squares[i] = dC[i] * dC[i];
      for (int d = 0; d < K; ++d) dn_squares[d] = dn[d] * dn[d];
    }
    for (int t = S; t-- > 0;) {
      const int64_t tok = (b * S + t) * c.H + hd;
      const double *q = &p.q[tok * K], *k = &p.k[tok * K], *v = &p.v[tok * V], *Cb = &Cs[int64_t(t) * K * V], *nb = &ns[int64_t(t) * K];
      const double *Ca = &Cs[int64_t(t + 1) * K * V], *na = &ns[int64_t(t + 1) * K], *h = &r.h[tok * V], *dh = &p.dh[tok * V];
      double dot = 0, dot_squares = 0;
      for (int e = 0; e < V; ++e) {
        dot += dh[e] * h[e];
        dot_squares += dh[e] * dh[e] * h[e] * h[e];
      }
      const double inv = 1 / Ns[t], rho = act[t] ? (rs[t] > 0 ? dot : -dot) * inv : 0;
      const double rho_squares = act[t] ? dot_squares * inv * inv : 0;
      double *dq = &r.dq[tok * K], *dk = &r.dk[tok * K], *dv = &r.dv[tok * V], df = 0, di = 0, df_squares = 0, di_squares = 0;
      std::fill_n(dv, V, 0.0);
      for (int d = 0; d < K; ++d) {
        double a = 0, x = 0, g = 0, x_squares = 0;
        const double qd = q[d] * inv, kd = k[d] * is[t];
        for (int e = 0; e < V; ++e) {
          a += Ca[d * V + e] * dh[e];
          double& y = dC[d * V + e];
          y += qd * dh[e];
          double& y_squares = dC_squares[d * V + e];
          y_squares += qd * dh[e] * qd * dh[e];
          x += y * v[e];
          x_squares += y_squares * v[e] * v[e];
          dv[e] += kd * y;
          g += y * Cb[d * V + e];
          df_squares += y_squares * Cb[d * V + e] * Cb[d * V + e];
        }
        dn[d] -= rho * q[d];
        dn_squares[d] += rho_squares * q[d] * q[d];
        dq[d] = a * inv - rho * na[d];
        dk[d] = is[t] * (x + dn[d]);
        di += k[d] * dk[d];
        di_squares += kd * kd * (x_squares + dn_squares[d]);
        df += g + dn[d] * nb[d];
        df_squares += dn_squares[d] * nb[d] * nb[d];
      }
      const double slope = fs[t] / (1 + std::exp(p.fg[tok]));
      r.di[tok] = di;
      r.df[tok] = slope * df;
      r.di_terms[tok] = std::sqrt(di_squares);
      r.df_terms[tok] = slope * std::sqrt(df_squares);
      for (auto& y : dC) y *= fs[t];
      for (auto& y : dn) y *= fs[t];
      for (auto& y : dC_squares) y *= fs[t] * fs[t];
      for (auto& y : dn_squares) y *= fs[t] * fs[t];
    }
    std::copy(dC.begin(), dC.end(), &r.dC0[bh * K * V]);
    std::copy(dn.begin(), dn.end(), &r.dn0[bh * K]);
    for (int d = 0; d < K; ++d) r.dn0_terms[bh * K + d] = std::sqrt(dn_squares[d]);
    double x = 0, terms = 0;
    for (int i = 0; i < K * V; ++i) {
      x += dC[i] * Cs[i];
      terms += dC_squares[i] * Cs[i] * Cs[i];
    }
    for (int i = 0; i < K; ++i) {
      x += dn[i] * ns[i];
      terms += dn_squares[i] * ns[i] * ns[i];
    }
    r.dm0[bh] = x;
    r.dm0_terms[bh] = std::sqrt(terms);
  });
  return r;
}

// ||a - b|| / max(||b||, ||terms||), where b sums products that may cancel and `terms` is the root of their squares' sum: their roundings,
// in half precision, add up to that. For most problems the two are alike (0.4 to 5); a single token's di may be a hundredth of its terms.
static double rel_to_terms(const Doubles& a, const Doubles& b, const Doubles& terms, double floor = 0) {
  double off = 0, value = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    off += (a[i] - b[i]) * (a[i] - b[i]);
    value += b[i] * b[i];
    size += terms[i] * terms[i];
  }
  return std::sqrt(off / std::max({value, size, floor * floor * double(a.size()), 1e-30}));
}

// ||a - b|| / ||b||; what is smaller than `floor` per element counts as that.
static double rel(const Doubles& a, const Doubles& b, double floor = 1e-30) {
  double x = 0, y = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    x += (a[i] - b[i]) * (a[i] - b[i]);
    y += b[i] * b[i];
  }
  const double e = std::sqrt(x) / std::max(std::sqrt(y), floor * std::sqrt(double(b.size())) + 1e-30);
  return std::isfinite(e) ? e : 1e9;
}

struct Device {
  std::vector<void*> all;
  template <typename X>
  X* put(const std::vector<X>& x) {
    void* p;
    CK(cudaMalloc(&p, x.size() * sizeof(X) + 64));
    all.push_back(p);
    CK(cudaMemcpy(p, x.data(), x.size() * sizeof(X), cudaMemcpyHostToDevice));
    return static_cast<X*>(p);
  }
  void* poisoned(size_t bytes) {
    void* p;
    CK(cudaMalloc(&p, bytes + 64));
    all.push_back(p);
    CK(cudaMemset(p, 0xff, bytes));
    return p;
  }
  uint16_t* halves(const Doubles& x, Type t, bool off = false) {
    std::vector<uint16_t> b(x.size() + off);
    for (size_t i = 0; i < x.size(); ++i) b[i + off] = to_bits(x[i], t);
    return put(b) + off;
  }
  float* floats(const Doubles& x) {
    std::vector<float> b(x.begin(), x.end());
    return x.empty() ? nullptr : put(b);
  }
  ~Device() {
    for (void* p : all) cudaFree(p);
  }
};
static Doubles get16(const void* p, int64_t n, Type t) {
  std::vector<uint16_t> b(n);
  CK(cudaMemcpy(b.data(), p, n * 2, cudaMemcpyDeviceToHost));
  Doubles x(n);
  for (int64_t i = 0; i < n; ++i) x[i] = from_bits(b[i], t);
  return x;
}
static Doubles get32(const void* p, int64_t n) {
  std::vector<float> b(n);
  CK(cudaMemcpy(b.data(), p, n * 4, cudaMemcpyDeviceToHost));
  return Doubles(b.begin(), b.end());
}

struct Run {
  Device d;
  MlstmForward f{};
  MlstmBackward g{};
  size_t fbytes, bbytes;
  explicit Run(const Problem& p, bool backward = true) {
    const Case& c = p.c;
    const int64_t T = int64_t(c.B) * c.S * c.H, BH = int64_t(c.B) * c.H;
    MlstmInputs x{c.type,
                  c.norm,
                  c.B,
                  c.S,
                  c.H,
                  c.K,
                  c.V,
                  d.halves(p.q, c.type, c.unaligned),
                  d.halves(p.k, c.type),
                  d.halves(p.v, c.type),
                  d.floats(p.ig),
                  d.floats(p.fg),
                  c.starts ? d.put(p.starts) : nullptr,
                  d.floats(p.C0),
                  d.floats(p.n0),
                  d.floats(p.m0),
                  c.segment};
    const int off = c.unaligned ? 2 : 0;
    f = {x,
         static_cast<char*>(d.poisoned(T * c.V * 2)) + off,
         (float*)d.poisoned(BH * c.K * c.V * 4),
         (float*)d.poisoned(BH * c.K * 4),
         (float*)d.poisoned(BH * 4),
         nullptr};
    fbytes = mlstm_forward_workspace(f);
    f.workspace = d.poisoned(fbytes);
    if (!backward) return;
    g = {x,
         f.h_BSHV,
         d.halves(p.dh, c.type),
         d.floats(p.dC),
         d.floats(p.dn),
         d.poisoned(T * c.K * 2),
         static_cast<char*>(d.poisoned(T * c.K * 2)) + off,
         d.poisoned(T * c.V * 2),
         (float*)d.poisoned(T * 4),
         (float*)d.poisoned(T * 4),
         nullptr,
         nullptr,
         nullptr,
         nullptr};
    if (c.state) {
      g.grad_initial_cell_BHKV = (float*)d.poisoned(BH * c.K * c.V * 4);
      g.grad_initial_normalizer_BHK = (float*)d.poisoned(BH * c.K * 4);
      g.grad_initial_stabilizer_BH = (float*)d.poisoned(BH * 4);
    }
    bbytes = mlstm_backward_workspace(g);
    g.workspace = d.poisoned(bbytes);
  }
};

static Result results(const Run& r, const Case& c) {
  const int64_t T = int64_t(c.B) * c.S * c.H, BH = int64_t(c.B) * c.H;
  Result o;
  o.h = get16(r.f.h_BSHV, T * c.V, c.type);
  o.C = get32(r.f.cell_BHKV, BH * c.K * c.V);
  o.n = get32(r.f.normalizer_BHK, BH * c.K);
  o.m = get32(r.f.stabilizer_BH, BH);
  o.dq = get16(r.g.grad_q_BSHK, T * c.K, c.type);
  o.dk = get16(r.g.grad_k_BSHK, T * c.K, c.type);
  o.dv = get16(r.g.grad_v_BSHV, T * c.V, c.type);
  o.di = get32(r.g.grad_igate_BSH, T);
  o.df = get32(r.g.grad_fgate_BSH, T);
  if (c.state) {
    o.dC0 = get32(r.g.grad_initial_cell_BHKV, BH * c.K * c.V);
    o.dn0 = get32(r.g.grad_initial_normalizer_BHK, BH * c.K);
    o.dm0 = get32(r.g.grad_initial_stabilizer_BH, BH);
  }
  return o;
}

static int failures = 0;
static void check(const Case& c) {
  Problem p = make(c);
  Result want = reference(p);
  Run r(p);
  CK(mlstm_forward(r.f, 0));
  CK(mlstm_backward(r.g, 0));
  CK(cudaDeviceSynchronize());
  Result got = results(r, c);
  CK(cudaMemset(r.f.workspace, 0xff, r.fbytes));
  CK(cudaMemset(r.g.workspace, 0xff, r.bbytes));
  CK(mlstm_forward(r.f, 0));
  CK(mlstm_backward(r.g, 0));
  CK(cudaDeviceSynchronize());
  Result again = results(r, c);
  // Where nobody asks for the final state, segments hand theirs on in the workspace.
  MlstmForward stateless = r.f;
  stateless.cell_BHKV = stateless.normalizer_BHK = stateless.stabilizer_BH = nullptr;
  stateless.workspace = nullptr;
  CK(cudaMalloc(&stateless.workspace, mlstm_forward_workspace(stateless)));
  CK(cudaMemset(stateless.h_BSHV, 0xff, size_t(c.B) * c.S * c.H * c.V * 2));
  CK(mlstm_forward(stateless, 0));
  CK(cudaDeviceSynchronize());
  const bool same_stateless = results(r, c).h == again.h;
  CK(cudaFree(stateless.workspace));
  for (size_t t = 0; t < want.ill.size(); ++t)
    if (want.ill[t])
      for (int e = 0; e < c.V; ++e) {
        if (std::isfinite(got.h[t * c.V + e])) got.h[t * c.V + e] = again.h[t * c.V + e] = want.h[t * c.V + e];
      }
  const bool same = got.h == again.h && got.C == again.C && got.dq == again.dq && got.dk == again.dk && got.dv == again.dv &&
                    got.di == again.di && got.df == again.df;
  const double floor = c.type == Type::float16 ? 3e-4 : 1e-30;
  // dm0 is made of products with dC in the operands' type: float16 holds none of a gradient that decayed below its range.
  const double e[] = {rel(got.h, want.h, floor),
                      rel(got.C, want.C, floor),
                      rel(got.n, want.n, floor),
                      rel(got.m, want.m, floor),
                      rel(got.dq, want.dq, floor),
                      rel(got.dk, want.dk, floor),
                      rel(got.dv, want.dv, floor),
                      rel_to_terms(got.di, want.di, want.di_terms),
                      rel_to_terms(got.df, want.df, want.df_terms),
                      c.state ? rel(got.dC0, want.dC0, floor) : 0,
                      c.state ? rel_to_terms(got.dn0, want.dn0, want.dn0_terms) : 0,
                      c.state ? rel_to_terms(got.dm0, want.dm0, want.dm0_terms, floor) : 0};
  double worst = 0;
  for (double x : e) worst = std::max(worst, x);
  if (c.S < 8) worst /= 3;  // few terms: h's own rounding shows
  const bool bad = !same || !same_stateless || !(worst < (c.type == Type::bfloat16 ? 0.012 : 0.003));
  failures += bad;
  std::printf("%2dx%4dx%2d %3d/%3d %s st%d g%d %s %s seg%d%s |", c.B, c.S, c.H, c.K, c.V, c.type == Type::bfloat16 ? "bf" : "fp", c.starts,
              c.gates, c.state ? "S" : "-", c.norm == MlstmNormalizer::bounded ? "b" : "p", c.segment, c.unaligned ? "u" : "");
  for (double x : e) std::printf(" %.0e", x);
  std::printf("%s%s%s\n", same ? "" : " DIFFERS", same_stateless ? "" : " DIFFERS WITHOUT A STATE", bad ? "  <--" : "");
}

// The reference's own backward by central differences, its forward against the library's reference.
static void check_reference() {
  for (auto norm : {MlstmNormalizer::bounded, MlstmNormalizer::plain_sum}) {
    Case c{2, 7, 2, 4, 3, Type::bfloat16, 2, 0, true, norm, 0};
    Problem p = make(c, false);
    std::fill(p.dC.begin(), p.dC.end(), 0.0);
    std::fill(p.dn.begin(), p.dn.end(), 0.0);
    Result r = reference(p);
    if (norm == MlstmNormalizer::bounded) {
      Doubles C = p.C0, n = p.n0, m = p.m0, h(r.h.size());
      ref::mlstm({c.B, c.S, c.H, c.K, c.V}, {p.q.data(), p.k.data(), p.v.data(), p.ig.data(), p.fg.data(), p.starts.data()},
                 {C.data(), n.data(), m.data()}, h.data());
      std::printf("reference forward %.1e state %.1e\n", rel(r.h, h), rel(r.C, C));
    }
    auto loss = [&] {
      Problem copy = p;
      Result x = reference(copy, false);
      double s = 0;
      for (size_t i = 0; i < x.h.size(); ++i) s += x.h[i] * p.dh[i];
      return s;
    };
    auto diff = [&](Doubles& x, const Doubles& g, const char* name) {
      Doubles num(x.size());
      for (size_t i = 0; i < x.size(); ++i) {
        const double o = x[i];
        x[i] = o + 1e-5;
        const double a = loss();
        x[i] = o - 1e-5;
        num[i] = (a - loss()) / 2e-5;
        x[i] = o;
      }
      std::printf("  d%s %.1e", name, rel(g, num));
    };
    diff(p.q, r.dq, "q");
    diff(p.k, r.dk, "k");
    diff(p.v, r.dv, "v");
    diff(p.ig, r.di, "i");
    diff(p.fg, r.df, "f");
    diff(p.C0, r.dC0, "C0");
    diff(p.n0, r.dn0, "n0");
    diff(p.m0, r.dm0, "m0");
    std::printf("\n");
  }
}

static double median_ms(int repeat, const std::function<void(int)>& f) {
  cudaEvent_t a, b;
  CK(cudaEventCreate(&a));
  CK(cudaEventCreate(&b));
  for (int i = 0; i < 3; ++i) f(i);
  std::vector<float> ms(repeat);
  for (int i = 0; i < repeat; ++i) {
    CK(cudaEventRecord(a));
    f(i);
    CK(cudaEventRecord(b));
    CK(cudaEventSynchronize(b));
    CK(cudaEventElapsedTime(&ms[i], a, b));
  }
  std::sort(ms.begin(), ms.end());
  return ms[repeat / 2];
}

// Random inputs without 64-bit detours: sizes are large here.
static Problem quick(const Case& c) {
  Problem p{c};
  const int64_t T = int64_t(c.B) * c.S * c.H;
  Doubles pool(1 << 16);
  for (auto& e : pool) e = normal();
  auto fill = [&](Doubles& x, int64_t n, bool pos, int salt) {
    x.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      const double e = pool[(i * 40503 + (i >> 16) * 9973 + salt) & 65535];
      x[i] = pos ? std::abs(e) * 0.1 : e;
    }
  };
  const bool pos = c.norm == MlstmNormalizer::plain_sum;
  fill(p.q, T * c.K, pos, 1);
  fill(p.k, T * c.K, pos, 77);
  fill(p.v, T * c.V, false, 555);
  fill(p.dh, T * c.V, false, 9999);
  fill(p.ig, T, false, 3);
  fill(p.fg, T, false, 13);
  for (auto& f : p.fg) f = 3 + f;
  p.starts.assign(int64_t(c.B) * c.S, 0);
  return p;
}

static void time_case(const Case& c, int sets, int repeat) {
  std::vector<Run*> runs;
  Problem p = quick(c);
  for (int i = 0; i < sets; ++i) runs.push_back(new Run(p));
  const double f = median_ms(repeat, [&](int i) { CK(mlstm_forward(runs[i % sets]->f, 0)); });
  const double g = median_ms(repeat, [&](int i) { CK(mlstm_backward(runs[i % sets]->g, 0)); });
  const double f2 = median_ms(repeat, [&](int i) {
    CK(mlstm_forward(runs[i % sets]->f, 0));
    CK(mlstm_backward(runs[i % sets]->g, 0));
  });
  const double g2 = median_ms(repeat, [&](int i) {
    CK(mlstm_forward(runs[i % sets]->f, 0));
    CK(mlstm_backward(runs[i % sets]->g, 0));
  });
  std::printf("TIME %3dx%6d heads %2d K %3d V %3d: forward %.3f backward %.3f both %.3f (%.3f) ms, workspace %.0f + %.0f MB\n", c.B, c.S,
              c.H, c.K, c.V, f, g, f2, g2, runs[0]->fbytes / 1e6, runs[0]->bbytes / 1e6);
  std::fflush(stdout);
  for (Run* r : runs) delete r;
}

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "all";
  const auto bf = Type::bfloat16, fp = Type::float16;
  const auto bo = MlstmNormalizer::bounded, pl = MlstmNormalizer::plain_sum;
  const bool halves = argc > 2 && std::string(argv[2]) == "fp16";
  if (mode == "ref") {
    check_reference();
    return 0;
  }
  if (mode == "sanitize") {
    check({1, 130, 2, 60, 48, bf, 1, 0, true, bo, 2});
    check({1, 70, 1, 128, 64, bf, 1, 0, false, pl, 0});
    check({1, 70, 1, 57, 130, bf, 1, 0, true, bo, 0, true});
    check({8, 70, 16, 160, 136, bf, 1, 0, true, bo, 0});
    return failures != 0;
  }
  if (mode == "all" || mode == "check") {
    check_reference();
    std::printf("  B   S   H   K   V                     |     h     C     n     m    dq    dk    dv    di    df   dC0   dn0   dm0\n");
    std::vector<Case> cases;
    for (Type t : {bf, fp}) {
      if (t == fp && !halves) continue;
      cases.insert(cases.end(), {{1, 64, 1, 64, 64, t, 0, 0, false, bo, 0},        {1, 64, 1, 64, 64, t, 0, 0, true, bo, 0},
                                 {1, 128, 1, 64, 64, t, 0, 0, false, bo, 0},       {2, 200, 3, 64, 64, t, 1, 0, true, bo, 0},
                                 {1, 1, 1, 32, 32, t, 0, 0, true, bo, 0},          {1, 63, 2, 32, 48, t, 1, 0, true, bo, 0},
                                 {3, 65, 2, 48, 48, t, 1, 0, true, bo, 0},         {17, 100, 2, 56, 56, t, 2, 0, true, bo, 0},
                                 {3, 190, 4, 60, 60, t, 1, 0, true, bo, 0},        {1, 300, 3, 96, 96, t, 1, 0, true, bo, 0},
                                 {2, 129, 3, 120, 120, t, 3, 0, true, bo, 0},      {3, 256, 4, 128, 128, t, 1, 0, true, bo, 0},
                                 {1, 200, 2, 256, 256, t, 1, 0, true, bo, 0},      {1, 140, 1, 512, 512, t, 1, 0, true, bo, 0},
                                 {2, 150, 2, 512, 32, t, 1, 0, true, bo, 0},       {2, 150, 2, 32, 512, t, 1, 0, true, bo, 0},
                                 {1, 130, 2, 57, 33, t, 1, 0, true, bo, 0},        {1, 130, 2, 58, 34, t, 1, 0, true, bo, 0},
                                 {2, 200, 3, 128, 64, t, 1, 0, true, bo, 0, true}, {4, 512, 9, 128, 64, t, 1, 0, false, pl, 0},
                                 {2, 300, 9, 128, 64, t, 1, 0, true, pl, 0},       {2, 300, 3, 128, 64, t, 1, 6, false, pl, 0},
                                 {2, 300, 3, 128, 64, t, 1, 6, false, bo, 0},      {2, 700, 3, 64, 64, t, 1, 0, true, bo, 1},
                                 {2, 700, 3, 64, 64, t, 1, 0, true, bo, 3},        {2, 700, 3, 64, 64, t, 0, 0, true, pl, 4},
                                 {17, 300, 8, 136, 72, t, 1, 0, true, bo, 0},      {10, 200, 13, 160, 160, t, 1, 0, true, bo, 0},
                                 {2, 300, 3, 128, 64, t, 1, 1, true, bo, 0},       {2, 300, 3, 64, 64, t, 0, 2, false, bo, 0},
                                 {2, 300, 3, 64, 64, t, 1, 3, true, bo, 0},        {1, 2000, 2, 64, 64, t, 0, 3, false, bo, 0},
                                 {2, 300, 3, 64, 64, t, 1, 4, false, bo, 0},       {2, 300, 3, 64, 64, t, 1, 5, false, bo, 0},
                                 {2, 300, 3, 64, 64, t, 1, 5, false, pl, 0},       {2, 300, 3, 64, 64, t, 1, 4, false, pl, 0},
                                 {1, 5000, 1, 32, 32, t, 0, 0, true, bo, 0},       {1, 4000, 1, 32, 32, t, 0, 6, true, bo, 7}});
    }
    for (const Case& c : cases) {
      check(c);
      std::fflush(stdout);
    }
    std::printf("failures: %d\n", failures);
  }
  if (mode == "all" || mode == "time") {
    time_case({8, 512, 12, 256, 256, bf, 0, 0, false, bo, 0}, 2, 30);
    time_case({32, 512, 9, 128, 64, bf, 0, 0, false, pl, 0}, 2, 30);
    time_case({8, 512, 12, 128, 128, bf, 0, 0, false, bo, 0}, 2, 30);
    time_case({4, 512, 12, 96, 96, bf, 0, 0, false, bo, 0}, 2, 30);
    for (int S : {4096, 16384, 65536, 131072}) time_case({1, S, 12, 256, 256, bf, 0, 0, false, bo, 0}, 1, 5);
  }
  if (mode == "one") {
    const bool wide = argc > 2 && argv[2][0] == 'A';
    Problem p = quick(wide ? Case{8, 512, 12, 256, 256, bf, 0, 0, false, bo, 0} : Case{32, 512, 9, 128, 64, bf, 0, 0, false, pl, 0});
    Run r(p);
    CK(mlstm_forward(r.f, 0));
    CK(mlstm_backward(r.g, 0));
    CK(cudaDeviceSynchronize());
  }
  return failures != 0;
}
