// Checks the CUDA delta rule against a double reference, token by token (itself checked by differences), then times it.
// Needs a GPU, and no LibTorch: `make cuda` builds it as build/cuda/tests/delta_rule_check.
// Run: check [fp16] | quick [fp16] | time | sanitize | one K V (a single call, for a profiler) | ref
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cuda_testing.h"
#include "kernels/cuda/delta_rule.h"
#include "kernels/reference/reference.h"

namespace gpu = distil_xlstm::kernels::cuda;
namespace ref = distil_xlstm::kernels::reference;
using gpu::Buffer, gpu::Type;

namespace {

using Doubles = std::vector<double>;

// Of unit length all: normal; positive with a wide spread, as features are after training; positive and nearly parallel, as at its start.
enum class Keys { normal, positive, close, parallel };
enum class Starts { none, some, many, borders };  // borders: the first and last tokens of chunks
enum class Gates { usual, extreme, closed, open, keeping };

struct Case {
  int B, S, H, K, V;
  Type type;
  Keys keys = Keys::normal;
  bool has_state = true;
  Starts starts = Starts::some;
  Gates gates = Gates::usual;
};

struct Problem {
  Case c;
  Doubles q, k, v, igate, fgate, initial, grad_h, grad_cell;
  std::vector<uint8_t> starts;
  [[nodiscard]] int64_t tokens() const { return int64_t(c.B) * c.S * c.H; }
  [[nodiscard]] int64_t cell_size() const { return int64_t(c.B) * c.H * c.K * c.V; }
};

struct Result {
  Doubles h, cell, dq, dk, dv, digate, dfgate, dinitial;
  // Roots of sums of squares of what adds up to these: what the roundings of single products are relative to.
  Doubles h_terms, dfgate_terms, dinitial_terms;
};

std::mt19937_64 rng(std::random_device{}());
int failures = 0;

double normal() {
  static thread_local std::normal_distribution<double> distribution;
  return distribution(rng);
}
double uniform() {
  return std::uniform_real_distribution<double>(0, 1)(rng);
}

double key_value(Keys keys) {
  switch (keys) {
    case Keys::normal:
      return normal();
    case Keys::positive:
      return std::exp(normal());
    case Keys::close:
      return std::exp(0.3 * normal());
    case Keys::parallel:
      return 1 + 0.03 * std::abs(normal());
  }
  return 0;
}

Doubles unit_rows(int64_t rows, int width, const Case& c, bool rounds) {
  Doubles x(size_t(rows * width));
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int i = 0; i < width; ++i) {
      const double value = key_value(c.keys);
      x[size_t(r * width + i)] = value;
      squares += value * value;
    }
    for (int i = 0; i < width; ++i) {
      double& value = x[size_t(r * width + i)];
      value /= std::sqrt(squares);
      if (rounds) value = gpu::rounded(value, c.type);
    }
  }
  return x;
}

Doubles normals(int64_t count, double scale, Type type) {
  Doubles x(static_cast<size_t>(count));
  for (double& value : x) value = gpu::rounded(scale * normal(), type);
  return x;
}

Problem make(const Case& c) {
  Problem p{c};
  const int64_t T = p.tokens();
  p.q = unit_rows(T, c.K, c, true);
  p.k = unit_rows(T, c.K, c, true);
  p.v = normals(T * c.V, 1, c.type);
  p.grad_h = normals(T * c.V, 1, c.type);
  p.igate.resize(size_t(T));
  p.fgate.resize(size_t(T));
  for (size_t i = 0; i < size_t(T); ++i) {
    double in = normal(), forget = 3 + 2 * normal();
    if (c.keys == Keys::parallel) in += 4, forget += 3;
    if (c.gates == Gates::extreme) in = uniform() < 0.5 ? -50 : 50, forget = uniform() < 0.5 ? -50 : 50;
    if (c.gates == Gates::closed) in -= 12, forget -= 12;
    if (c.gates == Gates::open) in += 50, forget += 50;
    if (c.gates == Gates::keeping) in -= 2, forget = 8 + normal();
    p.igate[i] = double(float(in));
    p.fgate[i] = double(float(forget));
  }
  p.starts.assign(size_t(c.B) * size_t(c.S), 0);
  for (int b = 0; b < c.B; ++b) {
    for (int t = 0; t < c.S; ++t) {
      const bool at_border = t % 64 == 0 || t % 64 == 63;
      p.starts[size_t(b * c.S + t)] = c.starts == Starts::some      ? uniform() < 0.03
                                      : c.starts == Starts::many    ? uniform() < 0.5
                                      : c.starts == Starts::borders ? at_border
                                                                    : false;
    }
  }
  if (c.has_state) {
    p.initial = normals(p.cell_size(), 1 / std::sqrt(double(c.K)), Type::float32);
    p.grad_cell = normals(p.cell_size(), 0.3, Type::float32);
  }
  return p;
}

