// Checks and times the memory-bound kernels of kernels/cuda around the cells: rms_norm, rotary, gated, blockdiag.
// Needs a GPU, and no LibTorch: `make cuda` builds it as build/cuda/tests/fused_check.
// Run: check | time
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/blockdiag.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/gated.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rotary.h"

using namespace distil_xlstm::kernels::cuda;

#define CHECK_CUDA(call)                                                                     \
  do {                                                                                       \
    const cudaError_t error_ = (call);                                                       \
    if (error_ != cudaSuccess) {                                                             \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
      std::exit(1);                                                                          \
    }                                                                                        \
  } while (0)

namespace {

std::mt19937_64 generator(std::random_device{}());
int failures = 0, cases = 0;
size_t size_of(Type type) {
  return type == Type::float32 ? 4 : 2;
}
const char* name_of(Type type) {
  return type == Type::float32 ? "f32" : type == Type::bfloat16 ? "bf16" : "f16";
}

double rounded(double x, Type type) {
  const auto f = float(x);
  return type == Type::float32    ? f
         : type == Type::bfloat16 ? double(__bfloat162float(__float2bfloat16(f)))
                                  : double(__half2float(__float2half(f)));
}

// A device tensor with its values on the host.
struct Tensor {
  Type type;
  std::vector<double> host;
  char* data = nullptr;
  Tensor(Type type, int64_t count, double spread, int64_t offset = 0) : type(type), host(size_t(count)), offset_(offset) {
    CHECK_CUDA(cudaMalloc(&base_, size_t(count + offset) * size_of(type) + 16));
    data = base_ + size_t(offset) * size_of(type);
    std::normal_distribution<double> normal;
    for (auto& x : host) x = rounded(spread * normal(generator), type);
    std::vector<char> bytes(host.size() * size_of(type));
    for (size_t i = 0; i < host.size(); ++i) {
      if (type == Type::float32) reinterpret_cast<float*>(bytes.data())[i] = float(host[i]);
      if (type == Type::bfloat16) reinterpret_cast<__nv_bfloat16*>(bytes.data())[i] = __float2bfloat16(float(host[i]));
      if (type == Type::float16) reinterpret_cast<__half*>(bytes.data())[i] = __float2half(float(host[i]));
    }
    if (spread == 0) std::memset(bytes.data(), 0xff, bytes.size());  // an output: poison
    CHECK_CUDA(cudaMemcpy(data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  ~Tensor() { cudaFree(base_); }
  Tensor(const Tensor&) = delete;
  float* floats() { return reinterpret_cast<float*>(data); }
  std::vector<double> read() const {
    std::vector<char> bytes(host.size() * size_of(type));
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaMemcpy(bytes.data(), data, bytes.size(), cudaMemcpyDeviceToHost));
    std::vector<double> out(host.size());
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = type == Type::float32    ? double(reinterpret_cast<float*>(bytes.data())[i])
               : type == Type::bfloat16 ? double(__bfloat162float(reinterpret_cast<__nv_bfloat16*>(bytes.data())[i]))
                                        : double(__half2float(reinterpret_cast<__half*>(bytes.data())[i]));
    }
    return out;
  }

 private:
  char* base_ = nullptr;
  int64_t offset_;
};

void compare(const std::string& what, const std::vector<double>& out, const std::vector<double>& ref, Type type) {
  double diff = 0, norm = 0;
  for (size_t i = 0; i < ref.size(); ++i) diff += (out[i] - ref[i]) * (out[i] - ref[i]), norm += ref[i] * ref[i];
  const double error = std::sqrt(diff / std::max(norm, 1e-30)), limit = type == Type::float32 ? 1e-5 : type == Type::bfloat16 ? 4e-3 : 5e-4;
  ++cases;
  if (error < limit) return;
  ++failures;
  std::printf("FAIL %s: error %.2e, limit %.0e\n", what.c_str(), error, limit);
}

double sigmoid64(double x) {
  return 1 / (1 + std::exp(-x));
}
std::pair<double, double> activate64(Activation act, double x) {
  const double cdf = 0.5 * std::erfc(-x / std::sqrt(2.0)), s = sigmoid64(x), a = 1.6732632423543772, b = 1.0507009873554805;
  switch (act) {
    case Activation::gelu:
      return {x * cdf, cdf + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI)};
    case Activation::relu:
      return {std::max(x, 0.0), x > 0};
    case Activation::relu_squared:
      return {x > 0 ? x * x : 0, x > 0 ? 2 * x : 0};
    case Activation::sigmoid:
      return {s, s * (1 - s)};
    case Activation::swish:
      return {x * s, s * (1 + x * (1 - s))};
    case Activation::selu:
      return {x > 0 ? b * x : b * a * std::expm1(x), x > 0 ? b : b * a * std::exp(x)};
  }
  return {};
}
std::vector<double> sum_parts(const std::vector<double>& parts, size_t size) {
  std::vector<double> out(size, 0.0);
  for (size_t i = 0; i < parts.size(); ++i) out[i % size] += parts[i];
  return out;
}

void check_rms_norm(Type type, int64_t N, int D, bool with_residual, int64_t offset) {
  Tensor x(type, N * D, 2.0, offset), residual(type, N * D, 1.0, offset), weight(type, D, 1.0, offset), y(type, N * D, 0, offset);
  const RmsNorm args{type, N, D, 1e-6f, x.data, with_residual ? residual.data : nullptr, weight.data, x.data, y.data};
  CHECK_CUDA(rms_norm_forward(args, nullptr));
  std::vector<double> sum = x.host, ref(sum.size());
  for (int64_t n = 0; n < N; ++n) {
    double squares = 0;
    for (int d = 0; d < D; ++d) {
      double& s = sum[size_t(n * D + d)];
      if (with_residual) s = rounded(s + residual.host[size_t(n * D + d)], type);
      squares += s * s;
    }
    for (int d = 0; d < D; ++d) ref[size_t(n * D + d)] = sum[size_t(n * D + d)] / std::sqrt(squares / D + 1e-6) * weight.host[size_t(d)];
  }
  const std::string what = std::string("rms_norm ") + name_of(type) + " " + std::to_string(N) + "x" + std::to_string(D) + " residual " +
                           std::to_string(with_residual);
  compare(what, y.read(), ref, type);
  compare(what + " sum", x.read(), sum, type);
}

// The first H of `all` heads of a joint product; the others must stay as they are. Any numbers do for the tables.
void check_rotary(Type type, int64_t B, int64_t S, int H, int all, int K, int64_t offset) {
  const int half = K / 2;
  const int64_t first_position = 3;
  Tensor x(type, B * S * all * K, 1.0, offset);
  Tensor cos(Type::float32, (first_position + S) * half, 1.0), sin(Type::float32, (first_position + S) * half, 1.0);
  const Rotary args{type, B, S, H, K, S * all * K, int64_t(all) * K, K, x.data, cos.floats(), sin.floats(), first_position};
  CHECK_CUDA(rotate_heads(args, nullptr));
  std::vector<double> ref = x.host;
  for (int64_t row = 0; row < B * S; ++row) {
    for (int h = 0; h < H; ++h) {
      for (int i = 0; i < half; ++i) {
        const size_t first = size_t((row * all + h) * K + i), second = first + size_t(half);
        const size_t angle = size_t((first_position + row % S) * half + i);
        ref[first] = x.host[first] * cos.host[angle] - x.host[second] * sin.host[angle];
        ref[second] = x.host[second] * cos.host[angle] + x.host[first] * sin.host[angle];
      }
    }
  }
  const std::string what = std::string("rotary ") + name_of(type) + " " + std::to_string(B) + "x" + std::to_string(S) + " heads " +
                           std::to_string(H) + " of " + std::to_string(all) + " width " + std::to_string(K);
  const std::vector<double> out = x.read();
  compare(what, out, ref, type);
  ++cases;
  for (size_t i = 0; i < out.size(); ++i) {
    if (int64_t(i) / K % all < H || out[i] == x.host[i]) continue;
    ++failures;
    std::printf("FAIL %s: the heads behind those to turn have changed\n", what.c_str());
    break;
  }
}

void check_gated(Type type, Activation act, int64_t N, int P) {
  Tensor both(type, N * 2 * P, 1.5), grad(type, N * P, 1.0), out(type, N * P, 0), grads(type, N * 2 * P, 0);
  GatedActivation args{type,     act,       N,          P,
                       2 * P,    2 * P,     both.data,  both.data + size_t(P) * size_of(type),
                       out.data, grad.data, grads.data, grads.data + size_t(P) * size_of(type)};
  CHECK_CUDA(gated_activation_forward(args, nullptr));
  CHECK_CUDA(gated_activation_backward(args, nullptr));
  std::vector<double> ref(size_t(N * P)), ref_grads(size_t(N * 2 * P));
  for (int64_t n = 0; n < N; ++n) {
    for (int p = 0; p < P; ++p) {
      const size_t gate = size_t(n * 2 * P + p), value = gate + size_t(P), at = size_t(n * P + p);
      const auto [a, slope] = activate64(act, both.host[gate]);
      ref[at] = a * both.host[value];
      ref_grads[gate] = grad.host[at] * both.host[value] * slope;
      ref_grads[value] = grad.host[at] * a;
    }
  }
  const std::string what =
      std::string("gated ") + name_of(type) + " act " + std::to_string(int(act)) + " " + std::to_string(N) + "x" + std::to_string(P);
  compare(what, out.read(), ref, type);
  compare(what + " backward", grads.read(), ref_grads, type);
}

void check_skip(Type type, Type h_type, int64_t N, int F) {
  const int64_t parts = (N + kSkipGateRows - 1) / kSkipGateRows;
  Tensor h(h_type, N * F, 1), skip(Type::float32, F, 1), c(type, N * F, 1), z(type, N * F, 2), grad(type, N * F, 1), out(type, N * F, 0);
  Tensor grad_h(h_type, N * F, 0), grad_c(type, N * F, 0), grad_z(type, N * F, 0), grad_skip(Type::float32, parts * F, 0);
  SkipGate args{type,   h_type,   N,         F,           h.data,      skip.floats(), c.data,
                z.data, out.data, grad.data, grad_h.data, grad_c.data, grad_z.data,   grad_skip.floats()};
  CHECK_CUDA(skip_gate_forward(args, nullptr));
  CHECK_CUDA(skip_gate_backward(args, nullptr));
  std::vector<double> ref(size_t(N * F)), rh(ref), rc(ref), rz(ref), rs(size_t(F), 0.0);
  for (size_t i = 0; i < ref.size(); ++i) {
    const double k = skip.host[i % size_t(F)], sum = h.host[i] + k * c.host[i], s = sigmoid64(z.host[i]), g = grad.host[i];
    ref[i] = sum * z.host[i] * s;
    rh[i] = g * z.host[i] * s;
    rc[i] = rh[i] * k;
    rz[i] = g * sum * s * (1 + z.host[i] * (1 - s));
    rs[i % size_t(F)] += rh[i] * c.host[i];
  }
  const std::string what = std::string("skip_gate ") + name_of(type) + " " + std::to_string(N) + "x" + std::to_string(F);
  compare(what, out.read(), ref, type);
  compare(what + " dh", grad_h.read(), rh, h_type);
  compare(what + " dc", grad_c.read(), rc, type);
  compare(what + " dz", grad_z.read(), rz, type);
  compare(what + " dskip", sum_parts(grad_skip.read(), size_t(F)), rs, Type::float32);
}

void check_blockdiag(Type type, Type out_type, int64_t N, int G, bool has_bias) {
  const int F = 4 * G;
  const int64_t parts = (N + kBlockdiagRows - 1) / kBlockdiagRows;
  Tensor c(type, N * F, 1), x(type, N * F, 1), grad_c(type, N * F, 0), grad_x(type, N * F, 0);
  Tensor grad_weight(Type::float32, parts * 3 * G * 16, 0), grad_bias(Type::float32, parts * 3 * F, 0);
  Blockdiag4 args{type, out_type, N, G, c.data, x.data};
  std::vector<std::unique_ptr<Tensor>> weights, biases, outs, grads;
  for (int i = 0; i < 3; ++i) {
    weights.push_back(std::make_unique<Tensor>(Type::float32, G * 16, 0.5));
    biases.push_back(std::make_unique<Tensor>(Type::float32, F, 0.5));
    outs.push_back(std::make_unique<Tensor>(out_type, N * F, 0));
    grads.push_back(std::make_unique<Tensor>(out_type, N * F, 1));
    args.weight_GOI[i] = weights[i]->floats();
    args.bias_F[i] = has_bias ? biases[i]->floats() : nullptr;
    args.out_NF[i] = outs[i]->data;
    args.grad_out_NF[i] = grads[i]->data;
  }
  args.grad_c_NF = grad_c.data, args.grad_x_NF = grad_x.data, args.grad_weight_R3GOI = grad_weight.floats();
  args.grad_bias_R3F = has_bias ? grad_bias.floats() : nullptr;
  CHECK_CUDA(blockdiag4_forward(args, nullptr));
  CHECK_CUDA(blockdiag4_backward(args, nullptr));
  std::vector<double> rc(size_t(N * F), 0.0), rx(rc), rw(size_t(3 * G * 16), 0.0), rb(size_t(3 * F), 0.0);
  const std::string what = std::string("blockdiag4 ") + name_of(type) + " " + std::to_string(N) + "x" + std::to_string(F);
  for (int part = 0; part < 3; ++part) {
    std::vector<double> ref(size_t(N * F));
    for (int64_t n = 0; n < N; ++n) {
      for (int f = 0; f < F; ++f) {
        const size_t at = size_t(n * F + f);
        double sum = has_bias ? biases[part]->host[size_t(f)] : 0.0;
        const double g = grads[part]->host[at];
        rb[size_t(part * F + f)] += g;
        for (int i = 0; i < 4; ++i) {
          const size_t in = size_t(n * F + f / 4 * 4 + i), weight = size_t(f * 4 + i);
          const double input = (part == 2 ? x : c).host[in];
          sum += weights[part]->host[weight] * input;
          (part == 2 ? rx : rc)[in] += weights[part]->host[weight] * g;
          rw[size_t(part * G * 16) + weight] += g * input;
        }
        ref[at] = sum;
      }
    }
    compare(what + " out " + std::to_string(part), outs[part]->read(), ref, out_type);
  }
  compare(what + " dc", grad_c.read(), rc, type);
  compare(what + " dx", grad_x.read(), rx, type);
  compare(what + " dw", sum_parts(grad_weight.read(), rw.size()), rw, Type::float32);
  if (has_bias) compare(what + " db", sum_parts(grad_bias.read(), rb.size()), rb, Type::float32);
}

void check_all() {
  for (const Type type : {Type::float32, Type::bfloat16, Type::float16}) {
    for (const int D : {1, 8, 60, 127, 1536, 9000}) {
      if (D == 9000 || D == 1536 || D == 8) check_rms_norm(type, 17, D, true, 0);
      check_rms_norm(type, 3, std::min(D, 4096), D % 2 == 0, D == 60 ? 1 : 0);
    }
    for (const int K : {2, 6, 16, 64, 72, 80, 128}) {
      check_rotary(type, 2, 37, 5, 7, K, 0);
      check_rotary(type, 1, 1, 1, 1, K, K == 64 ? 1 : 0);
    }
    for (const auto& [N, P] : {std::pair<int64_t, int>{1, 8}, {3, 61}, {17, 2624}, {130, 120}}) {
      for (int act = 0; act < 6; ++act) check_gated(type, Activation(act), N, P);
      for (const Type h_type : {type, Type::bfloat16}) {
        if (h_type != type && type != Type::float16) continue;
        check_skip(type, h_type, N, P);
        check_blockdiag(type, h_type, N, P == 61 ? 61 : P / 4, P != 120);
      }
    }
  }
  std::printf("%d comparisons, %d failures\n", cases, failures);
}

// Device tensors of random normals, in sets that together exceed L2.
template <typename T>
__global__ void fill(T* x, int64_t count, unsigned seed) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    unsigned h = (unsigned(i) + seed * 0x9E3779B9u) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    h ^= h >> 16;
    x[i] = T(float(h & 0xffff) * 4.6e-5f - 1.5f);
  }
}
constexpr int kSets = 4;
struct Sets {
  std::vector<void*> data;
  explicit Sets(int64_t count, bool wide = false) {
    for (int i = 0; i < kSets; ++i) {
      void* p = nullptr;
      CHECK_CUDA(cudaMalloc(&p, size_t(count) * (wide ? 4 : 2)));
      if (wide)
        fill<<<1024, 256>>>(static_cast<float*>(p), count, unsigned(i + 1));
      else
        fill<<<1024, 256>>>(static_cast<__nv_bfloat16*>(p), count, unsigned(i + 1));
      data.push_back(p);
    }
  }
  ~Sets() {
    for (void* p : data) cudaFree(p);
  }
  void* operator[](int i) const { return data[size_t(i % kSets)]; }
  float* floats(int i) const { return static_cast<float*>((*this)[i]); }
};

