// Checks the CUDA sLSTM scan against float64 on the CPU and times it; no LibTorch. Needs a GPU.
//   slstm_scan_check check [quick]     relative errors over odd shapes, resets, extreme gates; fails past the limits
//   slstm_scan_check time              milliseconds by shape and type
//   slstm_scan_check one B H K         of one shape, in bfloat16
// Needs a GPU, and no LibTorch: `make cuda` builds it as build/cuda/tests/slstm_scan_check.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/slstm_scan.h"
#include "kernels/reference/reference.h"

namespace {

namespace gpu = distil_xlstm::kernels::cuda;
namespace reference = distil_xlstm::kernels::reference;
using Values = std::vector<double>;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

const char* name(gpu::Type type) {
  return type == gpu::Type::float32 ? "float32" : type == gpu::Type::bfloat16 ? "bfloat16" : "float16";
}
size_t width(gpu::Type type) {
  return type == gpu::Type::float32 ? 4 : 2;
}

// Device memory, filled with bytes that read as NaN in every type.
class Buffer {
 public:
  explicit Buffer(size_t size_bytes) : size_bytes_(size_bytes) {
    require(cudaMalloc(&data_, size_bytes), "cudaMalloc");
    require(cudaMemset(data_, 0xFF, size_bytes), "cudaMemset");
  }
  Buffer(Buffer&& other) noexcept : data_(other.data_), size_bytes_(other.size_bytes_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  template <typename T = void>
  T* get() const {
    return static_cast<T*>(data_);
  }
  std::vector<uint8_t> bytes() const {
    std::vector<uint8_t> out(size_bytes_);
    require(cudaMemcpy(out.data(), data_, size_bytes_, cudaMemcpyDeviceToHost), "copy to host");
    return out;
  }
  void set(const void* from) { require(cudaMemcpy(data_, from, size_bytes_, cudaMemcpyHostToDevice), "copy to device"); }
  size_t size() const { return size_bytes_; }

 private:
  void* data_ = nullptr;
  size_t size_bytes_;
};

std::vector<uint8_t> encode(const Values& values, gpu::Type type) {
  std::vector<uint8_t> out(values.size() * width(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == gpu::Type::float32) reinterpret_cast<float*>(out.data())[i] = float(values[i]);
    if (type == gpu::Type::bfloat16) reinterpret_cast<__nv_bfloat16*>(out.data())[i] = __float2bfloat16(float(values[i]));
    if (type == gpu::Type::float16) reinterpret_cast<__half*>(out.data())[i] = __float2half(float(values[i]));
  }
  return out;
}
Values decode(const std::vector<uint8_t>& bytes, gpu::Type type) {
  Values out(bytes.size() / width(type));
  for (size_t i = 0; i < out.size(); ++i) {
    if (type == gpu::Type::float32) out[i] = reinterpret_cast<const float*>(bytes.data())[i];
    if (type == gpu::Type::bfloat16) out[i] = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(bytes.data())[i]);
    if (type == gpu::Type::float16) out[i] = __half2float(reinterpret_cast<const __half*>(bytes.data())[i]);
  }
  return out;
}
Values rounded(const Values& values, gpu::Type type) {
  return decode(encode(values, type), type);
}
Buffer upload(const Values& values, gpu::Type type) {
  const std::vector<uint8_t> bytes = encode(values, type);
  Buffer out(bytes.size());
  out.set(bytes.data());
  return out;
}
Values download(const Buffer& buffer, gpu::Type type) {
  return decode(buffer.bytes(), type);
}

struct Case {
  int B, S, H, K;
  bool with_starts, with_state;
  double gate_scale = 1, shift_i = 0, shift_f = 0, shift_o = 0;
};

struct Data {
  Values wx, r, bias, hidden, cell, normalizer, stabilizer, grad_y, grad_hidden, weight_cell, weight_normalizer;
  std::vector<uint8_t> is_start;