void parallel(int64_t n, const std::function<void(int64_t)>& f) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> pool;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    pool.emplace_back([&] {
      for (int64_t j; (j = next++) < n;) f(j);
    });
  }
  for (auto& thread : pool) thread.join();
}

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// One head of one row, token by token.
class HeadReference {
 public:
  HeadReference(const Problem& p, Result& r, int64_t bh)
      : p_(p),
        r_(r),
        b_(bh / p.c.H),
        head_(bh % p.c.H),
        K_(p.c.K),
        V_(p.c.V),
        size_(size_t(K_) * size_t(V_)),
        at_(size_t(bh) * size_),
        cells_(size_t(p.c.S + 1) * size_),
        u_(size_t(p.c.S) * size_t(V_)) {}

  void forward() {
    if (p_.c.has_state) std::copy_n(&p_.initial[at_], size_, cells_.begin());
    for (int t = 0; t < p_.c.S; ++t) {
      const size_t token = token_of(t);
      const double *q = &p_.q[token * size_t(K_)], *k = &p_.k[token * size_t(K_)], *v = &p_.v[token * size_t(V_)], *before = cell(t);
      double *after = cell(t + 1), *u = &u_[size_t(t * V_)], *h = &r_.h[token * size_t(V_)];
      const double g = forget(t), beta = sigmoid(p_.igate[token]);
      std::fill_n(h, V_, 0.0);
      for (int e = 0; e < V_; ++e) u[e] = v[e];
      for (int d = 0; d < K_; ++d) {
        for (int e = 0; e < V_; ++e) u[e] -= k[d] * g * before[d * V_ + e];
      }
      for (int e = 0; e < V_; ++e) u[e] *= beta;
      for (int d = 0; d < K_; ++d) {
        for (int e = 0; e < V_; ++e) {
          const double value = g * before[d * V_ + e] + k[d] * u[e];
          after[d * V_ + e] = value;
          h[e] += q[d] * value;
        }
      }
      find_terms(t);
    }
    std::copy_n(cell(p_.c.S), size_, &r_.cell[at_]);
  }

