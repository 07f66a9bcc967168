#include "ops/slstm.h"

#include "base/error.h"
#include "kernels/reference/reference.h"
#include "op_testing.h"

namespace distil_xlstm::ops {
namespace {

using namespace distil_xlstm::testing;

struct Case {
  int64_t B, S, H, K;
  bool with_starts = false, with_state = false;
  double gate_scale = 1.0;
};

struct Data {
  Tensor wx, r, bias, is_start;
  SlstmState initial;

  explicit Data(const Case& c) {
    wx = randn({c.B, c.S, c.H, 4, c.K}, c.gate_scale);
    r = randn({c.H, c.K, 4, c.K}, 1.0 / std::sqrt(double(c.K)));
    bias = randn({c.H, 4, c.K});
    if (c.with_starts) is_start = random_starts(c.B, c.S);
    if (c.with_state) {
      const Tensor n = at::rand({c.B, c.H, c.K}, at::kDouble) + 1;
      initial = {randn({c.B, c.H, c.K}).tanh(), n * randn({c.B, c.H, c.K}).tanh(), n, randn({c.B, c.H, c.K})};
    }
  }
  [[nodiscard]] SlstmOutput run(at::Device device, at::ScalarType type) const {
    const auto as = [&](const Tensor& x) { return x.defined() ? x.to(device, type) : x; };
    return slstm_scan(as(wx), as(r), as(bias),
                      {as(initial.hidden_BHK), as(initial.cell_BHK), as(initial.normalizer_BHK), as(initial.stabilizer_BHK)}, is_start);
  }
};

SlstmOutput run_reference(const Case& c, const Data& d) {
  const auto state = [&](const Tensor& x) { return x.defined() ? x.clone() : at::zeros({c.B, c.H, c.K}, at::kDouble); };
  SlstmOutput out{
      at::empty({c.B, c.S, c.H, c.K}, at::kDouble),
      {state(d.initial.hidden_BHK), state(d.initial.cell_BHK), state(d.initial.normalizer_BHK), state(d.initial.stabilizer_BHK)}};
  auto& [y, s] = out;
  kernels::reference::slstm({c.B, c.S, c.H, c.K}, d.wx.data_ptr<double>(), d.r.data_ptr<double>(), d.bias.data_ptr<double>(),
                            d.is_start.defined() ? d.is_start.data_ptr<uint8_t>() : nullptr,
                            {s.hidden_BHK.data_ptr<double>(), s.cell_BHK.data_ptr<double>(), s.normalizer_BHK.data_ptr<double>(),
                             s.stabilizer_BHK.data_ptr<double>()},
                            y.data_ptr<double>());
  return out;
}

std::string name(const Case& c) {
  return fmt::format("B={} S={} H={} K={} starts={} state={} gates x{}", c.B, c.S, c.H, c.K, c.with_starts, c.with_state, c.gate_scale);
}

const std::vector<Case> kCases = {{1, 1, 1, 1},
                                  {1, 1, 2, 4, false, true},
                                  {3, 7, 2, 5, true, true},
                                  {1, 33, 3, 8, true},
                                  {3, 33, 2, 16, true, true},
                                  {7, 12, 1, 33},
                                  {2, 100, 2, 24, true},
                                  {3, 33, 1, 64, true, true},
                                  {5, 9, 2, 20, true, true},
                                  {13, 5, 1, 48, true},
                                  {3, 33, 2, 16, true, true, 50.0},
                                  {2, 33, 2, 8, true, false, 500.0},
                                  {3, 9, 2, 260, true, true},  // by steps on CUDA
                                  {2, 6, 1, 515}};

class SlstmTest : public OpTest {};

TEST_F(SlstmTest, MatchesTheReference) {
  for (const Case& c : kCases) {
    const Data data(c);
    const SlstmOutput expected = run_reference(c, data);
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        // Gates of +-50 and more amplify the rounding of their own pre-activations in float32.
        const double limit = tolerance(type) * (c.gate_scale > 1 ? 5 : 1);
        const SlstmOutput out = data.run(device, type);
        EXPECT_LT(relative_error(out.y_BSHK, expected.y_BSHK), limit);
        EXPECT_LT(relative_error(out.state.hidden_BHK, expected.state.hidden_BHK), limit);
        EXPECT_LT(relative_error(out.state.cell_BHK, expected.state.cell_BHK), limit);
        EXPECT_LT(relative_error(out.state.normalizer_BHK, expected.state.normalizer_BHK), limit);
        EXPECT_LT(relative_error(out.state.stabilizer_BHK, expected.state.stabilizer_BHK), limit);
      }
    }
  }
}

