#include "ops/causal_conv.h"

#include "base/error.h"
#include "kernels/reference/reference.h"
#include "op_testing.h"

namespace distil_xlstm::ops {
namespace {

using namespace distil_xlstm::testing;

struct Case {
  int64_t B, S, F, K;
  bool with_starts = false, with_state = false;
};

const std::vector<Case> kCases = {{1, 1, 1, 1},
                                  {1, 1, 5, 4, false, true},
                                  {2, 2, 7, 4, true, true},
                                  {3, 7, 33, 4, true, true},
                                  {1, 33, 64, 4, true},
                                  {2, 100, 96, 4},
                                  {2, 9, 130, 2, true, true},
                                  {1, 20, 16, 1, true},
                                  {2, 12, 3, 7, true, true},
                                  // Around the runs and chunks of tokens that CUDA threads walk over, 2 features each.
                                  {2, 1, 8, 4, true, true},
                                  {2, 21, 6, 4, true, true},
                                  {1, 37, 130, 4, true, true},
                                  {2, 2, 4, 4, true, true},
                                  {2, 3, 12, 4, true, true},
                                  {3, 16, 8, 4, true, true},
                                  {2, 17, 8, 4, true, true},
                                  {2, 32, 516, 4, true, true},
                                  {1, 35, 8, 4, true, true},
                                  {2, 67, 20, 4, true, true}};

struct Data {
  Tensor x, weight, bias, initial, is_start;
  explicit Data(const Case& c) : x(randn({c.B, c.S, c.F})), weight(randn({c.F, 1, c.K}, 0.5)), bias(randn({c.F})) {
    if (c.with_starts) is_start = random_starts(c.B, c.S);
    if (c.with_state) initial = randn({c.B, c.K - 1, c.F});
  }
};

std::string name(const Case& c) {
  return fmt::format("B={} S={} F={} K={} starts={} state={}", c.B, c.S, c.F, c.K, c.with_starts, c.with_state);
}

class CausalConvTest : public OpTest {};

TEST_F(CausalConvTest, MatchesTheReference) {
  for (const Case& c : kCases) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
      Data d(c);
      for (Tensor* x : {&d.x, &d.weight, &d.bias, &d.initial}) {
        if (x->defined()) *x = x->to(type).to(at::kDouble);  // both see the rounded input
      }
      Tensor state = d.initial.defined() ? d.initial.clone() : at::zeros({c.B, c.K - 1, c.F}, at::kDouble),
             y = at::empty({c.B, c.S, c.F}, at::kDouble);
      kernels::reference::causal_conv_silu({c.B, c.S, c.F, c.K}, d.x.data_ptr<double>(), d.weight.data_ptr<double>(),
                                           d.bias.data_ptr<double>(), d.is_start.defined() ? d.is_start.data_ptr<uint8_t>() : nullptr,
                                           state.data_ptr<double>(), y.data_ptr<double>());
      for (const at::Device& device : devices()) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        const auto as = [&](const Tensor& x) { return x.defined() ? x.to(device, type) : x; };
        const CausalConvOutput out = causal_conv_silu(as(d.x), as(d.weight), as(d.bias), as(d.initial), d.is_start);
        EXPECT_EQ(out.y_BSF.scalar_type(), type);
        EXPECT_LT(relative_error(out.y_BSF, y), tolerance(type));
        EXPECT_LT(relative_error(out.state_BJF, state), tolerance(type));
      }
    }
  }
}

std::function<Tensor(const std::vector<Tensor>&)> weighted_loss(const Case& c, const Tensor& is_start) {
  const Tensor wy = randn({c.B, c.S, c.F}), ws = randn({c.B, c.K - 1, c.F});
  return [=](const std::vector<Tensor>& x) {
    const auto like = [&](const Tensor& w) { return w.to(x[0].device(), x[0].scalar_type()); };
    const CausalConvOutput out =
        causal_conv_silu(x[0], x[1], x[2], x.size() > 3 ? x[3] : Tensor(), is_start.defined() ? is_start.to(x[0].device()) : is_start);
    return (out.y_BSF * like(wy)).sum() + (out.state_BJF * like(ws)).sum();
  };
}