  void backward() {
    Doubles grad(size_, 0.0), squares(size_, 0.0), du(static_cast<size_t>(V_));
    Doubles dots(size_t(p_.c.S), 0.0);
    if (p_.c.has_state) std::copy_n(&p_.grad_cell[at_], size_, grad.begin());
    for (size_t i = 0; i < size_; ++i) squares[i] = grad[i] * grad[i];
    for (int t = p_.c.S; t-- > 0;) {
      const size_t token = token_of(t);
      const double *q = &p_.q[token * size_t(K_)], *k = &p_.k[token * size_t(K_)], *v = &p_.v[token * size_t(V_)], *before = cell(t),
                   *after = cell(t + 1), *u = &u_[size_t(t * V_)], *dh = &p_.grad_h[token * size_t(V_)];
      double *dq = &r_.dq[token * size_t(K_)], *dk = &r_.dk[token * size_t(K_)], *dv = &r_.dv[token * size_t(V_)];
      const double g = forget(t), beta = sigmoid(p_.igate[token]), slope = sigmoid(-p_.fgate[token]);
      std::fill(du.begin(), du.end(), 0.0);
      for (int d = 0; d < K_; ++d) {
        double read = 0, written = 0;
        for (int e = 0; e < V_; ++e) {
          double& y = grad[size_t(d * V_ + e)];
          y += q[d] * dh[e];
          read += after[d * V_ + e] * dh[e];
          written += y * u[e];
          du[size_t(e)] += k[d] * y;
        }
        dq[d] = read;
        dk[d] = written;
      }
      double dbeta = 0, dforget = 0, query_dot = 0, value_dot = 0;
      for (int e = 0; e < V_; ++e) {
        dv[e] = beta * du[size_t(e)];
        dbeta += beta > 0 ? du[size_t(e)] * u[e] / beta : 0.0;
        value_dot += v[e] * dv[e];
      }
      for (int d = 0; d < K_; ++d) {
        double answered = 0;
        for (int e = 0; e < V_; ++e) {
          const size_t i = size_t(d * V_ + e);
          answered += dv[e] * g * before[i];
          grad[i] -= k[d] * dv[e];
          dforget += grad[i] * before[i];
          squares[i] = g * g * (squares[i] + q[d] * dh[e] * q[d] * dh[e] + k[d] * dv[e] * k[d] * dv[e]);
          grad[i] *= g;
        }
        dk[d] -= answered;
        query_dot += q[d] * dq[d];
      }
      r_.digate[token] = dbeta * beta * sigmoid(-p_.igate[token]);
      r_.dfgate[token] = g * slope * dforget;
      // The sum that gives df has these terms, up to a chunk of them (docs/mathematics.md 11).
      dots[size_t(t)] = query_dot * query_dot + value_dot * value_dot;
      double terms = 0;
      for (int later = t; later < std::min(t + gpu::kDeltaChunk, p_.c.S); ++later) terms += dots[size_t(later)];
      r_.dfgate_terms[token] = g > 0 ? slope * std::sqrt(terms) : 0.0;
    }
    for (size_t i = 0; i < size_; ++i) {
      r_.dinitial[at_ + i] = grad[i];
      r_.dinitial_terms[at_ + i] = std::sqrt(squares[i]);
    }
  }

 private:
  [[nodiscard]] size_t token_of(int t) const { return size_t((b_ * p_.c.S + t) * p_.c.H + head_); }
  double* cell(int t) { return &cells_[size_t(t) * size_]; }
  [[nodiscard]] bool starts(int t) const { return p_.starts[size_t(b_ * p_.c.S + t)] != 0; }
  [[nodiscard]] double forget(int t) const { return starts(t) ? 0.0 : sigmoid(p_.fgate[token_of(t)]); }

  // h_t is a sum over earlier writes, which may cancel.
  void find_terms(int t) {
    const size_t token = token_of(t);
    const double* q = &p_.q[token * size_t(K_)];
    double* terms = &r_.h_terms[token * size_t(V_)];
    std::fill_n(terms, V_, 0.0);
    double decay = 1;
    for (int j = t; j >= 0 && j > t - gpu::kDeltaChunk; --j) {
      const double *k = &p_.k[token_of(j) * size_t(K_)], *u = &u_[size_t(j * V_)];
      double score = 0;
      for (int d = 0; d < K_; ++d) score += q[d] * k[d];
      for (int e = 0; e < V_; ++e) terms[e] += decay * score * u[e] * decay * score * u[e];
      decay *= forget(j);
    }
    for (int e = 0; e < V_; ++e) terms[e] = std::sqrt(terms[e]);
  }

  const Problem& p_;
  Result& r_;
  int64_t b_, head_;
  int K_, V_;
  size_t size_, at_;
  Doubles cells_, u_;
};

Result reference(const Problem& p) {
  const auto T = size_t(p.tokens()), K = size_t(p.c.K), V = size_t(p.c.V), C = size_t(p.cell_size());
  Result r{Doubles(T * V), Doubles(C), Doubles(T * K), Doubles(T * K), Doubles(T * V), Doubles(T),
           Doubles(T),     Doubles(C), Doubles(T * V), Doubles(T),     Doubles(C)};
  parallel(int64_t(p.c.B) * p.c.H, [&](int64_t bh) {
    HeadReference head(p, r, bh);
    head.forward();
    head.backward();
  });
  return r;
}