// A weighted sum of all outputs: its gradient exercises the gradients of y and of the final state.
std::function<Tensor(const std::vector<Tensor>&)> weighted_loss(const Case& c, const Tensor& is_start, bool with_final_state) {
  const Tensor wy = randn({c.B, c.S, c.H, c.K}), wh = randn({c.B, c.H, c.K}), wc = randn({c.B, c.H, c.K}), wn = randn({c.B, c.H, c.K});
  return [=](const std::vector<Tensor>& x) {
    const auto like = [&](const Tensor& w) { return w.to(x[0].device(), x[0].scalar_type()); };
    const SlstmState initial = x.size() > 3 ? SlstmState{x[3], x[4], x[5], x[6].detach()} : SlstmState{};
    const SlstmOutput out = slstm_scan(x[0], x[1], x[2], initial, is_start);
    Tensor loss = (out.y_BSHK * like(wy)).sum();
    if (!with_final_state) return loss;
    // c and n mean c exp(m) and n exp(m): their gradients are defined in the frame of m.
    const Tensor frame = out.state.stabilizer_BHK.detach().exp();
    return loss + (out.state.hidden_BHK * like(wh)).sum() + (out.state.cell_BHK * frame * like(wc)).sum() +
           (out.state.normalizer_BHK * frame * like(wn)).sum();
  };
}

TEST_F(SlstmTest, GradientsMatchDifferences) {
  for (const Case& c : {Case{1, 1, 1, 1}, Case{2, 5, 2, 3, true, true}, Case{3, 7, 1, 5, false, true}, Case{2, 6, 2, 4, true}}) {
    SCOPED_TRACE(name(c));
    const Data d(c);
    std::vector<Tensor> point{d.wx, d.r, d.bias};
    if (c.with_state) point.insert(point.end(), {d.initial.hidden_BHK, d.initial.cell_BHK, d.initial.normalizer_BHK});
    const auto loss = weighted_loss(c, d.is_start, true);
    expect_gradients_match(
        [&](const std::vector<Tensor>& x) {
          auto all = x;
          if (c.with_state) all.push_back(d.initial.stabilizer_BHK);
          return loss(all);
        },
        point);
  }
}

// Every device and type against float64 on the CPU, whose gradients the test above checks.
TEST_F(SlstmTest, GradientsAgreeBetweenTypesAndDevices) {
  for (const Case& c : kCases) {
    if (c.gate_scale > 1) continue;
    const Data d(c);
    std::vector<Tensor> point{d.wx, d.r, d.bias};
    if (c.with_state)
      point.insert(point.end(), {d.initial.hidden_BHK, d.initial.cell_BHK, d.initial.normalizer_BHK, d.initial.stabilizer_BHK});
    const auto loss = weighted_loss(c, d.is_start, true);
    const std::vector<Tensor> expected = gradients(loss, point);
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        std::vector<Tensor> moved;
        for (const Tensor& x : point) moved.push_back(x.to(device, type));
        const std::vector<Tensor> grads = gradients(loss, moved);
        for (size_t i = 0; i < std::min<size_t>(grads.size(), 6); ++i)
          EXPECT_LT(relative_error(grads[i], expected[i]), tolerance(type)) << "input " << i;
      }
    }
  }
}