std::vector<Tensor> point_of(const Data& d) {
  std::vector<Tensor> point{d.x, d.weight, d.bias};
  if (d.initial.defined()) point.push_back(d.initial);
  return point;
}

TEST_F(CausalConvTest, GradientsMatchDifferences) {
  for (const Case& c : {Case{1, 1, 1, 1}, Case{2, 2, 3, 4, true, true}, Case{2, 7, 5, 4, true, true}, Case{1, 9, 4, 3}}) {
    SCOPED_TRACE(name(c));
    const Data d(c);
    expect_gradients_match(weighted_loss(c, d.is_start), point_of(d));
  }
}

// Plain differentiable operations, token by token.
std::pair<Tensor, Tensor> plain_convolution(const Case& c, const std::vector<Tensor>& x, const Tensor& is_start) {
  const Tensor initial = x.size() > 3 ? x[3] : at::zeros({c.B, c.K - 1, c.F}, at::kDouble);
  std::vector<Tensor> rows(initial.unbind(1)), ys;
  rows.reserve(rows.size() + c.S);
  for (int64_t t = 0; t < c.S; ++t) {
    const Tensor keep = is_start.defined() ? 1 - is_start.select(1, t).to(at::kDouble).unsqueeze(-1) : at::ones({1, 1}, at::kDouble);
    for (Tensor& row : rows) row = row * keep;
    rows.push_back(x[0].select(1, t));
    Tensor sum = x[2];
    for (int64_t j = 0; j < c.K; ++j) sum = sum + rows[rows.size() - c.K + j] * x[1].select(2, j).squeeze(1);
    ys.push_back(at::silu(sum));
  }
  const std::vector<Tensor> last(rows.end() - (c.K - 1), rows.end());
  return {at::stack(ys, 1), last.empty() ? at::zeros({c.B, 0, c.F}, at::kDouble) : at::stack(last, 1)};
}

TEST_F(CausalConvTest, GradientsAgreeBetweenTypesAndDevices) {
  for (const Case& c : kCases) {
    const Data d(c);
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto rounded = [&](const Tensor& x) { return x.to(type).to(at::kDouble); };  // both see the same input
      std::vector<Tensor> point;
      for (const Tensor& x : point_of(d)) point.push_back(rounded(x));
      const Tensor wy = rounded(randn({c.B, c.S, c.F})), ws = rounded(randn({c.B, c.K - 1, c.F}));
      const auto expected = gradients(
          [&](const std::vector<Tensor>& x) {
            const auto [y, s] = plain_convolution(c, x, d.is_start);
            return (y * wy).sum() + (s * ws).sum();
          },
          point);
      for (const at::Device& device : devices()) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        std::vector<Tensor> moved;
        for (const Tensor& x : point) moved.push_back(x.to(device, type));
        const auto grads = gradients(
            [&](const std::vector<Tensor>& x) {
              const CausalConvOutput out = causal_conv_silu(x[0], x[1], x[2], x.size() > 3 ? x[3] : Tensor(),
                                                            d.is_start.defined() ? d.is_start.to(device) : d.is_start);
              return (out.y_BSF * wy.to(device, type)).sum() + (out.state_BJF * ws.to(device, type)).sum();
            },
            moved);
        for (size_t i = 0; i < grads.size(); ++i) EXPECT_LT(relative_error(grads[i], expected[i]), tolerance(type)) << "input " << i;
      }
    }
  }
}

TEST_F(CausalConvTest, ASplitSequenceIsTheWhole) {
  const Case c{2, 11, 6, 4, true, true};
  const Data d(c);
  const CausalConvOutput whole = causal_conv_silu(d.x, d.weight, d.bias, d.initial, d.is_start);
  for (int64_t at_token = 1; at_token < c.S; ++at_token) {
    const auto first = causal_conv_silu(d.x.narrow(1, 0, at_token), d.weight, d.bias, d.initial, d.is_start.narrow(1, 0, at_token));
    const auto second = causal_conv_silu(d.x.narrow(1, at_token, c.S - at_token), d.weight, d.bias, first.state_BJF,
                                         d.is_start.narrow(1, at_token, c.S - at_token));
    EXPECT_LT(relative_error(at::cat({first.y_BSF, second.y_BSF}, 1), whole.y_BSF), 1e-14) << at_token;
    EXPECT_LT(relative_error(second.state_BJF, whole.state_BJF), 1e-14) << at_token;
  }
}