double norm(const Doubles& x) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  return std::sqrt(sum);
}

// |a - b| / |b|, or relative to the terms of b where those are larger; elements below `least` count as that.
double relative(const Doubles& a, const Doubles& b, const Doubles& terms = {}, double least = 0) {
  double sum = 0;
  for (size_t i = 0; i < b.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum) / std::max({norm(b), norm(terms), least * std::sqrt(double(b.size())), 1e-30});
}

// The reference's gradients by central differences, its forward against the library's reference.
void check_reference() {
  Case c{2, 7, 2, 4, 3, Type::float32};
  c.starts = Starts::many;
  Problem p = make(c);
  std::fill(p.starts.begin(), p.starts.begin() + 3, 0);
  const Result r = reference(p);
  Doubles cell = p.initial, h(r.h.size());
  ref::delta_rule({c.B, c.S, c.H, c.K, c.V}, {p.q.data(), p.k.data(), p.v.data(), p.igate.data(), p.fgate.data(), p.starts.data()},
                  cell.data(), h.data());
  double worst = std::max(relative(r.h, h), relative(r.cell, cell));
  const auto loss = [&] {
    const Result x = reference(p);
    double sum = 0;
    for (size_t i = 0; i < x.h.size(); ++i) sum += x.h[i] * p.grad_h[i];
    for (size_t i = 0; i < x.cell.size(); ++i) sum += x.cell[i] * p.grad_cell[i];
    return sum;
  };
  const auto compare = [&](Doubles& x, const Doubles& gradient) {
    Doubles numeric(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double value = x[i];
      x[i] = value + 1e-5;
      const double above = loss();
      x[i] = value - 1e-5;
      numeric[i] = (above - loss()) / 2e-5;
      x[i] = value;
    }
    worst = std::max(worst, relative(gradient, numeric));
  };
  compare(p.q, r.dq);
  compare(p.k, r.dk);
  compare(p.v, r.dv);
  compare(p.igate, r.digate);
  compare(p.fgate, r.dfgate);
  compare(p.initial, r.dinitial);
  std::printf("reference: at most %.1e from differences%s\n", worst, worst < 1e-6 ? "" : "  <--");
  failures += !(worst < 1e-6);
}

uint16_t to_bits(double x, Type type) {
  uint16_t bits;
  if (type == Type::bfloat16) {
    const __nv_bfloat16 value = __float2bfloat16(float(x));
    std::memcpy(&bits, &value, 2);
  } else {
    const __half value = __float2half(float(x));
    std::memcpy(&bits, &value, 2);
  }
  return bits;
}
double from_bits(uint16_t bits, Type type) {
  if (type == Type::bfloat16) {
    __nv_bfloat16 value;
    std::memcpy(&value, &bits, 2);
    return double(__bfloat162float(value));
  }
  __half value;
  std::memcpy(&value, &bits, 2);
  return double(__half2float(value));
}