TEST_F(SlstmTest, HalfPrecisionInputsComputeInFloat) {
  for (const Case& c : {Case{2, 17, 2, 16, true}, Case{3, 11, 2, 514, true}, Case{2, 8, 1, 768}}) {
    const Data d(c);
    const auto loss = weighted_loss(c, d.is_start, false);
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        // R as the type can represent it: a device may keep it so.
        const Tensor wx = d.wx.to(device, type), r = d.r.to(device, type).to(at::kFloat), bias = d.bias.to(device, at::kFloat);
        const SlstmOutput out = slstm_scan(wx, r, bias, {}, d.is_start), wide = slstm_scan(wx.to(at::kFloat), r, bias, {}, d.is_start);
        EXPECT_EQ(out.y_BSHK.scalar_type(), type);
        EXPECT_EQ(out.state.cell_BHK.scalar_type(), at::kFloat);
        EXPECT_LT(relative_error(out.y_BSHK, wide.y_BSHK), tolerance(type));
        // Tensor cores multiply with the hidden state as y holds it.
        EXPECT_LT(relative_error(out.state.cell_BHK, wide.state.cell_BHK), device.is_cuda() ? tolerance(type) : 1e-6);
        const auto half_grads = gradients(loss, {wx, r, bias}), wide_grads = gradients(loss, {wx.to(at::kFloat), r, bias});
        for (size_t i = 0; i < 3; ++i) EXPECT_LT(relative_error(half_grads[i], wide_grads[i]), 2 * tolerance(type)) << "input " << i;
      }
    }
  }
}

TEST_F(SlstmTest, ASplitSequenceGivesTheSameOutputsAndGradients) {
  const Case c{3, 12, 2, 7, true, true};
  const Data d(c);
  const Tensor wy = randn({c.B, c.S, c.H, c.K}), wc = randn({c.B, c.H, c.K});
  const auto whole = gradients(
      [&](const std::vector<Tensor>& x) {
        const SlstmOutput out = slstm_scan(x[0], x[1], x[2], {x[3], x[4], x[5], d.initial.stabilizer_BHK}, d.is_start);
        return (out.y_BSHK * wy).sum() + (out.state.cell_BHK * wc).sum();
      },
      {d.wx, d.r, d.bias, d.initial.hidden_BHK, d.initial.cell_BHK, d.initial.normalizer_BHK});
  for (int64_t at_token = 1; at_token < c.S; ++at_token) {
    const auto split = gradients(
        [&](const std::vector<Tensor>& x) {
          const int64_t rest = c.S - at_token;
          const SlstmOutput first = slstm_scan(x[0].narrow(1, 0, at_token), x[1], x[2], {x[3], x[4], x[5], d.initial.stabilizer_BHK},
                                               d.is_start.narrow(1, 0, at_token));
          const SlstmOutput second =
              slstm_scan(x[0].narrow(1, at_token, rest), x[1], x[2], first.state, d.is_start.narrow(1, at_token, rest));
          return (at::cat({first.y_BSHK, second.y_BSHK}, 1) * wy).sum() + (second.state.cell_BHK * wc).sum();
        },
        {d.wx, d.r, d.bias, d.initial.hidden_BHK, d.initial.cell_BHK, d.initial.normalizer_BHK});
    for (size_t i = 0; i < whole.size(); ++i)
      EXPECT_LT(relative_error(split[i], whole[i]), 1e-10) << "split at " << at_token << ", input " << i;
  }
}

TEST_F(SlstmTest, AStartEqualsASequenceOfItsOwn) {
  const Case c{2, 20, 2, 8, false, true};
  Data d(c);
  d.is_start = at::zeros({c.B, c.S}, at::kByte);
  d.is_start.select(1, 7).fill_(1);
  for (const at::Device& device : devices()) {
    const Tensor joined = d.run(device, at::kDouble).y_BSHK;
    const Tensor alone = slstm_scan(d.wx.narrow(1, 7, 13).to(device), d.r.to(device), d.bias.to(device)).y_BSHK;
    EXPECT_LT(relative_error(joined.narrow(1, 7, 13), alone), 1e-14);
  }
}

