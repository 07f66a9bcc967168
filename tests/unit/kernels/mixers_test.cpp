// Every instruction set's kernels against the plain loops, and their backward against each other: what the operations' own tests
// (tests/unit/ops) see is only the best set of the machine.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/reference/reference.h"

namespace distil_xlstm::kernels {
namespace {

struct Case {
  int64_t B, S, H, K, V, L;
};
const std::vector<Case> kCases = {
    {4, 1, 2, 6, 5, 1}, {3, 7, 2, 5, 3, 4}, {7, 33, 2, 16, 16, 16}, {2, 100, 4, 24, 40, 64}, {13, 9, 3, 33, 17, 9}};

// Random numbers of a test, new in each run.
class MixerKernels : public ::testing::Test {
 protected:
  MixerKernels() : seed_(std::random_device{}()), trace_(__FILE__, __LINE__, "seed " + std::to_string(seed_)), engine_(seed_) {}

  std::vector<double> random(int64_t n, double scale = 1.0) {
    std::normal_distribution<double> normal(0.0, scale);
    std::vector<double> x(n);
    for (double& value : x) value = normal(engine_);
    return x;
  }
  std::vector<uint8_t> starts(int64_t n) {
    std::vector<uint8_t> x(n);
    for (uint8_t& value : x) value = engine_() % 7 == 0;
    return x;
  }

  uint64_t seed_;
  ::testing::ScopedTrace trace_;
  std::mt19937_64 engine_;
};

// An array as the kernels want their workspace: 64-byte aligned.
template <typename T>
class Array {
 public:
  explicit Array(int64_t n) : size_(n), data_(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64)), std::free) {
    std::fill_n(data_.get(), n, T(0));
  }
  explicit Array(const std::vector<double>& values) : Array(int64_t(values.size())) {
    std::copy(values.begin(), values.end(), data_.get());
  }
  operator T*() const { return data_.get(); }
  [[nodiscard]] std::vector<double> values() const { return {data_.get(), data_.get() + size_}; }

 private:
  int64_t size_;
  std::unique_ptr<T, void (*)(void*)> data_;
};

double relative_error(const std::vector<double>& out, const std::vector<double>& ref) {
  double difference = 0, scale = 0;
  for (size_t i = 0; i < ref.size(); ++i) {
    difference += (out[i] - ref[i]) * (out[i] - ref[i]);
    scale += ref[i] * ref[i];
  }
  return std::sqrt(difference / (scale == 0 ? 1.0 : scale));
}

template <typename T>
constexpr double kLimit = sizeof(T) == 8 ? 1e-10 : 1e-5;

template <typename T>
void expect_near(const Array<T>& out, const std::vector<double>& ref, const char* what) {
  EXPECT_LT(relative_error(out.values(), ref), kLimit<T>) << what;
}

struct SlstmData {
  std::vector<double> wx, r, bias, hidden, cell, normalizer, stabilizer, grad_y, grad_hidden, grad_cell, grad_normalizer;
  std::vector<uint8_t> is_start;
};

// Gradients of wx and of the initial state, after a forward that is compared with the reference.
template <typename T>
std::vector<std::vector<double>> run_slstm(const CpuKernels<T>& k, const Case& c, const SlstmData& d, int64_t tile_rows) {
  const int64_t units = c.B * c.S * c.H * c.K, tasks = c.H * ((c.B + tile_rows - 1) / tile_rows);
  const Array<T> wx(d.wx), r(d.r), bias(d.bias), initial(d.hidden), cell0(d.cell), normalizer0(d.normalizer);
  Array<T> hidden(int64_t(d.hidden.size())), cell(d.cell), normalizer(d.normalizer), stabilizer(d.stabilizer), y(units),
      saved(kSlstmSaved * units);
  const Array<T> workspace(k.slstm_workspace(c.K, tile_rows));
  const SlstmForwardArgs<T> forward{c.B,     c.S,    c.H,  c.K,        tile_rows,  wx, r,    bias, d.is_start.data(),
                                    initial, hidden, cell, normalizer, stabilizer, y,  saved};
  k.slstm_forward(forward, 0, tasks, workspace);
  SlstmData e = d;
  std::vector<double> y_expected(units);
  reference::slstm({c.B, c.S, c.H, c.K}, d.wx.data(), d.r.data(), d.bias.data(), d.is_start.data(),
                   {e.hidden.data(), e.cell.data(), e.normalizer.data(), e.stabilizer.data()}, y_expected.data());
  expect_near(y, y_expected, "y");
  expect_near(hidden, e.hidden, "hidden");
  expect_near(cell, e.cell, "c");
  expect_near(normalizer, e.normalizer, "n");
  expect_near(stabilizer, e.stabilizer, "m");

  const Array<T> grad_y(d.grad_y);
  Array<T> grad_hidden(d.grad_hidden), grad_cell(d.grad_cell), grad_normalizer(d.grad_normalizer), grad_wx(4 * units);
  const SlstmBackwardArgs<T> backward{
      c.B,    c.S, c.H, c.K, tile_rows, grad_y, y, saved, r, cell0, normalizer0, d.is_start.data(), grad_hidden, grad_cell, grad_normalizer,
      grad_wx};
  k.slstm_backward(backward, 0, tasks, workspace);
  return {grad_wx.values(), grad_hidden.values(), grad_cell.values(), grad_normalizer.values()};
}