// The problem on the GPU; what is written is filled with NaN before.
class Run {
 public:
  explicit Run(const Problem& p) : c_(p.c), f_{}, g_{} {
    gpu::DeltaRuleInputs in{.type = c_.type, .B = c_.B, .S = c_.S, .H = c_.H, .K = c_.K, .V = c_.V};
    in.q_BSHK = halves(p.q);
    in.k_BSHK = halves(p.k);
    in.v_BSHV = halves(p.v);
    in.igate_BSH = floats(p.igate);
    in.fgate_BSH = floats(p.fgate);
    if (c_.starts != Starts::none) {
      in.is_start_BS = static_cast<const uint8_t*>(take(p.starts.size()));
      CHECK_CUDA(cudaMemcpy(buffers_.back()->data, p.starts.data(), p.starts.size(), cudaMemcpyHostToDevice));
    }
    in.initial_cell_BHKV = c_.has_state ? floats(p.initial) : nullptr;
    const auto T = size_t(p.tokens()), C = size_t(p.cell_size());
    h_ = output(T * size_t(c_.V), 2);
    cell_ = output(c_.has_state ? C : 0, 4);
    kept_bytes = gpu::delta_rule_kept(in);
    workspace_bytes = gpu::delta_rule_backward_workspace(in);
    void *kept = take(kept_bytes), *workspace = take(workspace_bytes);
    f_ = {.inputs = in, .h_BSHV = h_->data, .cell_BHKV = c_.has_state ? static_cast<float*>(cell_->data) : nullptr, .kept = kept};
    dq_ = output(T * size_t(c_.K), 2);
    dk_ = output(T * size_t(c_.K), 2);
    dv_ = output(T * size_t(c_.V), 2);
    digate_ = output(T, 4);
    dfgate_ = output(T, 4);
    dinitial_ = output(c_.has_state ? C : 0, 4);
    g_ = {.inputs = in,
          .kept = kept,
          .grad_h_BSHV = halves(p.grad_h),
          .grad_cell_BHKV = c_.has_state ? floats(p.grad_cell) : nullptr,
          .grad_q_BSHK = dq_->data,
          .grad_k_BSHK = dk_->data,
          .grad_v_BSHV = dv_->data,
          .grad_igate_BSH = static_cast<float*>(digate_->data),
          .grad_fgate_BSH = static_cast<float*>(dfgate_->data),
          .grad_initial_cell_BHKV = c_.has_state ? static_cast<float*>(dinitial_->data) : nullptr,
          .workspace = workspace};
  }

  cudaError_t forward(cudaStream_t stream = nullptr) const { return gpu::delta_rule_forward(f_, stream); }
  cudaError_t backward(cudaStream_t stream = nullptr) const { return gpu::delta_rule_backward(g_, stream); }

  [[nodiscard]] const gpu::DeltaRuleForward& arguments() const { return f_; }
  [[nodiscard]] const gpu::DeltaRuleBackward& backward_arguments() const { return g_; }
  void poison() const {
    for (const auto& buffer : outputs_) CHECK_CUDA(cudaMemset(buffer->data, 0xff, buffer->bytes));
    CHECK_CUDA(cudaMemset(f_.kept, 0xff, kept_bytes));
    CHECK_CUDA(cudaMemset(g_.workspace, 0xff, workspace_bytes));
  }
  void run(cudaStream_t stream = nullptr) const {
    CHECK_CUDA(forward(stream));
    CHECK_CUDA(backward(stream));
  }
  [[nodiscard]] std::vector<std::vector<unsigned char>> bits() const {
    std::vector<std::vector<unsigned char>> all;
    for (const auto& buffer : outputs_) {
      all.emplace_back(buffer->bytes);
      CHECK_CUDA(cudaMemcpy(all.back().data(), buffer->data, buffer->bytes, cudaMemcpyDeviceToHost));
    }
    return all;
  }
  [[nodiscard]] Result result() const {
    return {.h = read(*h_, 2),
            .cell = read(*cell_, 4),
            .dq = read(*dq_, 2),
            .dk = read(*dk_, 2),
            .dv = read(*dv_, 2),
            .digate = read(*digate_, 4),
            .dfgate = read(*dfgate_, 4),
            .dinitial = read(*dinitial_, 4)};
  }

  size_t kept_bytes = 0, workspace_bytes = 0;

