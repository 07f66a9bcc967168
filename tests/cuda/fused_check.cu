// Checks and times the memory-bound kernels of kernels/cuda around the cells: rms_norm, rotary, layer_norm, causal_conv, gated,
// blockdiag, fp8_rows, gate_parts, state_sum.
// Needs a GPU, and no LibTorch: `make cuda` builds it as build/cuda/tests/fused_check.
// Run: check | time
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernel_timing.cuh"
#include "kernels/cuda/blockdiag.h"
#include "kernels/cuda/causal_conv.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8_rows.h"
#include "kernels/cuda/gate_parts.h"
#include "kernels/cuda/gated.h"
#include "kernels/cuda/layer_norm.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rotary.h"
#include "kernels/cuda/state_sum.h"

using namespace distil_xlstm::kernels::cuda;

namespace {

std::mt19937_64 generator(std::random_device{}());
int failures = 0, cases = 0;

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

void check_rms_norm(Type type, int64_t N, int D, int64_t offset) {
  Tensor x(type, N * D, 2.0, offset), weight(type, D, 1.0, offset), y(type, N * D, 0, offset), copy(type, N * D, 0, offset);
  const RmsNorm args{type, N, D, 1e-6f, x.data, weight.data, y.data, N == 3 ? nullptr : copy.data};
  CHECK_CUDA(rms_norm_forward(args, nullptr));
  if (N != 3) compare(std::string("rms_norm's copy ") + name_of(type), copy.read(), x.host, type);
  std::vector<double> ref(x.host.size());
  for (int64_t n = 0; n < N; ++n) {
    double squares = 0;
    for (int d = 0; d < D; ++d) squares += x.host[size_t(n * D + d)] * x.host[size_t(n * D + d)];
    for (int d = 0; d < D; ++d) ref[size_t(n * D + d)] = x.host[size_t(n * D + d)] / std::sqrt(squares / D + 1e-6) * weight.host[size_t(d)];
  }
  compare(std::string("rms_norm ") + name_of(type) + " " + std::to_string(N) + "x" + std::to_string(D), y.read(), ref, type);
}

// The first H of `all` heads of a joint product; the others must stay as they are. Any numbers do for the tables.
// Every value within half a step of e4m3 (3 bits of mantissa; 2^-9 below 2^-6) of the float64 one over the row's scale.
void check_fp8_rows(Type type, Fp8Source source, int64_t N, int K, double magnitude) {
  const int width = source == Fp8Source::swiglu ? 2 * K : K;
  Tensor x(type, N * width, magnitude, 0), weight(type, K, 1.0, 0), scale(Type::float32, N, 0, 0);
  Tensor values(Type::float32, (N * K + 3) / 4, 0, 0);
  const Fp8Rows args{type, source, N, K, x.data, source == Fp8Source::rms_norm ? weight.data : nullptr, 1e-6f, values.data, scale.floats()};
  CHECK_CUDA(fp8_rows(args, nullptr));
  std::vector<unsigned char> bytes(size_t(N) * K);
  CHECK_CUDA(cudaDeviceSynchronize());
  CHECK_CUDA(cudaMemcpy(bytes.data(), values.data, bytes.size(), cudaMemcpyDeviceToHost));
  const auto scales = scale.read();
  double worst = 0;
  for (int64_t row = 0; row < N; ++row) {
    const double* in = &x.host[size_t(row * width)];
    std::vector<double> wanted(in, in + K);
    double squares = 0, largest = 0;
    for (int k = 0; k < K; ++k) squares += in[k] * in[k];
    for (int k = 0; k < K; ++k) {
      if (source == Fp8Source::rms_norm) wanted[size_t(k)] *= weight.host[size_t(k)] / std::sqrt(squares / K + 1e-6);
      if (source == Fp8Source::swiglu) wanted[size_t(k)] *= sigmoid64(in[k]) * in[K + k];
      largest = std::max(largest, std::abs(wanted[size_t(k)]));
    }
    const double smallest = 1.17549435e-38, expected = std::max(largest / 448, smallest);
    worst = std::max(worst, std::abs(scales[size_t(row)] / expected - 1) * 1e3);  // 1e-3 of the scale counts as one half step
    for (int k = 0; k < K; ++k) {
      __nv_fp8_e4m3 number;
      number.__x = bytes[size_t(row * K + k)];
      const double exact = wanted[size_t(k)] / expected, half_step = std::max(std::abs(exact) / 16, 1.0 / 1024) * 1.01 + 1e-4;
      const double off = std::abs(double(float(number)) - exact) / half_step;
      worst = std::isnan(off) ? 1e30 : std::max(worst, off);
    }
  }
  ++cases;
  if (worst < 1) return;
  ++failures;
  std::printf("FAIL fp8_rows %s source %d %lldx%d magnitude %.0e: %.3g half steps off\n", name_of(type), int(source), (long long)N, K,
              magnitude, worst);
}

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

void check_state_sum(Type type, int64_t count, int num_states, bool accumulates, int64_t offset) {
  Tensor sum(Type::float32, count, accumulates ? 1.0 : 0.0, offset);
  std::vector<double> ref(size_t(count), 0.0);
  if (accumulates) ref = sum.host;
  StateSum args{.type = type, .count = count, .num_states = num_states, .sum = sum.floats(), .accumulates = accumulates};
  std::vector<std::unique_ptr<Tensor>> states;
  for (int n = 0; n < num_states; ++n) {
    states.push_back(std::make_unique<Tensor>(type, count, 1.0, offset));
    args.states[n] = states.back()->data;
    for (size_t i = 0; i < ref.size(); ++i) ref[i] = double(float(ref[i]) + float(states.back()->host[i]));  // the same roundings
  }
  CHECK_CUDA(state_sum(args, nullptr));
  compare(std::string("state_sum ") + name_of(type) + " " + std::to_string(count) + " x " + std::to_string(num_states), sum.read(), ref,
          Type::float32);
}

std::string shape_name(const char* what, Type type, std::initializer_list<int64_t> sizes) {
  std::string name = std::string(what) + " " + name_of(type);
  for (const int64_t size : sizes) name.append(" ").append(std::to_string(size));
  return name;
}

int64_t norm_parts(int64_t N) {
  return (N + norm_block_rows(N) - 1) / norm_block_rows(N);
}

// has_residual: of a sum that the kernel makes, with a gradient that is added.
void check_layer_norm(Type type, Type y_type, int64_t N, int G, int K, int64_t offset, bool has_residual) {
  const int64_t width = int64_t(G) * K, parts = norm_parts(N);
  Tensor x(type, N * width, 2.0, offset), weight(Type::float32, width, 0.3), y(y_type, N * width, 0, offset);
  Tensor grad_y(y_type, N * width, 1.0, offset), grad_x(type, N * width, 0, offset), grad_weight(Type::float32, parts * width, 0);
  Tensor mean(Type::float32, N * G, 0), rstd(Type::float32, N * G, 0);
  Tensor added(y_type, N * width, 1.0, offset), sum_of_both(type, N * width, 0, offset), residual(type, N * width, 1.0, offset);
  LayerNorm args{type, y_type, N, G, K, 1e-5f, x.data, weight.floats(), y.data, mean.floats(), rstd.floats()};
  args.added_NGK = has_residual ? added.data : nullptr;
  args.sum_NGK = has_residual ? sum_of_both.data : nullptr;
  CHECK_CUDA(layer_norm_forward(args, nullptr));
  args.x_NGK = has_residual ? sum_of_both.data : x.data;
  args.added_NGK = args.sum_NGK = nullptr;
  args.grad_y_NGK = grad_y.data;
  args.grad_residual_NGK = has_residual ? residual.data : nullptr;
  args.grad_x_NGK = grad_x.data;
  args.grad_weight_PGK = grad_weight.floats();
  CHECK_CUDA(layer_norm_backward(args, nullptr));
  if (has_residual) {
    for (size_t i = 0; i < x.host.size(); ++i) x.host[i] = rounded(x.host[i] + added.host[i], type);
  }
  std::vector<double> ref(size_t(N * width)), ref_x(ref), ref_weight(size_t(width), 0.0), ref_mean(size_t(N * G)), ref_rstd(ref_mean);
  for (int64_t group = 0; group < N * G; ++group) {
    const size_t first = size_t(group * K), factors = size_t(group % G * K);
    double sum = 0, squares = 0, grads = 0, grads_normalized = 0;
    for (int k = 0; k < K; ++k) sum += x.host[first + size_t(k)];
    for (int k = 0; k < K; ++k) squares += (x.host[first + size_t(k)] - sum / K) * (x.host[first + size_t(k)] - sum / K);
    const double scale = 1 / std::sqrt(squares / K + 1e-5);
    const auto normalized = [&](int k) { return (x.host[first + size_t(k)] - sum / K) * scale; };
    const auto grad = [&](int k) { return grad_y.host[first + size_t(k)] * (1 + weight.host[factors + size_t(k)]); };
    for (int k = 0; k < K; ++k) {
      ref[first + size_t(k)] = normalized(k) * (1 + weight.host[factors + size_t(k)]);
      ref_weight[factors + size_t(k)] += grad_y.host[first + size_t(k)] * normalized(k);
      grads += grad(k) / K;
      grads_normalized += grad(k) * normalized(k) / K;
    }
    for (int k = 0; k < K; ++k) {
      ref_x[first + size_t(k)] = scale * (grad(k) - grads - normalized(k) * grads_normalized);
      if (has_residual) ref_x[first + size_t(k)] += residual.host[first + size_t(k)];
    }
    ref_mean[size_t(group)] = sum / K;
    ref_rstd[size_t(group)] = scale;
  }
  const std::string what =
      shape_name("layer_norm", type, {N, G, K, offset}) + " to " + name_of(y_type) + (has_residual ? " with a residual" : "");
  if (has_residual) compare(what + " sum", sum_of_both.read(), x.host, type);
  compare(what, y.read(), ref, y_type);
  compare(what + " mean", mean.read(), ref_mean, Type::float32);
  compare(what + " rstd", rstd.read(), ref_rstd, Type::float32);
  compare(what + " dx", grad_x.read(), ref_x, type);
  compare(what + " dw", sum_parts(grad_weight.read(), size_t(width)), ref_weight, Type::float32);
}

// The two parts of a value miss it by 2^-17 at most, so the sums of products with them do too.
void check_gate_parts(int64_t N, int64_t R) {
  Tensor input(Type::float32, N * R, 1.0), forget(Type::float32, N * R, 3.0), parts(Type::bfloat16, N * 4 * R, 0);
  CHECK_CUDA(split_gates({N, R, input.floats(), forget.floats(), parts.data}, nullptr));
  const std::vector<double> got = parts.read();
  std::vector<double> sums, wanted;
  for (int64_t row = 0; row < N; ++row) {
    for (int64_t i = 0; i < 2 * R; ++i) {
      const double high = got[size_t(row * 4 * R + i)], low = got[size_t(row * 4 * R + 2 * R + i)];
      wanted.push_back((i < R ? input : forget).host[size_t(row * R + i % R)]);
      sums.push_back(high + low);
      if (high != rounded(wanted.back(), Type::bfloat16)) sums.back() = NAN;
    }
  }
  compare(shape_name("gate parts", Type::bfloat16, {N, R}), sums, wanted, Type::float32);

  Tensor products(Type::float32, N * 4 * R, 1.0), input_bias(Type::float32, R, 1.0), forget_bias(Type::float32, R, 1.0);
  Tensor input_gate(Type::float32, N * R, 0), forget_gate(Type::float32, N * R, 0);
  CHECK_CUDA(sum_gate_parts(
      {N, int(R), products.floats(), input_bias.floats(), forget_bias.floats(), input_gate.floats(), forget_gate.floats()}, nullptr));
  for (const int gate : {0, 1}) {
    std::vector<double> ref;
    for (int64_t i = 0; i < N * R; ++i) {
      const size_t at = size_t(i / R * 4 * R + gate * R + i % R);
      ref.push_back(products.host[at] + products.host[at + size_t(2 * R)] + (gate == 0 ? input_bias : forget_bias).host[size_t(i % R)]);
    }
    compare(shape_name("gate sums", Type::float32, {N, R, gate}), (gate == 0 ? input_gate : forget_gate).read(), ref, Type::float32);
  }
}

struct ConvReference {
  std::vector<double> y, state, grad_x, grad_initial, grad_weight, grad_bias;
};
ConvReference convolve64(const CausalConv& c, const std::vector<uint8_t>& starts, const Tensor& x, const Tensor& initial,
                         const Tensor& weight, const Tensor& bias, const Tensor& grad_y, const Tensor& grad_state) {
  const int B = c.B, S = c.S, F = c.F, K = c.K, J = K - 1;
  ConvReference out;
  out.y.resize(x.host.size());
  out.state.resize(initial.host.size());
  out.grad_x.resize(x.host.size());
  out.grad_initial.resize(initial.host.size());
  out.grad_weight.resize(weight.host.size());
  out.grad_bias.resize(bias.host.size());
  for (int b = 0; b < B; ++b) {
    const auto starts_at = [&](int t) { return t >= 0 && starts[size_t(b * S + t)] != 0; };
    for (int f = 0; f < F; ++f) {
      const auto place = [&](int p) { return size_t((p >= 0 ? b * S + p : b * J + J + p) * F + f); };
      const auto input = [&](int p) { return (p >= 0 ? x : initial).host[place(p)]; };
      const auto grad_input = [&](int p) -> double& { return (p >= 0 ? out.grad_x : out.grad_initial)[place(p)]; };
      for (int t = 0; t < S; ++t) {
        int reach = 0;
        while (reach < J && !starts_at(t - reach)) ++reach;
        double pre = bias.host[size_t(f)];
        for (int age = 0; age <= reach; ++age) pre += weight.host[size_t(f * K + J - age)] * input(t - age);
        const double s = sigmoid64(pre), grad = grad_y.host[place(t)] * s * (1 + pre * (1 - s));
        out.y[place(t)] = pre * s;
        out.grad_bias[size_t(f)] += grad;
        for (int age = 0; age <= reach; ++age) {
          out.grad_weight[size_t(f * K + J - age)] += grad * input(t - age);
          grad_input(t - age) += weight.host[size_t(f * K + J - age)] * grad;
        }
      }
      bool is_cut = false;
      for (int j = J - 1; j >= 0; --j) {
        const int p = S - J + j;
        is_cut = is_cut || starts_at(p + 1 < S ? p + 1 : -1);
        const size_t row = size_t((b * J + j) * F + f);
        out.state[row] = is_cut ? 0 : input(p);
        if (!is_cut) grad_input(p) += grad_state.host[row];
      }
    }
  }
  return out;
}

// has_state: with an initial state and a gradient of the final one; without them, which then are zeros, and with another reader's gradient.
void check_conv(Type type, int B, int S, int F, int K, double start_probability, int64_t offset, bool has_state = true) {
  const int J = K - 1;
  const int64_t parts = int64_t(B) * ((S + kConvChunk - 1) / kConvChunk), count = int64_t(B) * S * F;
  Tensor x(type, count, 1.0, offset), initial(type, B * J * F, 1.0), weight(Type::float32, F * K, 0.5), bias(Type::float32, F, 0.5);
  Tensor y(type, count, 0), state(type, B * J * F, 0), grad_y(type, count, 1.0), grad_state(type, B * J * F, 1.0);
  Tensor grad_x(type, count, 0), grad_initial(type, B * J * F, 0), pre(Type::float32, count, 0), residual(type, count, 1.0);
  Tensor grad_weight(Type::float32, parts * K * F, 0), grad_bias(Type::float32, parts * F, 0);
  std::vector<uint8_t> starts(size_t(B * S));
  std::bernoulli_distribution is_start(start_probability);
  for (uint8_t& start : starts) start = is_start(generator);
  uint8_t* device_starts = nullptr;
  CHECK_CUDA(cudaMalloc(&device_starts, starts.size()));
  CHECK_CUDA(cudaMemcpy(device_starts, starts.data(), starts.size(), cudaMemcpyHostToDevice));
  if (!has_state) {
    std::fill(initial.host.begin(), initial.host.end(), 0.0);
    std::fill(grad_state.host.begin(), grad_state.host.end(), 0.0);
  }
  const CausalConv args{type,          B,      S,         F, K, x.data, weight.floats(), bias.floats(), has_state ? initial.data : nullptr,
                        device_starts, y.data, state.data};
  CHECK_CUDA(causal_conv_forward(args, nullptr));
  CHECK_CUDA(causal_conv_backward({args, grad_y.data, has_state ? grad_state.data : nullptr, has_state ? nullptr : residual.data,
                                   causal_conv_holds_window(args) ? nullptr : pre.floats(), grad_x.data,
                                   has_state ? grad_initial.data : nullptr, grad_weight.floats(), grad_bias.floats()},
                                  nullptr));
  ConvReference ref = convolve64(args, starts, x, initial, weight, bias, grad_y, grad_state);
  if (!has_state) {
    for (size_t i = 0; i < ref.grad_x.size(); ++i) ref.grad_x[i] += residual.host[i];
  }
  std::vector<double> by_feature(ref.grad_weight.size());
  const std::vector<double> by_tap = sum_parts(grad_weight.read(), by_feature.size());
  for (int f = 0; f < F; ++f) {
    for (int k = 0; k < K; ++k) by_feature[size_t(f * K + k)] = by_tap[size_t(k * F + f)];
  }
  const std::string what = shape_name("causal_conv", type, {B, S, F, K, offset}) + " starts " + std::to_string(start_probability) +
                           (has_state ? "" : " without a state");
  compare(what, y.read(), ref.y, type);
  compare(what + " dx", grad_x.read(), ref.grad_x, type);
  compare(what + " dw", by_feature, ref.grad_weight, Type::float32);
  compare(what + " db", sum_parts(grad_bias.read(), size_t(F)), ref.grad_bias, Type::float32);
  if (J > 0) {
    compare(what + " state", state.read(), ref.state, type);
    if (has_state) compare(what + " dinitial", grad_initial.read(), ref.grad_initial, type);
  }
  CHECK_CUDA(cudaFree(device_starts));
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
  Tensor residual(type, N * F, 1);  // added where there is no bias
  Blockdiag4 args{type, out_type, N, G, c.data, x.data};
  args.grad_residual_NF = has_bias ? nullptr : residual.data;
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
  std::vector<double> rc(has_bias ? std::vector<double>(size_t(N * F), 0.0) : residual.host), rx(size_t(N * F), 0.0),
      rw(size_t(3 * G * 16), 0.0), rb(size_t(3 * F), 0.0);
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
      if (D == 9000 || D == 1536 || D == 8) check_rms_norm(type, 17, D, 0);
      check_rms_norm(type, 3, std::min(D, 4096), D == 60 ? 1 : 0);
    }
    for (const auto source : {Fp8Source::values, Fp8Source::swiglu, Fp8Source::rms_norm}) {
      for (const int K : {8, 40, 576, 1536, 4104, 8960, 18944}) check_fp8_rows(type, source, K == 576 ? 67 : 3, K, 2.0);
      if (type != Type::float16) check_fp8_rows(type, source, 2, 64, 1e-18);
    }
    for (const int num_states : {1, 2, 3, 4}) {
      for (const int64_t count : {1, 61, 4096}) check_state_sum(type, count, num_states, num_states % 2 == 0, count == 61 ? 1 : 0);
    }
    for (const int K : {2, 6, 16, 64, 72, 80, 128}) {
      check_rotary(type, 2, 37, 5, 7, K, 0);
      check_rotary(type, 1, 1, 1, 1, K, K == 64 ? 1 : 0);
    }
    for (const Type y_type : {type, Type::bfloat16, Type::float16}) {
      if (y_type == type && type == Type::float32) check_layer_norm(type, y_type, 5, 1, 4100, 0, true);
      if (y_type != type && type != Type::float32) continue;
      for (const auto& [N, G, K] : {std::tuple<int64_t, int, int>{1, 1, 8},
                                    {3, 12, 128},
                                    {70, 3, 24},
                                    {130, 12, 48},
                                    {17, 12, 256},
                                    {67, 9, 96},
                                    {5, 70, 64},
                                    {33, 1, 512},
                                    {130, 1, 576},
                                    {9, 2, 520},
                                    {17, 1, 1024},
                                    {70, 1, 1536},
                                    {3, 1, 4096},
                                    {5, 1, 4104},
                                    {17, 3, 21},
                                    {65, 2, 130}}) {
        for (const bool has_residual : {false, true}) check_layer_norm(type, y_type, N, G, K, 0, has_residual);
      }
      check_layer_norm(type, y_type, 7, 2, 48, 1, true);
      check_layer_norm(type, y_type, 5000, 1, 64, 0, true);  // more than 32 rows a block
    }
    for (const int S : {1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 34, 35, 36, 64, 65, 67, 100}) {
      for (const double start_probability : {0.0, 0.2, 0.9}) check_conv(type, 2, S, S % 2 == 0 ? 8 : 516, 4, start_probability, 0);
    }
    for (const int K : {1, 2, 4, 7}) check_conv(type, 2, 37, 33, K, 0.1, 0, K == 2);
    for (const int S : {1, 3, 17, 67}) check_conv(type, 2, S, 516, 4, 0.2, 0, false);
    for (const int F : {2, 6, 130}) check_conv(type, 2, 37, F, 4, 0.2, 0, F == 6);
    check_conv(type, 2, 37, 32, 3, 0.1, 0);
    check_conv(type, 2, 37, 32, 4, 0.1, 1);
    for (const auto& [N, P] : {std::pair<int64_t, int>{1, 8}, {3, 61}, {17, 2624}, {130, 120}}) {
      for (int act = 0; act < 6; ++act) check_gated(type, Activation(act), N, P);
      for (const Type h_type : {type, Type::bfloat16}) {
        if (h_type != type && type != Type::float16) continue;
        check_skip(type, h_type, N, P);
        check_blockdiag(type, h_type, N, P == 61 ? 61 : P / 4, P != 120);
      }
    }
  }
  for (const auto& [N, R] : {std::pair<int64_t, int64_t>{1, 1}, {1, 3 * 264 * 12}, {3, 7}, {257, 12}}) check_gate_parts(N, R);
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
  const double us = graph_microseconds(4 * kSets, 15, run);
  std::printf("%-44s %6.1f MB | floor %6.1f us | %6.1f us | %4.0f GB/s\n", name, bytes / 1e6, bytes / 4.8e6, us, bytes / us / 1e3);
}