TEST_F(MixerKernels, SlstmAgreesInAllInstructionSets) {
  for (const Case& c : kCases) {
    const int64_t units = c.B * c.S * c.H * c.K, states = c.B * c.H * c.K;
    SlstmData d{random(4 * units),     random(c.H * c.K * 4 * c.K, 1 / std::sqrt(double(c.K))),
                random(c.H * 4 * c.K), random(states),
                random(states),        random(states),
                random(states),        random(units),
                random(states),        random(states),
                random(states),        starts(c.B * c.S)};
    for (double& n : d.normalizer) n = 1 + n * n;
    const auto expected = run_slstm<double>(cpu_kernels<double>(InstructionSet::baseline), c, d, c.B);
    for (const InstructionSet set : supported_instruction_sets()) {
      for (const int64_t tile_rows : {int64_t{1}, int64_t{4}, c.B}) {
        SCOPED_TRACE(::testing::Message() << name(set) << " B=" << c.B << " S=" << c.S << " K=" << c.K << " tile " << tile_rows);
        const auto wide = run_slstm<double>(cpu_kernels<double>(set), c, d, tile_rows);
        const auto single = run_slstm<float>(cpu_kernels<float>(set), c, d, tile_rows);
        for (size_t i = 0; i < expected.size(); ++i) {
          EXPECT_LT(relative_error(wide[i], expected[i]), kLimit<double>) << "gradient " << i;
          EXPECT_LT(relative_error(single[i], expected[i]), kLimit<float>) << "gradient " << i;
        }
      }
    }
  }
}

struct MlstmData {
  std::vector<double> q, k, v, igate, fgate, cell, normalizer, stabilizer, grad_h, grad_cell, grad_normalizer;
  std::vector<uint8_t> is_start;
};

template <typename T>
std::vector<std::vector<double>> run_mlstm(const CpuKernels<T>& kernels, const Case& c, const MlstmData& d) {
  const int64_t tokens = c.B * c.S * c.H, tasks = c.B * c.H;
  const Array<T> q(d.q), k(d.k), v(d.v), igate(d.igate), fgate(d.fgate), cell0(d.cell), normalizer0(d.normalizer),
      stabilizer0(d.stabilizer);
  Array<T> cell(tasks * c.K * c.V), normalizer(tasks * c.K), stabilizer(tasks), h(tokens * c.V);
  MlstmForwardArgs<T> forward{
      c.B,   c.S,         c.H,         c.K,  c.V,        std::min(c.L, c.S), q, k, v, igate, fgate, d.is_start.data(),
      cell0, normalizer0, stabilizer0, cell, normalizer, stabilizer,         h};
  const Array<T> workspace(std::max(kernels.mlstm_forward_workspace(forward), kernels.mlstm_backward_workspace(forward)));
  MlstmData e = d;
  std::vector<double> h_expected(tokens * c.V);
  reference::mlstm({c.B, c.S, c.H, c.K, c.V}, {d.q.data(), d.k.data(), d.v.data(), d.igate.data(), d.fgate.data(), d.is_start.data()},
                   {e.cell.data(), e.normalizer.data(), e.stabilizer.data()}, h_expected.data());
  const auto expect_same = [&](const Array<T>& C, const Array<T>& n, const Array<T>& m) {
    expect_near(h, h_expected, "h");
    expect_near(C, e.cell, "C");
    expect_near(n, e.normalizer, "n");
    expect_near(m, e.stabilizer, "m");
  };
  Array<T> cell1(d.cell), normalizer1(d.normalizer), stabilizer1(d.stabilizer);
  MlstmForwardArgs<T> recurrent = forward;
  recurrent.cell_BHKV = cell1, recurrent.normalizer_BHK = normalizer1, recurrent.stabilizer_BH = stabilizer1;
  kernels.mlstm_recurrent(recurrent, 0, tasks);
  expect_same(cell1, normalizer1, stabilizer1);
  kernels.mlstm_forward(forward, 0, tasks, workspace);
  expect_same(cell, normalizer, stabilizer);

  const Array<T> grad_h(d.grad_h), grad_final_cell(d.grad_cell), grad_final_normalizer(d.grad_normalizer);
  Array<T> dq(tokens * c.K), dk(tokens * c.K), dv(tokens * c.V), di(tokens), df(tokens), dcell(tasks * c.K * c.V), dnormalizer(tasks * c.K),
      dstabilizer(tasks);
  const MlstmBackwardArgs<T> backward{forward, grad_h, grad_final_cell, grad_final_normalizer, dq,         dk, dv,
                                      di,      df,     dcell,           dnormalizer,           dstabilizer};
  kernels.mlstm_backward(backward, 0, tasks, workspace);
  return {dq.values(), dk.values(), dv.values(), di.values(), df.values(), dcell.values(), dnormalizer.values(), dstabilizer.values()};
}