TEST_F(SlstmTest, AStartAtTheFirstTokenDropsTheInitialStateOfThatRowOnly) {
  const Case c{2, 4, 1, 8, false, true};
  Data d(c);
  const Tensor with_state = d.run(at::kCPU, at::kDouble).y_BSHK, without = slstm_scan(d.wx, d.r, d.bias).y_BSHK;
  d.is_start = at::zeros({c.B, c.S}, at::kByte);
  d.is_start[1][0] = 1;
  const Tensor mixed = d.run(at::kCPU, at::kDouble).y_BSHK;
  EXPECT_TRUE(mixed[0].equal(with_state[0]));
  EXPECT_TRUE(mixed[1].equal(without[1]));
}

// The normalizer never falls below 1, closed gates and empty elements of a state included.
TEST_F(SlstmTest, TheNormalizerIsAtLeastOne) {
  const Case c{2, 30, 2, 8};
  for (const double shift : {-300.0, -50.0, 0.0, 50.0}) {
    Data d(c);
    d.wx.select(3, 0).add_(shift);
    d.wx.select(3, 1).sub_(shift);
    d.initial = {at::zeros({2, 2, 8}, at::kDouble), at::zeros({2, 2, 8}, at::kDouble), at::zeros({2, 2, 8}, at::kDouble),
                 at::zeros({2, 2, 8}, at::kDouble)};
    for (Tensor* x : {&d.initial.cell_BHK, &d.initial.normalizer_BHK})
      x->select(2, 3).fill_(1.0);  // one element is in use, the others are empty
    for (const at::Device& device : devices()) {
      const SlstmOutput out = d.run(device, at::kFloat);
      EXPECT_GE(out.state.normalizer_BHK.min().item<float>(), 1.0f);
      EXPECT_TRUE(out.y_BSHK.isfinite().all().item<bool>());
      EXPECT_LE(out.y_BSHK.abs().max().item<float>(), 1.0f);
      EXPECT_LT(relative_error(out.y_BSHK, run_reference(c, d).y_BSHK), 1e-5) << "shift " << shift;
    }
  }
}

TEST_F(SlstmTest, AnEmptyStateHidesItsStabilizer) {
  const Case c{2, 9, 1, 8};
  Data d(c);
  const Tensor expected = d.run(at::kCPU, at::kDouble).y_BSHK;
  const Tensor zeros = at::zeros({2, 1, 8}, at::kDouble);
  for (const double m : {-80.0, -1.0, 3.0, 80.0}) {
    d.initial = {zeros, zeros, zeros, at::full_like(zeros, m)};
    EXPECT_LT(relative_error(d.run(at::kCPU, at::kDouble).y_BSHK, expected), 1e-12) << m;
  }
}

TEST_F(SlstmTest, RefusesShapesThatDoNotFit) {
  const Case c{2, 3, 2, 4};
  const Data d(c);
  EXPECT_THROW(slstm_scan(d.wx, at::zeros({2, 4, 4, 5}, at::kDouble), d.bias), ShapeError);
  EXPECT_THROW(slstm_scan(d.wx, d.r, at::zeros({4, 2, 4}, at::kDouble)), ShapeError);
  EXPECT_THROW(slstm_scan(d.wx.narrow(3, 0, 3), d.r, d.bias), ShapeError);
  EXPECT_THROW(slstm_scan(d.wx.narrow(1, 0, 0), d.r, d.bias), ShapeError);
  EXPECT_THROW(slstm_scan(d.wx, d.r, d.bias, {randn({1, 2, 4})}), ShapeError);
  EXPECT_THROW(slstm_scan(d.wx, d.r, d.bias, {}, at::zeros({3, 2}, at::kByte)), ShapeError);
  EXPECT_THROW(slstm_scan(d.wx, d.r.to(at::kMeta), d.bias), ShapeError);  // another device, without one
  try {
    slstm_scan(d.wx, d.r, at::zeros({4, 2, 4}, at::kDouble));
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(), "slstm_scan: bias_HGK: [4, 2, 4] does not fit the other arguments: [2, 4, 4] is needed");
  }
}

}  // namespace
}  // namespace distil_xlstm::ops
