// Head-wise maps and gates of the blocks: every instruction set's kernels against plain loops in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cpu/kernels.h"

namespace distil_xlstm::kernels {
namespace {

constexpr int64_t kBlockRows = 5;

class BlockKernels : public ::testing::Test {
 protected:
  BlockKernels() : seed_(std::random_device{}()), trace_(__FILE__, __LINE__, "seed " + std::to_string(seed_)), engine_(seed_) {}

  template <typename T>
  std::vector<T> random(int64_t n, double scale = 1.0) {
    std::normal_distribution<double> normal(0.0, scale);
    std::vector<T> x(static_cast<size_t>(n));
    for (T& value : x) value = static_cast<T>(normal(engine_));
    return x;
  }

  uint64_t seed_;
  ::testing::ScopedTrace trace_;
  std::mt19937_64 engine_;
};

// Relative to `magnitudes`: the reference itself, or the sums of its terms' absolute values where few sums with signs could cancel.
template <typename T>
double relative_error(const std::vector<T>& out, const std::vector<double>& reference, const std::vector<double>& magnitudes) {
  EXPECT_EQ(out.size(), reference.size());
  double difference = 0.0, scale = 0.0;
  for (size_t i = 0; i < out.size(); ++i) {
    difference += (double(out[i]) - reference[i]) * (double(out[i]) - reference[i]);
    scale += magnitudes[i] * magnitudes[i];
  }
  return std::sqrt(difference / scale);
}

template <typename T>
double relative_error(const std::vector<T>& out, const std::vector<double>& reference) {
  return relative_error(out, reference, reference);
}

template <typename T>
constexpr double kTolerance = sizeof(T) == 8 ? 1e-12 : 1e-6;

int64_t num_tasks(int64_t rows) {
  return (rows + kBlockRows - 1) / kBlockRows;
}

template <typename T>
std::vector<T> sum_of_parts(const std::vector<T>& parts, int64_t count) {
  std::vector<T> sum(parts.size() / static_cast<size_t>(count), T(0));
  for (size_t i = 0; i < parts.size(); ++i) sum[i % sum.size()] += parts[i];
  return sum;
}

struct alignas(64) Line {
  char bytes[64];
};

TEST_F(BlockKernels, Headwise) {
  const auto check = [&]<typename T>(T) {
    for (const InstructionSet set : supported_instruction_sets()) {
      const CpuKernels<T>& table = cpu_kernels<T>(set);
      for (const auto& [N, H, K] : {std::array<int64_t, 3>{1, 1, 1}, {13, 3, 5}, {7, 2, 16}, {11, 2, 33}}) {
        const int64_t J = table.lanes * (K > 8 ? 3 : 1), gap = 2, y_head = J + gap, y_row = H * y_head;
        const auto x = random<T>(N * H * K), w = random<T>(H * K * J), grad = random<T>(N * y_row);
        std::vector<T> y(static_cast<size_t>(N * y_row), T(7)), grad_x(x.size()), grad_w(static_cast<size_t>(num_tasks(N) * H * K * J));
        std::vector<double> ref_y(y.size(), 7.0), ref_grad_x(x.size(), 0.0), ref_grad_w(w.size(), 0.0), sizes(x.size(), 0.0);
        for (int64_t n = 0; n < N; ++n)
          for (int64_t h = 0; h < H; ++h)
            for (int64_t j = 0; j < J; ++j) {
              double sum = 0.0;
              for (int64_t k = 0; k < K; ++k) {
                const auto xi = size_t((n * H + h) * K + k), wi = size_t((h * K + k) * J + j), yi = size_t(n * y_row + h * y_head + j);
                sum += double(x[xi]) * double(w[wi]);
                ref_grad_x[xi] += double(grad[yi]) * double(w[wi]);
                sizes[xi] += std::abs(double(grad[yi]) * double(w[wi]));
                ref_grad_w[wi] += double(grad[yi]) * double(x[xi]);
              }
              ref_y[size_t(n * y_row + h * y_head + j)] = sum;
            }
        HeadwiseArgs<T> args{N, H, K, J, kBlockRows, y_row, y_head, x.data(), w.data(), y.data(), grad_x.data(), grad_w.data()};
        table.headwise_forward(args, 0, num_tasks(N));
        EXPECT_LT(relative_error(y, ref_y), kTolerance<T>) << name(set) << " " << N << " " << H << " " << K;
        auto grad_copy = grad;
        args.y = grad_copy.data();
        std::vector<Line> workspace(static_cast<size_t>(table.headwise_workspace(args)) * sizeof(T) / sizeof(Line) + 1);
        table.headwise_backward(args, 0, num_tasks(N), reinterpret_cast<T*>(workspace.data()));
        EXPECT_LT(relative_error(grad_x, ref_grad_x, sizes), kTolerance<T>) << name(set);
        EXPECT_LT(relative_error(sum_of_parts(grad_w, num_tasks(N)), ref_grad_w), kTolerance<T>) << name(set);
      }
    }
  };
  check(float{});
  check(double{});
}

TEST_F(BlockKernels, Blockdiag4) {
  for (const InstructionSet set : supported_instruction_sets()) {
    const CpuKernels<float>& table = cpu_kernels<float>(set);
    for (const auto& [N, F] : {std::array<int64_t, 2>{1, 4}, {13, 20}, {70, 64}, {9, 84}}) {
      const int64_t x_row = F + 3;
      const auto x = random<float>(N * x_row), w = random<float>(4 * F), bias = random<float>(F), before = random<float>(N * F);
      for (const bool accumulate : {false, true}) {
        std::vector<float> y = before;
        std::vector<double> reference(y.size());
        for (int64_t n = 0; n < N; ++n)
          for (int64_t f = 0; f < F; ++f) {
            double sum = accumulate ? before[size_t(n * F + f)] : bias[size_t(f)];
            for (int64_t b = 0; b < 4; ++b) sum += double(w[size_t(b * F + f)]) * double(x[size_t(n * x_row + f / 4 * 4 + b)]);
            reference[size_t(n * F + f)] = sum;
          }
        const Blockdiag4Args<float> args{F, x_row, accumulate, x.data(), w.data(), bias.data(), y.data()};
        table.blockdiag4(args, 0, N / 2);
        table.blockdiag4(args, N / 2, N);
        EXPECT_LT(relative_error(y, reference), 1e-6) << name(set) << " " << N << " " << F;
      }
      std::vector<float> parts(static_cast<size_t>(num_tasks(N) * 4 * F));
      std::vector<double> reference(static_cast<size_t>(4 * F), 0.0);
      for (int64_t n = 0; n < N; ++n)
        for (int64_t b = 0; b < 4; ++b)
          for (int64_t f = 0; f < F; ++f)
            reference[size_t(b * F + f)] += double(before[size_t(n * F + f)]) * double(x[size_t(n * x_row + f / 4 * 4 + b)]);
      table.blockdiag4_weight({N, F, kBlockRows, F, x_row, before.data(), x.data(), parts.data()}, 0, num_tasks(N));
      EXPECT_LT(relative_error(sum_of_parts(parts, num_tasks(N)), reference), 1e-6) << name(set) << " " << N << " " << F;
    }
  }
}

double phi(double x) {
  return std::erfc(-x / std::sqrt(2.0)) / 2;
}
double density(double x) {
  return std::exp(-x * x / 2) / std::sqrt(2.0 * M_PI);
}

TEST_F(BlockKernels, GeluGate) {
  for (const InstructionSet set : supported_instruction_sets()) {
    const CpuKernels<float>& table = cpu_kernels<float>(set);
    for (const double scale : {0.01, 1.0, 4.0}) {
      const int64_t n = 1003;
      const auto gate = random<float>(n, scale), value = random<float>(n), grad = random<float>(n);
      std::vector<float> y(gate.size()), grad_gate(gate.size()), grad_value(gate.size());
      std::vector<double> ref_y, ref_grad_gate, ref_grad_value;
      for (size_t i = 0; i < gate.size(); ++i) {
        const double g = gate[i];
        ref_y.push_back(g * phi(g) * value[i]);
        ref_grad_gate.push_back(grad[i] * double(value[i]) * (phi(g) + g * density(g)));
        ref_grad_value.push_back(grad[i] * g * phi(g));
      }
      table.gelu_gate_forward(gate.data(), value.data(), y.data(), n);
      table.gelu_gate_backward(grad.data(), gate.data(), value.data(), grad_gate.data(), grad_value.data(), n);
      EXPECT_LT(relative_error(y, ref_y), 1e-6) << name(set) << " " << scale;
      EXPECT_LT(relative_error(grad_gate, ref_grad_gate), 1e-6) << name(set) << " " << scale;
      EXPECT_LT(relative_error(grad_value, ref_grad_value), 1e-6) << name(set) << " " << scale;
    }
    // The tail keeps its relative accuracy, and the ends are exact.
    const std::vector<float> gate{-5.0f, -10.0f, -40.0f, 40.0f, 0.0f}, one(5, 1.0f);
    std::vector<float> y(5);
    table.gelu_gate_forward(gate.data(), one.data(), y.data(), 5);
    EXPECT_NEAR(y[0] / (-5.0 * phi(-5.0)), 1.0, 2e-6);
    EXPECT_NEAR(y[1] / (-10.0 * phi(-10.0)), 1.0, 1e-5);
    EXPECT_EQ(y[2], 0.0f);
    EXPECT_EQ(y[3], 40.0f);
    EXPECT_EQ(y[4], 0.0f);
  }
}

TEST_F(BlockKernels, Swiglu) {
  const auto check = [&]<typename T>(T) {
    for (const InstructionSet set : supported_instruction_sets()) {
      for (const auto& [N, F] : {std::array<int64_t, 2>{1, 1}, {5, 16}, {13, 20}, {6, 67}}) {
        const auto gate_up = random<T>(N * 2 * F, 3.0);
        std::vector<T> y(static_cast<size_t>(N * F), T(7));
        std::vector<double> wanted(y.size(), 7.0);
        const int64_t first = N / 2;  // rows before are another task's
        for (int64_t n = first; n < N; ++n) {
          for (int64_t f = 0; f < F; ++f) {
            const double gate = gate_up[static_cast<size_t>(n * 2 * F + f)], up = gate_up[static_cast<size_t>(n * 2 * F + F + f)];
            wanted[static_cast<size_t>(n * F + f)] = gate / (1 + std::exp(-gate)) * up;
          }
        }
        cpu_kernels<T>(set).swiglu(F, gate_up.data(), y.data(), first, N);
        EXPECT_LT(relative_error(y, wanted), sizeof(T) == 4 ? 1e-6 : 1e-14) << name(set) << " " << N << " x " << F;
      }
    }
  };
  check(float{});
  check(double{});
}

// Narrow and wide heads, whole and broken blocks of queries and keys, documents that begin anywhere; a task's rows only.
TEST_F(BlockKernels, Attention) {
  struct Case {
    int64_t B, S, H, G, K;
    bool has_documents;
  };
  const auto check = [&]<typename T>(T) {
    for (const InstructionSet set : supported_instruction_sets()) {
      for (const auto& [B, S, H, G, K, has_documents] :
           {Case{2, 9, 2, 2, 5, true}, Case{1, 21, 4, 2, 17, false}, Case{2, 70, 4, 2, 33, true}, Case{1, 131, 6, 2, 64, true},
            Case{2, 24, 2, 1, 72, false}, Case{1, 66, 3, 1, 128, true}}) {
        const int64_t width = (H + 2 * G) * K;  // queries, keys and values of a token beside each other
        const auto qkv = random<T>(B * S * width);
        std::vector<uint8_t> starts(static_cast<size_t>(B * S));
        for (uint8_t& start : starts) start = has_documents && engine_() % 17 == 0;
        std::vector<T> out(static_cast<size_t>(B * S * H * K), T(7));
        AttentionArgs<T> args{.B = B, .S = S, .H = H, .G = G, .K = K, .q_row = width, .k_row = width, .v_row = width};
        args.scale = T(0.3);
        args.q = qkv.data();
        args.k = args.q + H * K;
        args.v = args.k + G * K;
        args.is_start_BS = has_documents ? starts.data() : nullptr;
        args.out_BSHK = out.data();

        std::vector<double> wanted(out.size(), 7.0);
        const int64_t skipped = B * G / 2;  // tasks that others do
        for (int64_t task = skipped; task < B * G; ++task) {
          const int64_t b = task / G, g = task % G;
          for (int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) {
            int64_t first = 0;
            for (int64_t s = 0; s < S; ++s) {
              if (starts[static_cast<size_t>(b * S + s)] != 0) first = s;
              const T* query = args.q + (b * S + s) * width + h * K;
              std::vector<double> weights, sum(static_cast<size_t>(K), 0.0);
              double total = 0.0;
              for (int64_t j = first; j <= s; ++j) {
                double score = 0.0;
                for (int64_t k = 0; k < K; ++k) score += double(query[k]) * double(args.k[(b * S + j) * width + g * K + k]);
                weights.push_back(std::exp(score * double(args.scale)));
                total += weights.back();
              }
              for (int64_t j = first; j <= s; ++j) {
                for (int64_t k = 0; k < K; ++k)
                  sum[static_cast<size_t>(k)] +=
                      weights[static_cast<size_t>(j - first)] / total * double(args.v[(b * S + j) * width + g * K + k]);
              }
              for (int64_t k = 0; k < K; ++k) wanted[static_cast<size_t>(((b * S + s) * H + h) * K + k)] = sum[static_cast<size_t>(k)];
            }
          }
        }
        const auto& kernels = cpu_kernels<T>(set);
        std::vector<Line> workspace(static_cast<size_t>(kernels.attention_workspace(args)) * sizeof(T) / sizeof(Line) + 1);
        std::memset(static_cast<void*>(workspace.data()), 0xff, workspace.size() * sizeof(Line));  // nothing is read before it is written
        kernels.attention(args, skipped, B * G, reinterpret_cast<T*>(workspace.data()));
        EXPECT_LT(relative_error(out, wanted), kTolerance<T>) << name(set) << " B " << B << " S " << S << " K " << K;
      }
    }
  };
  check(float{});
  check(double{});
}

TEST_F(BlockKernels, SkipGate) {
  const auto check = [&]<typename T>(T) {
    for (const InstructionSet set : supported_instruction_sets()) {
      for (const auto& [N, F] : {std::array<int64_t, 2>{1, 1}, {13, 20}, {6, 67}}) {
        const auto h = random<T>(N * F), skip = random<T>(F), c = random<T>(N * F), z = random<T>(N * F, 2.0), grad = random<T>(N * F);
        std::vector<T> y(h.size()), grad_h(h.size()), grad_c(h.size()), grad_z(h.size()), parts(static_cast<size_t>(num_tasks(N) * F));
        std::vector<double> ref_y(h.size()), ref_h(h.size()), ref_c(h.size()), ref_z(h.size()), ref_skip(skip.size(), 0.0);
        std::vector<double> size_y(h.size()), size_z(h.size()), size_skip(skip.size(), 0.0);  // of the terms: their sums may cancel
        for (size_t i = 0; i < h.size(); ++i) {
          const double s = 1 / (1 + std::exp(-double(z[i]))), factor = skip[i % skip.size()], sum = double(h[i]) + factor * double(c[i]);
          ref_y[i] = sum * double(z[i]) * s;
          ref_h[i] = double(grad[i]) * double(z[i]) * s;
          ref_c[i] = ref_h[i] * factor;
          ref_skip[i % skip.size()] += ref_h[i] * double(c[i]);
          ref_z[i] = double(grad[i]) * sum * s * (1 + double(z[i]) * (1 - s));
          const double size = std::abs(double(h[i])) + std::abs(factor * double(c[i]));
          size_y[i] = size * std::abs(double(z[i])) * s;
          size_z[i] = std::abs(double(grad[i])) * size * s * (1 + std::abs(double(z[i])) * (1 - s));
          size_skip[i % skip.size()] += std::abs(ref_h[i] * double(c[i]));
        }
        const SkipGateArgs<T> args{N,        F,           kBlockRows,    h.data(),     skip.data(),   c.data(),     z.data(),
                                   y.data(), grad.data(), grad_h.data(), parts.data(), grad_c.data(), grad_z.data()};
        cpu_kernels<T>(set).skip_gate_forward(args, 0, num_tasks(N));
        cpu_kernels<T>(set).skip_gate_backward(args, 0, num_tasks(N));
        EXPECT_LT(relative_error(y, ref_y, size_y), kTolerance<T>) << name(set);
        EXPECT_LT(relative_error(grad_h, ref_h), kTolerance<T>) << name(set);
        EXPECT_LT(relative_error(grad_c, ref_c), kTolerance<T>) << name(set);
        EXPECT_LT(relative_error(grad_z, ref_z, size_z), kTolerance<T>) << name(set);
        EXPECT_LT(relative_error(sum_of_parts(parts, num_tasks(N)), ref_skip, size_skip), kTolerance<T>) << name(set);
      }
    }
  };
  check(float{});
  check(double{});
}

}  // namespace
}  // namespace distil_xlstm::kernels