TEST_F(CausalConvTest, RefusesShapesThatDoNotFit) {
  const Data d(Case{2, 3, 4, 4});
  EXPECT_THROW(causal_conv_silu(d.x, randn({5, 1, 4}), d.bias), ShapeError);
  EXPECT_THROW(causal_conv_silu(d.x, d.weight, randn({3})), ShapeError);
  EXPECT_THROW(causal_conv_silu(d.x, randn({4, 1, 0}), d.bias), ShapeError);
  EXPECT_THROW(causal_conv_silu(d.x, d.weight, d.bias, randn({2, 4, 4})), ShapeError);
  EXPECT_THROW(causal_conv_silu(d.x, d.weight, d.bias, {}, at::zeros({2, 4}, at::kByte)), ShapeError);
}

// The sum alone, tap by tap, each of which a document's start behind it hides.
Tensor plain_sum(const Tensor& x_BSF, const Tensor& weight_F1K, const Tensor& initial_BJF, const Tensor& is_start_BS) {
  const int64_t S = x_BSF.size(1), J = weight_F1K.size(2) - 1;
  const Tensor before = initial_BJF.defined() ? initial_BJF : at::zeros({x_BSF.size(0), J, x_BSF.size(2)}, x_BSF.options());
  const Tensor all_BTF = at::cat({before, x_BSF}, 1);
  const Tensor started_BS = is_start_BS.defined() ? is_start_BS.to(at::kBool) : at::zeros({x_BSF.size(0), S}, at::kBool);
  Tensor sum = at::zeros_like(x_BSF), is_hidden_BS = at::zeros_like(started_BS);
  for (int64_t age = 0; age <= J; ++age) {
    sum = sum + (all_BTF.narrow(1, J - age, S) * weight_F1K.select(2, J - age).squeeze(1)).masked_fill(is_hidden_BS.unsqueeze(2), 0.0);
    is_hidden_BS = is_hidden_BS.logical_or(at::constant_pad_nd(started_BS, {age, 0}).narrow(1, 0, S));
  }
  return sum;
}

TEST_F(CausalConvTest, WithoutSiluItIsTheSum) {
  for (const Case& c : kCases) {
    const Data d(c);
    const Tensor w = randn({c.B, c.S, c.F});
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
      const auto rounded = [&](const Tensor& x) { return x.defined() ? x.to(type).to(at::kDouble) : x; };  // both see it
      const Tensor x = rounded(d.x), weight = rounded(d.weight), initial = rounded(d.initial);
      const auto expected =
          gradients([&](const std::vector<Tensor>& p) { return (plain_sum(p[0], p[1], initial, d.is_start) * w).sum(); }, {x, weight});
      for (const at::Device& device : devices()) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        const auto as = [&](const Tensor& t) { return t.defined() ? t.to(device, type) : t; };
        const CausalConvOutput out = causal_conv(as(x), as(weight), as(initial), d.is_start);
        EXPECT_EQ(out.y_BSF.scalar_type(), type);
        EXPECT_LT(relative_error(out.y_BSF, plain_sum(x, weight, initial, d.is_start)), tolerance(type));
        const CausalConvOutput with_silu = causal_conv_silu(as(x), as(weight), as(at::zeros({c.F}, at::kDouble)), as(initial), d.is_start);
        EXPECT_TRUE(at::equal(out.state_BJF, with_silu.state_BJF)) << "the state does not depend on what comes out";
        const auto found = gradients(
            [&](const std::vector<Tensor>& p) { return (causal_conv(p[0], p[1], as(initial), d.is_start).y_BSF * as(w)).sum(at::kDouble); },
            {as(x), as(weight)});
        for (size_t i = 0; i < 2; ++i) EXPECT_LT(relative_error(found[i], expected[i]), 2 * tolerance(type)) << i;
      }
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::ops