void report(const char* name, double bytes, const std::function<cudaError_t(int, cudaStream_t)>& run) {
  // Launches of a graph: what the host needs between them is not the kernel's.
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  constexpr int kRuns = 4 * kSets;
  CHECK_CUDA(run(0, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < kRuns; ++i) CHECK_CUDA(run(i, stream));
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = -2; i < 15; ++i) {
    CHECK_CUDA(cudaEventRecord(begin, stream));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaEventRecord(end, stream));
    CHECK_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  const double us = 1e3 * times[times.size() / 2] / kRuns;
  std::printf("%-44s %6.1f MB | floor %6.1f us | %6.1f us | %4.0f GB/s\n", name, bytes / 1e6, bytes / 4.8e6, us, bytes / us / 1e3);
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
  CHECK_CUDA(cudaStreamDestroy(stream));
}

void time_all(int64_t N, int D, int I, int P, int M) {
  const Type t = Type::bfloat16;
  std::printf("%lld tokens, width %d, inner %d, feed-forward %d, teacher %d; bf16; floor at 4.8 TB/s\n", (long long)N, D, I, P, M);
  {
    Sets x(N * D), r(N * D), y(N * D), w(D);
    report("rms_norm", 4.0 * N * D,
           [&](int i, cudaStream_t s) { return rms_norm_forward({t, N, D, 1e-6f, x[i], nullptr, w[i], nullptr, y[i]}, s); });
    report("rms_norm of x + residual", 8.0 * N * D,
           [&](int i, cudaStream_t s) { return rms_norm_forward({t, N, D, 1e-6f, x[i], r[i], w[i], x[i], y[i]}, s); });
  }
  {
    constexpr int kHeads = 12, kKvHeads = 2, kWidth = 128;
    constexpr int64_t kRow = (kHeads + 2 * kKvHeads) * kWidth, kPositions = 512;
    Sets qkv(N * kRow), cos(kPositions * kWidth / 2, true), sin(kPositions * kWidth / 2, true);
    report("rotary, 14 heads of 128", 4.0 * double(N) * (kHeads + kKvHeads) * kWidth, [&](int i, cudaStream_t s) {
      return rotate_heads({t, N / kPositions, kPositions, kHeads + kKvHeads, kWidth, kPositions * kRow, kRow, kWidth, qkv[i], cos.floats(i),
                           sin.floats(i), 0},
                          s);
    });
  }
  {
    Sets both(N * 2 * M), out(N * M);
    report("SwiGLU (teacher)", 6.0 * N * M, [&](int i, cudaStream_t s) {
      return gated_activation_forward({t, Activation::swish, N, M, 2 * M, 0, both[i], static_cast<char*>(both[i]) + M * 2, out[i]}, s);
    });
  }
  {
    Sets gate(N * P), value(N * P), out(N * P), a(N * P), b(N * P);
    const auto args = [&](int i) {
      return GatedActivation{t, Activation::gelu, N, P, P, P, gate[i], value[i], out[i], out[i], a[i], b[i]};
    };
    report("gated gelu forward", 6.0 * N * P, [&](int i, cudaStream_t s) { return gated_activation_forward(args(i), s); });
    report("gated gelu backward", 10.0 * N * P, [&](int i, cudaStream_t s) { return gated_activation_backward(args(i), s); });
  }
  const int64_t U = N * I;
  {
    Sets h(U), c(U), z(U), out(U), a(U), b(U), d(U), skip(I, true), parts((N + kSkipGateRows - 1) / kSkipGateRows * I, true);
    const auto args = [&](int i) {
      return SkipGate{t, t, N, I, h[i], skip.floats(i), c[i], z[i], out[i], out[i], a[i], b[i], d[i], parts.floats(i)};
    };
    report("skip_gate forward", 8.0 * double(U), [&](int i, cudaStream_t s) { return skip_gate_forward(args(i), s); });
    report("skip_gate backward", 14.0 * double(U), [&](int i, cudaStream_t s) { return skip_gate_backward(args(i), s); });
  }
  {
    Sets c(U), x(U), q(U), k(U), v(U), a(U), b(U), w(I * 4, true), parts((N + kBlockdiagRows - 1) / kBlockdiagRows * 3 * I * 4, true);
    const auto args = [&](int i) {
      Blockdiag4 g{t, t, N, I / 4, c[i], x[i]};
      void* outs[3] = {q[i], k[i], v[i]};
      for (int part = 0; part < 3; ++part) {
        g.weight_GOI[part] = w.floats(i + part);
        g.bias_F[part] = nullptr;
        g.out_NF[part] = outs[part];
        g.grad_out_NF[part] = outs[part];
      }
      g.grad_c_NF = a[i], g.grad_x_NF = b[i], g.grad_weight_R3GOI = parts.floats(i), g.grad_bias_R3F = nullptr;
      return g;
    };
    report("block-diagonal q, k, v forward", 10.0 * double(U), [&](int i, cudaStream_t s) { return blockdiag4_forward(args(i), s); });
    report("block-diagonal q, k, v backward", 14.0 * double(U), [&](int i, cudaStream_t s) { return blockdiag4_backward(args(i), s); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") check_all();
  if (what == "time") time_all(4096, 1536, 3072, 2624, 8960);
  return failures == 0 ? 0 : 1;
}