  Data(const Case& c, gpu::Type type, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const auto randn = [&](size_t count, double scale) {
      Values x(count);
      for (double& v : x) v = normal(random) * scale;
      return x;
    };
    const size_t states = size_t(c.B) * c.H * c.K, tokens = states * c.S;
    wx = randn(4 * tokens, c.gate_scale);
    for (size_t i = 0; i < wx.size(); ++i) {
      const size_t gate = i / c.K % 4;
      wx[i] += gate == 0 ? c.shift_i : gate == 1 ? c.shift_f : gate == 3 ? c.shift_o : 0.0;
    }
    wx = rounded(wx, type);
    r = rounded(randn(size_t(c.H) * c.K * 4 * c.K, 1.0 / std::sqrt(double(c.K))), type);
    bias = rounded(randn(size_t(c.H) * 4 * c.K, 1.0), gpu::Type::float32);
    grad_y = rounded(randn(tokens, 1.0), type);
    grad_hidden = rounded(randn(states, 1.0), gpu::Type::float32);
    weight_cell = randn(states, 1.0);
    weight_normalizer = randn(states, 1.0);
    hidden = cell = normalizer = stabilizer = Values(states, 0.0);
    if (c.with_state) {
      for (size_t i = 0; i < states; ++i) {
        normalizer[i] = 1 + std::abs(normal(random));
        cell[i] = normalizer[i] * std::tanh(normal(random));
        stabilizer[i] = normal(random);
        hidden[i] = std::tanh(normal(random));
      }
      cell = rounded(cell, gpu::Type::float32);
      normalizer = rounded(normalizer, gpu::Type::float32);
      stabilizer = rounded(stabilizer, gpu::Type::float32);
      hidden = rounded(hidden, gpu::Type::float32);
    }
    is_start.assign(size_t(c.B) * c.S, 0);
    if (c.with_starts) {
      for (uint8_t& x : is_start) x = random() % 7 == 0;
    }
  }
};

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

struct Result {
  Values y, hidden, ratio, log_size;  // ratio c / n and log(n) + m do not depend on the frame
  Values grad_wx, grad_r, grad_bias, grad_hidden, grad_cell, grad_normalizer;
};

// Spec 1.3 and 6.1 as written, in double. The gradients of the final cell and normalizer are weight / n: the same in every frame.
Result run_reference(const Case& c, const Data& d) {
  const int B = c.B, S = c.S, H = c.H, K = c.K;
  Result out;
  Values hidden = d.hidden, cell = d.cell, normalizer = d.normalizer, stabilizer = d.stabilizer;
  out.y.resize(d.grad_y.size());
  reference::slstm({B, S, H, K}, d.wx.data(), d.r.data(), d.bias.data(), d.is_start.data(),
                   {hidden.data(), cell.data(), normalizer.data(), stabilizer.data()}, out.y.data());
  out.hidden = hidden;
  for (size_t i = 0; i < cell.size(); ++i) {
    out.ratio.push_back(cell[i] / normalizer[i]);
    out.log_size.push_back(std::log(normalizer[i]) + stabilizer[i]);
  }
  out.grad_wx.assign(d.wx.size(), 0);
  out.grad_r.assign(d.r.size(), 0);
  out.grad_bias.assign(d.bias.size(), 0);
  out.grad_hidden.assign(cell.size(), 0);
  out.grad_cell = out.grad_normalizer = out.grad_hidden;
  struct Saved {
    double i, f, z, o, slope, c, n, c_before, n_before, y;
  };
  std::vector<Saved> saved(size_t(S) * K);
  Values before(size_t(S) * K);
  for (int b = 0; b < B; ++b) {
    for (int h = 0; h < H; ++h) {
      const size_t at = (size_t(b) * H + h) * K;
      Values y(d.hidden.begin() + at, d.hidden.begin() + at + K), cs(d.cell.begin() + at, d.cell.begin() + at + K),
          ns(d.normalizer.begin() + at, d.normalizer.begin() + at + K), ms(d.stabilizer.begin() + at, d.stabilizer.begin() + at + K),
          p(4 * K);
      for (int t = 0; t < S; ++t) {
        if (d.is_start[size_t(b) * S + t]) y = cs = ns = ms = Values(K, 0.0);
        std::copy(y.begin(), y.end(), before.begin() + size_t(t) * K);
        const size_t token = (size_t(b) * S + t) * H + h;
        for (int j = 0; j < 4 * K; ++j) p[j] = d.wx[token * 4 * K + j] + d.bias[size_t(h) * 4 * K + j];
        for (int e = 0; e < K; ++e) {
          for (int j = 0; j < 4 * K; ++j) p[j] += d.r[(size_t(h) * K + e) * 4 * K + j] * y[e];
        }
        for (int u = 0; u < K; ++u) {
          const double carried = std::min(p[K + u], 0.0) - std::log1p(std::exp(-std::abs(p[K + u]))) + ms[u];
          const double m = ns[u] == 0 ? p[u] : std::max(p[u], carried);
          Saved& s = saved[size_t(t) * K + u];
          s.c_before = cs[u];
          s.n_before = ns[u];
          s.i = std::min(1.0, std::exp(p[u] - m));
          s.f = std::min(1.0, std::exp(carried - m));
          s.z = std::tanh(p[2 * K + u]);
          s.o = sigmoid(p[3 * K + u]);
          s.slope = sigmoid(-p[K + u]);
          s.c = cs[u] = s.f * cs[u] + s.i * s.z;
          s.n = ns[u] = s.f * ns[u] + s.i;
          ms[u] = m;
          s.y = y[u] = s.o * s.c / s.n;
        }
      }
      Values dy(K), dc(K), dn(K), dp(4 * K);
      for (int u = 0; u < K; ++u) {
        dy[u] = d.grad_hidden[at + u];
        dc[u] = d.weight_cell[at + u] / ns[u];
        dn[u] = d.weight_normalizer[at + u] / ns[u];
      }
      for (int t = S - 1; t >= 0; --t) {
        const size_t token = (size_t(b) * S + t) * H + h;
        const bool starts = d.is_start[size_t(b) * S + t];
        for (int u = 0; u < K; ++u) {
          const Saved& s = saved[size_t(t) * K + u];
          const double total = d.grad_y[token * K + u] + dy[u], scaled = total / s.n;
          dc[u] += scaled * s.o;
          dn[u] -= scaled * s.y;
          dp[u] = s.i * (s.z * dc[u] + dn[u]);
          dp[K + u] = s.f * (s.c_before * dc[u] + s.n_before * dn[u]) * s.slope;
          dp[2 * K + u] = s.i * (1 - s.z * s.z) * dc[u];
          dp[3 * K + u] = (1 - s.o) * s.y * total;
          dc[u] *= starts ? 0 : s.f;
          dn[u] *= starts ? 0 : s.f;
        }
        for (int j = 0; j < 4 * K; ++j) {
          out.grad_wx[token * 4 * K + j] = dp[j];
          out.grad_bias[size_t(h) * 4 * K + j] += dp[j];
        }
        for (int e = 0; e < K; ++e) {
          double sum = 0;
          for (int j = 0; j < 4 * K; ++j) {
            const size_t r_at = (size_t(h) * K + e) * 4 * K + j;
            sum += d.r[r_at] * dp[j];
            out.grad_r[r_at] += before[size_t(t) * K + e] * dp[j];
          }
          dy[e] = starts ? 0 : sum;
        }
      }
      for (int u = 0; u < K; ++u) {
        out.grad_hidden[at + u] = dy[u];
        out.grad_cell[at + u] = dc[u];
        out.grad_normalizer[at + u] = dn[u];
      }
    }
  }
  return out;
}

Result run_gpu(const Case& c, const Data& d, gpu::Type type, std::vector<uint8_t>* fingerprint) {
  const auto wide = gpu::Type::float32;
  const int B = c.B, S = c.S, H = c.H, K = c.K;
  const size_t states = size_t(B) * H * K, tokens = states * S;
  const bool fast = gpu::slstm_uses_tensor_cores(type, K);
  const Buffer wx = upload(d.wx, type), r = upload(d.r, type), bias = upload(d.bias, wide), initial_hidden = upload(d.hidden, wide),
               initial_cell = upload(d.cell, wide), initial_normalizer = upload(d.normalizer, wide);
  const Buffer cell = upload(d.cell, wide), normalizer = upload(d.normalizer, wide), stabilizer = upload(d.stabilizer, wide);
  Buffer hidden(4 * states), y(tokens * width(type)), y_again(tokens * width(type)), saved(gpu::slstm_saved_bytes(type, B, S, H, K));
  Buffer starts(d.is_start.size());
  starts.set(d.is_start.data());
  gpu::SlstmForward f{type,
                      B,
                      S,
                      H,
                      K,
                      wx.get(),
                      r.get(),
                      bias.get<float>(),
                      c.with_starts ? starts.get<uint8_t>() : nullptr,
                      initial_hidden.get<float>(),
                      hidden.get<float>(),
                      cell.get<float>(),
                      normalizer.get<float>(),
                      stabilizer.get<float>(),
                      y.get(),
                      saved.get()};
  require(gpu::slstm_forward(f, nullptr), "slstm_forward");
  Result out;
  out.y = download(y, type);
  out.hidden = download(hidden, wide);
  Values n = download(normalizer, wide), m = download(stabilizer, wide), cs = download(cell, wide), grad_c(states), grad_n(states);
  for (size_t i = 0; i < states; ++i) {
    out.ratio.push_back(cs[i] / n[i]);
    out.log_size.push_back(std::log(n[i]) + m[i]);
    grad_c[i] = d.weight_cell[i] / n[i];
    grad_n[i] = d.weight_normalizer[i] / n[i];
  }
  {  // without saving: the same y
    const Buffer cell_2 = upload(d.cell, wide), normalizer_2 = upload(d.normalizer, wide), stabilizer_2 = upload(d.stabilizer, wide);
    gpu::SlstmForward again = f;
    again.cell_BHK = cell_2.get<float>();
    again.normalizer_BHK = normalizer_2.get<float>();
    again.stabilizer_BHK = stabilizer_2.get<float>();
    again.y_BSHK = y_again.get();
    again.saved = nullptr;
    require(gpu::slstm_forward(again, nullptr), "slstm_forward without saving");
    if (y.bytes() != y_again.bytes()) std::printf("y differs without saving\n"), std::exit(1);
  }
  const Buffer grad_y = upload(d.grad_y, type), grad_hidden = upload(d.grad_hidden, wide), grad_cell = upload(grad_c, wide),
               grad_normalizer = upload(grad_n, wide);
  Values transposed(d.r.size());
  for (int h = 0; h < H; ++h) {
    for (int e = 0; e < K; ++e) {
      for (int j = 0; j < 4 * K; ++j) transposed[(size_t(h) * 4 * K + j) * K + e] = d.r[(size_t(h) * K + e) * 4 * K + j];
    }
  }
  const Buffer r_transposed = upload(transposed, type);
  const int tiles = gpu::slstm_num_tiles(B);
  Buffer grad_wx(4 * tokens * width(type)), grad_bias(size_t(tiles) * H * 4 * K * 4), before(tokens * width(type));
  require(gpu::slstm_backward(
              {type, B, S, H, K, grad_y.get(), y.get(), saved.get(), fast ? r.get() : nullptr, fast ? nullptr : r_transposed.get(),
               initial_cell.get<float>(), initial_normalizer.get<float>(), f.is_start_BS, grad_hidden.get<float>(), grad_cell.get<float>(),
               grad_normalizer.get<float>(), grad_wx.get(), grad_bias.get<float>()},
              nullptr),
          "slstm_backward");
  require(gpu::slstm_hidden_before({type, B, S, H, K, y.get(), initial_hidden.get<float>(), f.is_start_BS, before.get()}, nullptr),
          "slstm_hidden_before");
  require(cudaDeviceSynchronize(), "run");
  out.grad_wx = download(grad_wx, type);
  out.grad_hidden = download(grad_hidden, wide);
  out.grad_cell = download(grad_cell, wide);
  out.grad_normalizer = download(grad_normalizer, wide);
  out.grad_r.assign(d.r.size(), 0);
  out.grad_bias.assign(d.bias.size(), 0);
  const Values h_before = download(before, type), partial = download(grad_bias, wide);
  for (size_t token = 0; token < size_t(B) * S; ++token) {
    for (int h = 0; h < H; ++h) {
      for (int e = 0; e < K; ++e) {
        for (int j = 0; j < 4 * K; ++j)
          out.grad_r[(size_t(h) * K + e) * 4 * K + j] += h_before[(token * H + h) * K + e] * out.grad_wx[(token * H + h) * 4 * K + j];
      }
      for (int j = 0; j < 4 * K && !fast; ++j) out.grad_bias[size_t(h) * 4 * K + j] += out.grad_wx[(token * H + h) * 4 * K + j];
    }
  }
  for (size_t i = 0; i < partial.size() && fast; ++i) out.grad_bias[i % d.bias.size()] += partial[i];
  for (const Buffer* x : std::initializer_list<const Buffer*>{&y, &hidden, &grad_wx, &grad_hidden, &grad_cell, &saved, &before}) {
    const auto bytes = x->bytes();
    fingerprint->insert(fingerprint->end(), bytes.begin(), bytes.end());
  }
  if (fast) {
    const auto bytes = grad_bias.bytes();
    fingerprint->insert(fingerprint->end(), bytes.begin(), bytes.end());
  }
  return out;
}

double error(const Values& x, const Values& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - expected[i]) * (x[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / std::max(size, 1e-60));  // under the root of that, float32 has nothing left
}

Values gate(const Values& x, int K, int index) {
  Values out;
  for (size_t i = 0; i < x.size(); ++i) {
    if (int(i / K % 4) == index) out.push_back(x[i]);
  }
  return out;
}

int check(bool quick) {
  std::vector<Case> cases;
  if (quick) {
    cases = {{3, 9, 2, 48, true, true},
             {9, 6, 1, 128, true, true},
             {1, 5, 1, 8, false, true},
             {2, 5, 1, 60, true, false},
             {2, 4, 1, 33, true, true}};
  } else {
    for (const int K : {8, 12, 20, 32, 48, 56, 60, 64, 96, 120, 128}) cases.push_back({3, 33, 2, K, true, true});
    for (const int K : {130, 160, 200, 256, 384, 512}) cases.push_back({3, 17, 1, K, true, true});
    cases.push_back({9, 40, 2, 192, true, true});
    cases.push_back({2, 9, 1, 600, true, true});
    for (const int B : {1, 8, 17}) cases.push_back({B, 65, 2, 60, true, true});
    cases.push_back({1, 1, 2, 48, false, true});
    cases.push_back({1, 1, 1, 4, true, true});
    cases.push_back({17, 2, 3, 2, true, true});
    cases.push_back({3, 7, 2, 5, true, true});
    cases.push_back({2, 300, 2, 128, false, false});
    cases.push_back({8, 512, 1, 128, false, true});
    cases.push_back({2, 1500, 1, 48, false, true});
    cases.push_back({3, 65, 2, 64, true, true, 50});            // gates of +-50
    cases.push_back({3, 65, 2, 128, true, true, 500});          // and of +-500
    cases.push_back({3, 65, 2, 64, true, true, 1, -50, 0, 0});  // closed input gates
    cases.push_back({3, 65, 2, 64, true, true, 1, 0, -50, 0});  // closed forget gates
    cases.push_back({3, 65, 2, 64, true, true, 1, 50, -50, 0});
    cases.push_back({3, 65, 2, 64, false, true, 1, -50, 50, 0});      // long memory
    cases.push_back({3, 65, 2, 64, true, true, 1, 0, 0, -50});        // closed output gates
    cases.push_back({3, 65, 2, 64, false, false, 1, -50, -50, -50});  // all closed
    cases.push_back({3, 65, 2, 64, false, true, 1, -50, -50, 50});
    cases.push_back({3, 65, 2, 64, true, true, 1, 50, 50, 50});
  }
  int failures = 0;
  uint32_t seed = std::random_device{}();
  std::printf("seed %u\n%-9s %-38s %8s %8s %8s | grad wx, by gate i f z o, R, bias, states\n", seed, "type",
              "B S H K starts state scale shifts", "y", "c/n", "ln n+m");
  for (const Case& c : cases) {
    for (const gpu::Type type : {gpu::Type::bfloat16, gpu::Type::float16, gpu::Type::float32}) {
      const Data d(c, type, ++seed);
      std::vector<uint8_t> first, second;
      const Result expected = run_reference(c, d), out = run_gpu(c, d, type, &first);
      run_gpu(c, d, type, &second);
      const double forward[] = {error(out.y, expected.y), error(out.ratio, expected.ratio), error(out.log_size, expected.log_size),
                                error(out.hidden, expected.hidden)};
      const double backward[] = {error(out.grad_wx, expected.grad_wx),
                                 error(gate(out.grad_wx, c.K, 0), gate(expected.grad_wx, c.K, 0)),
                                 error(gate(out.grad_wx, c.K, 1), gate(expected.grad_wx, c.K, 1)),
                                 error(gate(out.grad_wx, c.K, 2), gate(expected.grad_wx, c.K, 2)),
                                 error(gate(out.grad_wx, c.K, 3), gate(expected.grad_wx, c.K, 3)),
                                 error(out.grad_r, expected.grad_r),
                                 error(out.grad_bias, expected.grad_bias),
                                 error(out.grad_hidden, expected.grad_hidden),
                                 error(out.grad_cell, expected.grad_cell),
                                 error(out.grad_normalizer, expected.grad_normalizer)};
      const bool is_extreme = c.gate_scale > 1 || c.shift_i != 0 || c.shift_f != 0 || c.shift_o != 0;
      // float16 does not hold what closed output gates or very large ones leave: only that nothing breaks is checked then.
      const bool is_out_of_range = type == gpu::Type::float16 && (c.shift_o < 0 || c.gate_scale > 100);
      const double limit = (type == gpu::Type::float32 ? 2e-5 : type == gpu::Type::bfloat16 ? 1.5e-2 : 2e-3) * (is_extreme ? 3 : 1);
      bool good = first == second;
      for (const double e : forward) good &= is_out_of_range ? std::isfinite(e) : e < limit;
      for (const int i : {0, 5, 6, 7, 8, 9}) good &= is_out_of_range ? std::isfinite(backward[i]) : backward[i] < limit;
      std::string shape = std::to_string(c.B) + " " + std::to_string(c.S) + " " + std::to_string(c.H) + " " + std::to_string(c.K) + " " +
                          std::to_string(c.with_starts) + " " + std::to_string(c.with_state);
      if (is_extreme) {
        char text[64];
        std::snprintf(text, sizeof text, " x%g %+g %+g %+g", c.gate_scale, c.shift_i, c.shift_f, c.shift_o);
        shape += text;
      }
      std::printf("%-9s %-38s %8.1e %8.1e %8.1e |", name(type), shape.c_str(), forward[0], forward[1], forward[2]);
      for (const double e : backward) std::printf(" %7.1e", e);
      std::printf("%s%s\n", first == second ? "" : " NOT REPEATABLE", good ? "" : " FAILED");
      failures += !good;
    }
  }
  std::printf("%d of %zu failed\n", failures, 3 * cases.size());
  return failures != 0;
}

__global__ void fill(uint16_t* out, size_t count, bool is_bfloat16, float scale, uint32_t seed) {
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
    uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull + seed;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    const float u = ((x >> 40) + 0.5f) * 0x1p-24f, v = (x & 0xffffff) * 0x1p-24f;
    const float value = scale * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    if (is_bfloat16)
      reinterpret_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16(value);
    else
      reinterpret_cast<__half*>(out)[i] = __float2half(value);
  }
}