 private:
  void* take(size_t bytes) {
    buffers_.push_back(std::make_unique<Buffer>(bytes));
    return buffers_.back()->data;
  }
  const void* halves(const Doubles& x) {
    std::vector<uint16_t> bits(x.size());
    for (size_t i = 0; i < x.size(); ++i) bits[i] = to_bits(x[i], c_.type);
    void* to = take(bits.size() * 2);
    CHECK_CUDA(cudaMemcpy(to, bits.data(), bits.size() * 2, cudaMemcpyHostToDevice));
    return to;
  }
  const float* floats(const Doubles& x) {
    const std::vector<float> values(x.begin(), x.end());
    void* to = take(values.size() * 4);
    CHECK_CUDA(cudaMemcpy(to, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
    return static_cast<const float*>(to);
  }
  Buffer* output(size_t count, size_t size) {
    outputs_.push_back(std::make_unique<Buffer>(count * size));
    return outputs_.back().get();
  }
  [[nodiscard]] Doubles read(const Buffer& from, size_t size) const {
    Doubles x(from.bytes / size);
    std::vector<unsigned char> bytes(from.bytes);
    CHECK_CUDA(cudaMemcpy(bytes.data(), from.data, from.bytes, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < x.size(); ++i) {
      if (size == 4) {
        float value;
        std::memcpy(&value, &bytes[4 * i], 4);
        x[i] = double(value);
      } else {
        uint16_t value;
        std::memcpy(&value, &bytes[2 * i], 2);
        x[i] = from_bits(value, c_.type);
      }
    }
    return x;
  }

  Case c_;
  std::vector<std::unique_ptr<Buffer>> buffers_, outputs_;
  Buffer *h_, *cell_, *dq_, *dk_, *dv_, *digate_, *dfgate_, *dinitial_;
  gpu::DeltaRuleForward f_;
  gpu::DeltaRuleBackward g_;
};

void check(const Case& c) {
  const Problem p = make(c);
  const Result r = reference(p);
  const Run run(p);
  run.poison();
  run.run();
  CHECK_CUDA(cudaDeviceSynchronize());
  const Result x = run.result();
  const auto first = run.bits();
  run.poison();
  run.run();
  CHECK_CUDA(cudaDeviceSynchronize());
  const bool same = run.bits() == first;
  // Nearly parallel keys make h a sum of writes that cancel: every token takes back what the one before wrote. All errors grow by what that
  // costs.
  const double cancelled = c.keys == Keys::parallel ? std::max(1.0, norm(r.h_terms) / norm(r.h)) : 1.0;
  const double least = c.type == Type::float16 ? 6.1e-5 : 0;  // below it float16 has fewer digits: writes through closed gates
  const double out = 1e-2 * cancelled, gradient = 2e-2 * cancelled;
  struct Row {
    double error, limit;
  };
  const Row rows[] = {{relative(x.h, r.h, {}, least), out},
                      {c.has_state ? relative(x.cell, r.cell, {}, least) : 0, out},
                      {relative(x.dq, r.dq, {}, least), gradient},
                      {relative(x.dk, r.dk, {}, least), gradient},
                      {relative(x.dv, r.dv, {}, least), gradient},
                      {relative(x.digate, r.digate, {}, least), gradient},
                      {relative(x.dfgate, r.dfgate, r.dfgate_terms, least), gradient},
                      {c.has_state ? relative(x.dinitial, r.dinitial, r.dinitial_terms, least) : 0, gradient}};
  bool good = same;
  for (const Row& row : rows) good = good && row.error < row.limit;  // NaN is not
  failures += !good;
  std::printf("%2d %4d %2d %3d %3d %-4s keys %d starts %d gates %d %s|", c.B, c.S, c.H, c.K, c.V, gpu::name_of(c.type), int(c.keys),
              int(c.starts), int(c.gates), c.has_state ? "S" : "-");
  for (const Row& row : rows) std::printf(" %.1e", row.error);
  if (cancelled > 1) std::printf(" (limits x %.1f)", cancelled);
  std::printf("%s%s\n", same ? "" : " DIFFERS FROM RUN TO RUN", good ? "" : "  <--");
  std::fflush(stdout);
}

// Calls on two streams at once give the bits of calls alone.
void check_streams() {
  const Run a(make({2, 300, 3, 128, 64, Type::bfloat16})), b(make({3, 200, 2, 256, 64, Type::bfloat16}));
  a.run();
  b.run();
  CHECK_CUDA(cudaDeviceSynchronize());
  const auto alone_a = a.bits(), alone_b = b.bits();
  a.poison();
  b.poison();
  CHECK_CUDA(cudaDeviceSynchronize());
  cudaStream_t streams[2];
  for (cudaStream_t& stream : streams) CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (int i = 0; i < 10; ++i) {
    a.run(streams[0]);
    b.run(streams[1]);
  }
  CHECK_CUDA(cudaDeviceSynchronize());
  const bool same = a.bits() == alone_a && b.bits() == alone_b;
  for (const cudaStream_t stream : streams) CHECK_CUDA(cudaStreamDestroy(stream));
  std::printf("two streams: %s\n", same ? "the same bits" : "OTHER BITS  <--");
  failures += !same;
}

// What is not the kernels' is refused.
void check_refusals() {
  const Problem p = make({1, 8, 1, 8, 8, Type::bfloat16});
  const Run run(p);
  const auto refused = [&](const std::function<void(gpu::DeltaRuleInputs&)>& change) {
    gpu::DeltaRuleForward f = run.arguments();
    change(f.inputs);
    return gpu::delta_rule_forward(f, nullptr) == cudaErrorInvalidValue;
  };
  const auto backward_refused = [&](const std::function<void(gpu::DeltaRuleBackward&)>& change) {
    gpu::DeltaRuleBackward g = run.backward_arguments();
    change(g);
    return gpu::delta_rule_backward(g, nullptr) == cudaErrorInvalidValue;
  };
  const bool good = refused([](auto& x) { x.K = 264; }) && refused([](auto& x) { x.K = 12; }) && refused([](auto& x) { x.V = 136; }) &&
                    refused([](auto& x) { x.V = 4; }) && refused([](auto& x) { x.type = Type::float32; }) &&
                    refused([](auto& x) { x.S = 0; }) &&
                    refused([](auto& x) { x.q_BSHK = static_cast<const unsigned char*>(x.q_BSHK) + 2; }) &&
                    backward_refused([](auto& x) { x.workspace = nullptr; }) && backward_refused([](auto& x) { x.kept = nullptr; }) &&
                    backward_refused([](auto& x) { x.grad_k_BSHK = static_cast<unsigned char*>(x.grad_k_BSHK) + 2; });
  std::printf("refusals: %s\n", good ? "all" : "NOT ALL  <--");
  failures += !good;
}

std::vector<Case> small_cases(Type t) {
  return {{1, 64, 1, 64, 64, t, Keys::normal, false, Starts::none},
          {1, 64, 1, 128, 64, t, Keys::normal, true, Starts::none},
          {16, 1, 4, 8, 8, t},
          {2, 63, 2, 32, 48, t},
          {1, 65, 1, 256, 64, t},
          {2, 130, 2, 128, 64, t},
          {1, 129, 2, 200, 120, t},
          {1, 100, 1, 72, 104, t, Keys::positive, true, Starts::borders},
          {1, 150, 1, 128, 64, t, Keys::normal, false, Starts::many}};
}

std::vector<Case> all_cases(Type t) {
  std::vector<Case> cases = small_cases(t);
  const Case more[] = {{3, 65, 2, 48, 48, t, Keys::normal, true, Starts::borders},
                       {4, 512, 9, 128, 64, t, Keys::positive, false, Starts::none},
                       {2, 512, 3, 128, 64, t, Keys::close, true, Starts::some},
                       {2, 300, 9, 256, 64, t, Keys::positive, true},
                       {2, 300, 3, 256, 128, t, Keys::close, true, Starts::none, Gates::keeping},
                       {2, 300, 3, 128, 128, t, Keys::normal, true},
                       {17, 100, 2, 56, 56, t, Keys::normal, true, Starts::many},
                       {2, 300, 3, 128, 64, t, Keys::normal, true, Starts::some, Gates::extreme},
                       {2, 300, 3, 128, 64, t, Keys::positive, true, Starts::some, Gates::closed},
                       {2, 300, 3, 128, 64, t, Keys::normal, true, Starts::none, Gates::open},
                       {2, 300, 3, 128, 64, t, Keys::positive, true, Starts::none, Gates::keeping},
                       {1, 2000, 2, 128, 64, t, Keys::positive, true, Starts::some, Gates::keeping},
                       {2, 300, 3, 128, 64, t, Keys::parallel, false, Starts::none},
                       {2, 300, 3, 256, 64, t, Keys::parallel, true, Starts::some}};
  cases.insert(cases.end(), std::begin(more), std::end(more));
  return cases;
}

double median_ms(int repeats, const std::function<void(int)>& f) {
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) f(i);
  std::vector<float> times(static_cast<size_t>(repeats));
  for (int i = 0; i < repeats; ++i) {
    CHECK_CUDA(cudaEventRecord(begin));
    f(i);
    CHECK_CUDA(cudaEventRecord(end));
    CHECK_CUDA(cudaEventSynchronize(end));
    CHECK_CUDA(cudaEventElapsedTime(&times[size_t(i)], begin, end));
  }
  CHECK_CUDA(cudaEventDestroy(begin));
  CHECK_CUDA(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return double(times[size_t(repeats) / 2]);
}

// As `make`, from a pool of values: sizes are large here.
Problem quick(const Case& c) {
  Problem p{c};
  const int64_t T = p.tokens();
  Doubles pool(1 << 16);
  for (double& x : pool) x = normal();
  const auto fill = [&](Doubles& x, int64_t count, int salt, double scale, double shift) {
    x.resize(size_t(count));
    for (int64_t i = 0; i < count; ++i) x[size_t(i)] = shift + scale * pool[size_t((i * 40503 + (i >> 16) * 9973 + salt) & 65535)];
  };
  fill(p.q, T * c.K, 1, 1 / std::sqrt(double(c.K)), 0);
  fill(p.k, T * c.K, 77, 1 / std::sqrt(double(c.K)), 0);
  fill(p.v, T * c.V, 555, 1, 0);
  fill(p.grad_h, T * c.V, 9999, 1, 0);
  fill(p.igate, T, 3, 1, 0);
  fill(p.fgate, T, 13, 1, 3);
  return p;
}

void time_case(int B, int S, int H, int K, int V, int repeats) {
  const Problem p = quick({B, S, H, K, V, Type::bfloat16, Keys::normal, false, Starts::none});
  const std::unique_ptr<Run> runs[2] = {std::make_unique<Run>(p), std::make_unique<Run>(p)};
  const double forward = median_ms(repeats, [&](int i) { CHECK_CUDA(runs[i % 2]->forward()); });
  const double backward = median_ms(repeats, [&](int i) { CHECK_CUDA(runs[i % 2]->backward()); });
  const double both = median_ms(repeats, [&](int i) { runs[i % 2]->run(); });
  std::printf(
      "TIME %3dx%6d heads %2d K %3d V %3d: forward %.3f backward %.3f both %.3f ms, %.3f ps a state element and token, %.0f + %.0f MB\n", B,
      S, H, K, V, forward, backward, both, 1e9 * both / (double(B) * S * H * K * V), double(runs[0]->kept_bytes) / 1e6,
      double(runs[0]->workspace_bytes) / 1e6);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "all";
  const Type type = argc > 2 && std::string(argv[2]) == "fp16" ? Type::float16 : Type::bfloat16;
  if (mode == "ref" || mode == "check" || mode == "quick" || mode == "all") check_reference();
  if (mode == "check" || mode == "quick" || mode == "all") {
    std::printf(" B    S  H   K   V                                |       h       C      dq      dk      dv      di      df     dC0\n");
    for (const Case& c : mode == "quick" ? small_cases(type) : all_cases(type)) check(c);
    check_refusals();
    if (mode != "quick") check_streams();
    std::printf("failures: %d\n", failures);
  }
  if (mode == "sanitize") {
    check({1, 70, 2, 128, 64, type, Keys::close, true, Starts::none, Gates::keeping});
    check({1, 65, 1, 200, 72, type});
  }
  if (mode == "time" || mode == "all") {
    time_case(32, 512, 9, 128, 64, 30);
    time_case(32, 512, 9, 256, 64, 30);
    time_case(32, 512, 9, 128, 128, 30);
    time_case(8, 512, 9, 128, 64, 30);
    time_case(8, 512, 32, 128, 64, 30);
    time_case(1, 16384, 9, 128, 64, 10);
  }
  if (mode == "one" && argc > 3) {
    const Run run(quick({32, 512, 9, std::atoi(argv[2]), std::atoi(argv[3]), Type::bfloat16, Keys::normal, false, Starts::none}));
    run.run();
    CHECK_CUDA(cudaDeviceSynchronize());
  }
  return failures != 0;
}