TEST_F(MixerKernels, MlstmAgreesInAllInstructionSets) {
  for (const Case& c : kCases) {
    const int64_t tokens = c.B * c.S * c.H, heads = c.B * c.H;
    MlstmData d{random(tokens * c.K), random(tokens * c.K),      random(tokens * c.V), random(tokens),
                random(tokens),       random(heads * c.K * c.V), random(heads * c.K),  random(heads),
                random(tokens * c.V), random(heads * c.K * c.V), random(heads * c.K),  starts(c.B * c.S)};
    // Denominators without cancellation: errors stay those of the arithmetic.
    for (auto* x : {&d.q, &d.k, &d.normalizer})
      std::transform(x->begin(), x->end(), x->begin(), [](double value) { return std::abs(value); });
    const auto expected = run_mlstm<double>(cpu_kernels<double>(InstructionSet::baseline), c, d);
    for (const InstructionSet set : supported_instruction_sets()) {
      SCOPED_TRACE(::testing::Message() << name(set) << " B=" << c.B << " S=" << c.S << " K=" << c.K << " V=" << c.V << " L=" << c.L);
      const auto wide = run_mlstm<double>(cpu_kernels<double>(set), c, d);
      const auto single = run_mlstm<float>(cpu_kernels<float>(set), c, d);
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_LT(relative_error(wide[i], expected[i]), kLimit<double>) << "gradient " << i;
        EXPECT_LT(relative_error(single[i], expected[i]), kLimit<float>) << "gradient " << i;
      }
    }
  }
}

struct DeltaRuleData {
  std::vector<double> q, k, v, igate, fgate, cell, grad_h, grad_cell;
  std::vector<uint8_t> is_start;
};

template <typename T>
std::vector<std::vector<double>> run_delta_rule(const CpuKernels<T>& kernels, const Case& c, const DeltaRuleData& d) {
  const int64_t tokens = c.B * c.S * c.H, tasks = c.B * c.H;
  const Array<T> q(d.q), k(d.k), v(d.v), igate(d.igate), fgate(d.fgate), cell0(d.cell);
  Array<T> cell(tasks * c.K * c.V), h(tokens * c.V);
  const DeltaRuleForwardArgs<T> forward{c.B,   c.S,  c.H, c.K, c.V, std::min(c.L, c.S), q, k, v, igate, fgate, d.is_start.data(),
                                        cell0, cell, h};
  const Array<T> workspace(std::max(kernels.delta_rule_forward_workspace(forward), kernels.delta_rule_backward_workspace(forward)));
  std::vector<double> cell_expected = d.cell, h_expected(tokens * c.V);
  reference::delta_rule({c.B, c.S, c.H, c.K, c.V}, {d.q.data(), d.k.data(), d.v.data(), d.igate.data(), d.fgate.data(), d.is_start.data()},
                        cell_expected.data(), h_expected.data());
  Array<T> cell1(d.cell);
  DeltaRuleForwardArgs<T> recurrent = forward;
  recurrent.cell_BHKV = cell1;
  kernels.delta_rule_recurrent(recurrent, 0, tasks);
  expect_near(h, h_expected, "h, token by token");
  expect_near(cell1, cell_expected, "C, token by token");
  kernels.delta_rule_forward(forward, 0, tasks, workspace);
  expect_near(h, h_expected, "h");
  expect_near(cell, cell_expected, "C");

  const Array<T> grad_h(d.grad_h), grad_final_cell(d.grad_cell);
  Array<T> dq(tokens * c.K), dk(tokens * c.K), dv(tokens * c.V), di(tokens), df(tokens), dcell(tasks * c.K * c.V);
  const DeltaRuleBackwardArgs<T> backward{forward, grad_h, grad_final_cell, dq, dk, dv, di, df, dcell};
  kernels.delta_rule_backward(backward, 0, tasks, workspace);
  return {dq.values(), dk.values(), dv.values(), di.values(), df.values(), dcell.values()};
}