template <typename F>
double median_ms(const F& run) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 24; ++i) {
    require(cudaEventRecord(begin), "event");
    run(i);
    require(cudaEventRecord(end), "event");
    require(cudaEventSynchronize(end), "event");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 4) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void time_shape(int B, int S, int H, int K, gpu::Type type) {
  constexpr int kSets = 3;
  const size_t states = size_t(B) * H * K, tokens = states * S;
  struct Set {
    Buffer wx, y, saved, grad_y, grad_wx, before;
  };
  std::vector<Set> sets;
  const bool is_bfloat16 = type == gpu::Type::bfloat16;
  for (int i = 0; i < kSets; ++i) {
    sets.push_back({Buffer(8 * tokens), Buffer(2 * tokens), Buffer(gpu::slstm_saved_bytes(type, B, S, H, K)), Buffer(2 * tokens),
                    Buffer(8 * tokens), Buffer(2 * tokens)});
    fill<<<1024, 256>>>(sets[i].wx.get<uint16_t>(), 4 * tokens, is_bfloat16, 1.0f, 17 * i);
    fill<<<1024, 256>>>(sets[i].grad_y.get<uint16_t>(), tokens, is_bfloat16, 1.0f, 17 * i + 1);
  }
  const Buffer r(size_t(H) * K * 8 * K);
  fill<<<1024, 256>>>(r.get<uint16_t>(), size_t(H) * K * 4 * K, is_bfloat16, 1.0f / std::sqrt(float(K)), 5);
  const Buffer bias = upload(Values(size_t(H) * 4 * K, 0.1), gpu::Type::float32), zeros = upload(Values(states, 0), gpu::Type::float32);
  std::vector<Buffer> state;
  for (int i = 0; i < 4; ++i) state.push_back(upload(Values(states, 0), gpu::Type::float32));
  const Buffer grad_bias(size_t(gpu::slstm_num_tiles(B)) * H * 16 * K);
  const auto forward = [&](int i, bool save) {
    for (const Buffer& x : state) require(cudaMemsetAsync(x.get(), 0, x.size()), "memset");
    const Set& s = sets[i % kSets];
    require(
        gpu::slstm_forward({type, B, S, H, K, s.wx.get(), r.get(), bias.get<float>(), nullptr, zeros.get<float>(), state[0].get<float>(),
                            state[1].get<float>(), state[2].get<float>(), state[3].get<float>(), s.y.get(), save ? s.saved.get() : nullptr},
                           nullptr),
        "forward");
  };
  const double without = median_ms([&](int i) { forward(i, false); }), with = median_ms([&](int i) { forward(i, true); });
  const double backward = median_ms([&](int i) {
    for (const Buffer& x : state) require(cudaMemsetAsync(x.get(), 0, x.size()), "memset");
    const Set& s = sets[i % kSets];
    require(gpu::slstm_backward(
                {type, B, S, H, K, s.grad_y.get(), s.y.get(), s.saved.get(), r.get(), r.get(), zeros.get<float>(), zeros.get<float>(),
                 nullptr, state[0].get<float>(), state[1].get<float>(), state[2].get<float>(), s.grad_wx.get(), grad_bias.get<float>()},
                nullptr),
            "backward");
  });
  const double shift = median_ms([&](int i) {
    const Set& s = sets[i % kSets];
    require(gpu::slstm_hidden_before({type, B, S, H, K, s.y.get(), zeros.get<float>(), nullptr, s.before.get()}, nullptr), "before");
  });
  std::printf("%-9s B=%-3d S=%d H=%d K=%-3d  forward %7.3f  saving %7.3f (%.2f us a step)  backward %7.3f (%.2f us)  before %.4f\n",
              name(type), B, S, H, K, without, with, 1e3 * with / S, backward, 1e3 * backward / S, shift);
  std::fflush(stdout);
}

int time_all() {
  const auto bf16 = gpu::Type::bfloat16, fp16 = gpu::Type::float16;
  for (const int B : {1, 8, 32, 64, 128}) time_shape(B, 512, 12, 128, bf16);
  for (const int B : {8, 64}) time_shape(B, 512, 12, 128, fp16);
  for (const int B : {8, 32, 64}) time_shape(B, 512, 12, 48, bf16);
  for (const int B : {8, 64}) time_shape(B, 512, 16, 60, bf16);
  for (const int B : {8, 64}) time_shape(B, 512, 16, 96, bf16);
  for (const int K : {160, 256, 512}) {
    for (const int B : {8, 64}) time_shape(B, 512, 1536 / K, K, bf16);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "check";
  if (mode == "one")
    return time_shape(std::atoi(arguments[2]), 512, std::atoi(arguments[3]), std::atoi(arguments[4]), gpu::Type::bfloat16), 0;
  return mode == "time" ? time_all() : check(count > 2);
}