void time_all(int64_t N, int D, int I, int P, int M) {
  const Type t = Type::bfloat16;
  std::printf("%lld tokens, width %d, inner %d, feed-forward %d, teacher %d; bf16; floor at 4.8 TB/s\n", (long long)N, D, I, P, M);
  {
    Sets x(N * D), y(N * D), w(D);
    report("rms_norm", 4.0 * N * D, [&](int i, cudaStream_t s) { return rms_norm_forward({t, N, D, 1e-6f, x[i], w[i], y[i]}, s); });
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
    Sets x(N * D), w(D), both(N * 2 * M), out(N * M), scale(N, true);
    const auto rows = [&](Fp8Source source, int K, Sets& in, int i, cudaStream_t s) {
      return fp8_rows({t, source, N, K, in[i], source == Fp8Source::rms_norm ? w[i] : nullptr, 1e-6f, out[i], scale.floats(i)}, s);
    };
    report("fp8 of RMSNorm", 3.0 * N * D, [&](int i, cudaStream_t s) { return rows(Fp8Source::rms_norm, D, x, i, s); });
    report("fp8 of SwiGLU", 5.0 * N * M, [&](int i, cudaStream_t s) { return rows(Fp8Source::swiglu, M, both, i, s); });
  }
  {
    Sets x(N * D, true), y(N * D), a(N * D, true), b(N * D, true), mean(N, true), rstd(N, true), w(D, true), parts(norm_parts(N) * D, true);
    const auto args = [&](int i) {
      return LayerNorm{Type::float32, t, N, 1, D, 1e-5f, x[i], w.floats(i), y[i], mean.floats(i), rstd.floats(i)};
    };
    const auto sums = [&](int i) {
      LayerNorm norm = args(i);
      norm.added_NGK = y[i + 1], norm.sum_NGK = a[i];
      return norm;
    };
    const auto backward = [&](int i, bool has_residual) {
      LayerNorm norm = args(i);
      norm.grad_y_NGK = y[i], norm.grad_residual_NGK = has_residual ? b[i] : nullptr, norm.grad_x_NGK = a[i];
      norm.grad_weight_PGK = parts.floats(i);
      return norm;
    };
    const double U = double(N * D);
    report("LayerNorm of float32 to bf16", 6.0 * U, [&](int i, cudaStream_t s) { return layer_norm_forward(args(i), s); });
    report("the same, of a sum", 12.0 * U, [&](int i, cudaStream_t s) { return layer_norm_forward(sums(i), s); });
    report("LayerNorm backward", 10.0 * U, [&](int i, cudaStream_t s) { return layer_norm_backward(backward(i, false), s); });
    report("the same, with the stream's", 14.0 * U, [&](int i, cudaStream_t s) { return layer_norm_backward(backward(i, true), s); });
  }
  {
    constexpr int kHeads = 12;
    Sets x(N * I), y(N * I), a(N * I), mean(N * kHeads, true), rstd(N * kHeads, true), w(I, true), parts(norm_parts(N) * I, true);
    const auto args = [&](int i) {
      return LayerNorm{t, t, N, kHeads, I / kHeads, 1e-5f, x[i], w.floats(i), y[i], mean.floats(i), rstd.floats(i)};
    };
    const auto backward = [&](int i) {
      LayerNorm norm = args(i);
      norm.grad_y_NGK = y[i], norm.grad_x_NGK = a[i], norm.grad_weight_PGK = parts.floats(i);
      return norm;
    };
    report("multi-head norm", 4.0 * double(N * I), [&](int i, cudaStream_t s) { return layer_norm_forward(args(i), s); });
    report("multi-head norm backward", 6.0 * double(N * I), [&](int i, cudaStream_t s) { return layer_norm_backward(backward(i), s); });
  }
  {
    constexpr int kRow = 512;
    const int B = int(N) / kRow;
    Sets x(N * I), y(N * I), a(N * I), tail(int64_t(B) * 3 * I), w(int64_t(I) * 4, true), bias(I, true);
    const int64_t num_parts = int64_t(B) * (kRow / kConvChunk);
    Sets weight_parts(num_parts * I * 4, true), bias_parts(num_parts * I, true);
    const auto args = [&](int i) {
      return CausalConv{t, B, kRow, I, 4, x[i], w.floats(i), bias.floats(i), tail[i], nullptr, y[i], tail[i + 1]};
    };
    report("causal convolution", 4.0 * double(N * I), [&](int i, cudaStream_t s) { return causal_conv_forward(args(i), s); });
    report("causal convolution backward", 6.0 * double(N * I), [&](int i, cudaStream_t s) {
      return causal_conv_backward(
          {args(i), y[i], tail[i], nullptr, nullptr, a[i], tail[i + 1], weight_parts.floats(i), bias_parts.floats(i)}, s);
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