TEST_F(MixerKernels, DeltaRuleAgreesInAllInstructionSets) {
  for (const Case& c : kCases) {
    const int64_t tokens = c.B * c.S * c.H, heads = c.B * c.H;
    const double unit = 1 / std::sqrt(double(c.K));  // longer keys let the state grow
    const DeltaRuleData d{
        random(tokens * c.K, unit), random(tokens * c.K, unit), random(tokens * c.V),      random(tokens),   random(tokens),
        random(heads * c.K * c.V),  random(tokens * c.V),       random(heads * c.K * c.V), starts(c.B * c.S)};
    const auto expected = run_delta_rule<double>(cpu_kernels<double>(InstructionSet::baseline), c, d);
    for (const InstructionSet set : supported_instruction_sets()) {
      SCOPED_TRACE(::testing::Message() << name(set) << " B=" << c.B << " S=" << c.S << " K=" << c.K << " V=" << c.V << " L=" << c.L);
      const auto wide = run_delta_rule<double>(cpu_kernels<double>(set), c, d);
      const auto single = run_delta_rule<float>(cpu_kernels<float>(set), c, d);
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_LT(relative_error(wide[i], expected[i]), kLimit<double>) << "gradient " << i;
        EXPECT_LT(relative_error(single[i], expected[i]), kLimit<float>) << "gradient " << i;
      }
    }
  }
}

template <typename T>
void check_elementwise(const CpuKernels<T>& k, const std::vector<double>& x_values, const std::vector<double>& weight_values, int64_t rows,
                       int64_t width) {
  const Array<T> x(x_values), weight(weight_values);
  Array<T> y(rows * width), mean(rows), rstd(rows);
  std::vector<double> expected(rows * width);
  reference::rms_norm(rows, width, x_values.data(), weight_values.data(), 1e-6, expected.data());
  k.rms_norm(width, 1e-6, x, weight, y, 0, rows);
  expect_near(y, expected, "rms_norm");
  reference::residual_layer_norm(rows, 1, width, x_values.data(), weight_values.data(), 1e-5, expected.data());
  LayerNormArgs<T> args{rows, 1, width, 3, 1e-5, x, weight, y, mean, rstd};
  k.layer_norm_forward(args, 0, (rows + 2) / 3);
  expect_near(y, expected, "layer_norm");
}

TEST_F(MixerKernels, NormsAgreeInAllInstructionSets) {
  for (const int64_t width : {2, 7, 16, 33, 96}) {
    const auto x = random(10 * width), weight = random(width, 0.3);
    for (const InstructionSet set : supported_instruction_sets()) {
      SCOPED_TRACE(::testing::Message() << name(set) << " width " << width);
      check_elementwise<double>(cpu_kernels<double>(set), x, weight, 10, width);
      check_elementwise<float>(cpu_kernels<float>(set), x, weight, 10, width);
    }
  }
}

template <typename T>
void check_conv(const CpuKernels<T>& k, const reference::ConvSizes& c, const std::vector<double>& x_values,
                const std::vector<double>& weight_FK, const std::vector<double>& bias_values, const std::vector<double>& initial_values,
                const std::vector<uint8_t>& is_start) {
  std::vector<double> weight_KF(c.F * c.K), state_expected = initial_values, y_expected(c.B * c.S * c.F);
  for (int64_t f = 0; f < c.F; ++f) {
    for (int64_t j = 0; j < c.K; ++j) weight_KF[j * c.F + f] = weight_FK[f * c.K + j];
  }
  reference::causal_conv_silu(c, x_values.data(), weight_FK.data(), bias_values.data(), is_start.data(), state_expected.data(),
                              y_expected.data());
  const Array<T> x(x_values), weight(weight_KF), bias(bias_values), initial(initial_values);
  Array<T> y(c.B * c.S * c.F), state(c.B * (c.K - 1) * c.F);
  const ConvArgs<T> args{c.B, c.S, c.F, c.K, x, weight, bias, initial, is_start.data(), y, state};
  k.conv_forward(args, 0, c.B * ((c.F + kConvFeatures - 1) / kConvFeatures));
  expect_near(y, y_expected, "conv y");
  expect_near(state, state_expected, "conv state");
}

TEST_F(MixerKernels, ConvolutionAgreesInAllInstructionSets) {
  for (const reference::ConvSizes& c : {reference::ConvSizes{2, 9, 5, 4}, {1, 2, 70, 4}, {3, 20, 16, 2}, {2, 7, 9, 6}}) {
    const auto x = random(c.B * c.S * c.F), weight = random(c.F * c.K), bias = random(c.F), initial = random(c.B * (c.K - 1) * c.F);
    const auto is_start = starts(c.B * c.S);
    for (const InstructionSet set : supported_instruction_sets()) {
      SCOPED_TRACE(::testing::Message() << name(set) << " S=" << c.S << " F=" << c.F << " K=" << c.K);
      check_conv<double>(cpu_kernels<double>(set), c, x, weight, bias, initial, is_start);
      check_conv<float>(cpu_kernels<float>(set), c, x, weight, bias, initial, is_start);
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::kernels
