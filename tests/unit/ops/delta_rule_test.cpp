#include "ops/delta_rule.h"

#include <limits>

#include "base/error.h"
#include "gated_testing.h"
#include "kernels/reference/reference.h"
#include "ops/delta_rule_forms.h"

namespace distil_xlstm::ops {
namespace {

using namespace distil_xlstm::testing;
using testing::to;  // beside those of states

const std::vector<Case> kCases = {{1, 1, 1, 1, 1},
                                  {4, 1, 2, 6, 5, false, true},
                                  {1, 2, 1, 4, 4, false, true},
                                  {3, 7, 2, 5, 3, true, true},
                                  {1, 33, 3, 8, 8, true},
                                  {3, 33, 2, 16, 8, true, true},
                                  {2, 100, 4, 24, 40, true, true},
                                  {1, 100, 1, 128, 64, true},
                                  {3, 33, 2, 16, 16, true, true, 50.0},
                                  {2, 70, 2, 33, 17, false, true},
                                  {2, 9, 3, 20, 64, true, true}};

Tensor unit_rows(const Tensor& x) {
  return x / x.norm(2, {-1}, /*keepdim=*/true);
}

struct Data {
  DeltaRuleInputs in;
  DeltaRuleState initial;

  explicit Data(const Case& c) {
    const Tensor gates = randn({2, c.B, c.S, c.H}, c.gate_scale);
    in = {unit_rows(randn({c.B, c.S, c.H, c.K})),
          unit_rows(randn({c.B, c.S, c.H, c.K})),
          randn({c.B, c.S, c.H, c.V}),
          gates[0],
          gates[1] + 2,
          {}};
    if (c.with_starts) in.is_start_BS = random_starts(c.B, c.S, 0.08);
    if (c.with_state) initial = {randn({c.B, c.H, c.K, c.V})};
  }
};

DeltaRuleState to(const DeltaRuleState& state, at::Device device, at::ScalarType type) {
  return {state.cell_BHKV.defined() ? state.cell_BHKV.to(device, type) : Tensor()};
}

DeltaRuleInputs narrow(const DeltaRuleInputs& in, int64_t begin, int64_t length) {
  const auto part = [&](const Tensor& x) { return x.defined() ? x.narrow(1, begin, length) : x; };
  return {part(in.q_BSHK), part(in.k_BSHK), part(in.v_BSHV), part(in.igate_BSH), part(in.fgate_BSH), part(in.is_start_BS)};
}

DeltaRuleOutput run_reference(const Data& d) {
  const auto& in = d.in;
  const int64_t B = in.q_BSHK.size(0), S = in.q_BSHK.size(1), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  DeltaRuleOutput out{at::empty({B, S, H, V}, at::kDouble),
                      {d.initial.cell_BHKV.defined() ? d.initial.cell_BHKV.clone() : at::zeros({B, H, K, V}, at::kDouble)}};
  const Tensor q = in.q_BSHK.contiguous(), k = in.k_BSHK.contiguous(), v = in.v_BSHV.contiguous(), i = in.igate_BSH.contiguous(),
               f = in.fgate_BSH.contiguous();
  kernels::reference::delta_rule({B, S, H, K, V},
                                 {q.data_ptr<double>(), k.data_ptr<double>(), v.data_ptr<double>(), i.data_ptr<double>(),
                                  f.data_ptr<double>(), in.is_start_BS.defined() ? in.is_start_BS.data_ptr<uint8_t>() : nullptr},
                                 out.state.cell_BHKV.data_ptr<double>(), out.h_BSHV.data_ptr<double>());
  return out;
}

// The recurrence as the formula has it, in ATen operations that autograd differentiates.
DeltaRuleOutput recurrence(const DeltaRuleInputs& in, const DeltaRuleState& initial) {
  const int64_t B = in.q_BSHK.size(0), S = in.q_BSHK.size(1), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  Tensor C = initial.cell_BHKV.defined() ? initial.cell_BHKV : at::zeros({B, H, K, V}, in.q_BSHK.options().requires_grad(false));
  std::vector<Tensor> h;
  for (int64_t t = 0; t < S; ++t) {
    if (in.is_start_BS.defined()) C = C * in.is_start_BS.select(1, t).eq(0).view({B, 1, 1, 1}).to(C.scalar_type());
    const auto column = [&](const Tensor& x) { return x.select(1, t).unsqueeze(-1); };
    const Tensor k = column(in.k_BSHK), v = column(in.v_BSHV), q = column(in.q_BSHK);
    const Tensor beta = column(in.igate_BSH).sigmoid().unsqueeze(-1), forget = at::log_sigmoid(column(in.fgate_BSH)).exp().unsqueeze(-1);
    const Tensor keeps = at::eye(K, C.options().requires_grad(false)) - beta * at::matmul(k, k.transpose(-1, -2));
    C = forget * at::matmul(keeps, C) + beta * at::matmul(k, v.transpose(-1, -2));
    h.push_back(at::matmul(C.transpose(-1, -2), q).squeeze(-1));
  }
  return {at::stack(h, 1), {C}};
}

void expect_equal(const DeltaRuleOutput& out, const DeltaRuleOutput& expected, double limit) {
  EXPECT_LT(relative_error(out.h_BSHV, expected.h_BSHV), limit) << "h";
  EXPECT_LT(relative_error(out.state.cell_BHKV, expected.state.cell_BHKV), limit) << "C";
}

class DeltaRuleTest : public OpTest {};

TEST_F(DeltaRuleTest, ChunkwiseMatchesTheReferenceForEveryChunkSize) {
  for (const Case& c : kCases) {
    const Data d(c);
    const DeltaRuleOutput expected = run_reference(d);
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        for (const int64_t chunk_size : chunk_sizes(c.S)) {
          SCOPED_TRACE(fmt::format("{} chunk {} {} {}", name(c), chunk_size, device.str(), at::toString(type)));
          expect_equal(delta_rule_chunkwise(to(d.in, device, type), chunk_size, to(d.initial, device, type)), expected, tolerance(type));
        }
      }
    }
  }
}

TEST_F(DeltaRuleTest, RecurrentMatchesTheReference) {
  for (const Case& c : kCases) {
    const Data d(c);
    const DeltaRuleOutput expected = run_reference(d);
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        expect_equal(delta_rule_recurrent(to(d.in, device, type), to(d.initial, device, type)), expected, tolerance(type));
      }
    }
  }
}

TEST_F(DeltaRuleTest, TwoByteInputsMatchTheReferenceOnTheSameInputs) {
  for (const Case& c : kCases) {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
      Data d(c);
      for (Tensor* x : {&d.in.q_BSHK, &d.in.k_BSHK, &d.in.v_BSHV}) *x = x->to(type).to(at::kDouble);
      const DeltaRuleOutput expected = run_reference(d);
      for (const at::Device& device : devices()) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        DeltaRuleInputs in = to(d.in, device, at::kFloat);
        for (Tensor* x : {&in.q_BSHK, &in.k_BSHK, &in.v_BSHV}) *x = x->to(type);
        const DeltaRuleOutput out = delta_rule_chunkwise(in, 64, to(d.initial, device, at::kFloat));
        EXPECT_EQ(out.h_BSHV.scalar_type(), type);
        EXPECT_EQ(out.state.cell_BHKV.scalar_type(), at::kFloat);
        EXPECT_LT(relative_error(out.h_BSHV, expected.h_BSHV), tolerance(type));
        EXPECT_LT(relative_error(out.state.cell_BHKV, expected.state.cell_BHKV), tolerance(at::kFloat));
        std::vector<Tensor> leaves;
        for (const Tensor& x : {in.q_BSHK, in.k_BSHK, in.v_BSHV, in.igate_BSH, in.fgate_BSH}) leaves.push_back(testing::leaf(x));
        delta_rule_chunkwise({leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], in.is_start_BS}, 64).h_BSHV.sum().backward();
        for (const Tensor& x : leaves) EXPECT_EQ(x.grad().scalar_type(), x.scalar_type());
      }
    }
  }
}

TEST_F(DeltaRuleTest, ChunkwiseEqualsRecurrentForEverySplit) {
  const Case c{2, 23, 2, 6, 9, true, true};
  const Data d(c);
  const DeltaRuleOutput expected = delta_rule_recurrent(d.in, d.initial);
  for (int64_t at_token = 1; at_token < c.S; ++at_token) {
    for (const int64_t chunk_size : {1, 4, 8, 64}) {
      SCOPED_TRACE(fmt::format("split at {}, chunk {}", at_token, chunk_size));
      const DeltaRuleOutput first = delta_rule_chunkwise(narrow(d.in, 0, at_token), chunk_size, d.initial);
      const DeltaRuleOutput second = delta_rule_chunkwise(narrow(d.in, at_token, c.S - at_token), chunk_size, first.state);
      expect_equal({at::cat({first.h_BSHV, second.h_BSHV}, 1), second.state}, expected, 1e-10);
    }
  }
}

// Without the final state the same outputs and gradients; without an initial one those of zeros.
TEST_F(DeltaRuleTest, StatesMayBeLeftOut) {
  for (const at::Device& device : devices()) {
    const Data d(Case{2, 37, 3, 16, 8});
    const DeltaRuleInputs in = to(d.in, device, at::kFloat);
    const DeltaRuleState zeros{at::zeros({2, 3, 16, 8}, in.q_BSHK.options())};
    const Tensor weight = randn({2, 37, 3, 8}).to(device, at::kFloat);
    std::vector<std::vector<Tensor>> all;
    for (const bool has_state : {true, false}) {
      std::vector<Tensor> x;
      for (const Tensor& input : {in.q_BSHK, in.k_BSHK, in.v_BSHV, in.igate_BSH, in.fgate_BSH}) x.push_back(testing::leaf(input));
      const DeltaRuleOutput out =
          delta_rule_chunkwise({x[0], x[1], x[2], x[3], x[4], {}}, 16, has_state ? zeros : DeltaRuleState{}, has_state);
      EXPECT_EQ(out.state.cell_BHKV.defined(), has_state);
      out.h_BSHV.backward(weight);
      std::vector<Tensor> results{out.h_BSHV.detach()};
      for (const Tensor& leaf : x) results.push_back(leaf.grad());
      const at::NoGradGuard no_grad;
      const DeltaRuleOutput plain = delta_rule_chunkwise({x[0], x[1], x[2], x[3], x[4], {}}, 16, {}, has_state);
      EXPECT_EQ(plain.state.cell_BHKV.defined(), has_state);
      results.push_back(plain.h_BSHV);
      all.push_back(std::move(results));
    }
    for (size_t i = 0; i < all[0].size(); ++i) EXPECT_TRUE(at::equal(all[0][i], all[1][i])) << device.str() << " " << i;
  }
}

using Form = std::function<DeltaRuleOutput(const DeltaRuleInputs&, const DeltaRuleState&)>;

Form chunkwise(int64_t chunk_size) {
  return [=](const DeltaRuleInputs& in, const DeltaRuleState& initial) { return delta_rule_chunkwise(in, chunk_size, initial); };
}

// A weighted sum of outputs and of the final state.
std::function<Tensor(const std::vector<Tensor>&)> weighted_loss(const Case& c, const Tensor& is_start, const Form& form) {
  const Tensor wh = randn({c.B, c.S, c.H, c.V}), wc = randn({c.B, c.H, c.K, c.V});
  return [=](const std::vector<Tensor>& x) {
    const auto like = [&](const Tensor& w) { return w.to(x[0].device(), x[0].scalar_type()); };
    const DeltaRuleOutput out = form({x[0], x[1], x[2], x[3], x[4], is_start}, x.size() > 5 ? DeltaRuleState{x[5]} : DeltaRuleState{});
    return (out.h_BSHV * like(wh)).sum() + (out.state.cell_BHKV * like(wc)).sum();
  };
}

std::vector<Tensor> point_of(const Data& d) {
  std::vector<Tensor> point{d.in.q_BSHK, d.in.k_BSHK, d.in.v_BSHV, d.in.igate_BSH, d.in.fgate_BSH};
  if (d.initial.cell_BHKV.defined()) point.push_back(d.initial.cell_BHKV);
  return point;
}

TEST_F(DeltaRuleTest, GradientsMatchDifferences) {
  for (const Case& c :
       {Case{2, 7, 2, 3, 4, true, true}, {1, 11, 1, 5, 2, false, true}, {2, 5, 1, 2, 3, true}, {1, 1, 2, 3, 2, false, true}}) {
    const Data d(c);
    for (const int64_t chunk_size : {1, 3, 4, 16}) {
      SCOPED_TRACE(fmt::format("{} chunk {}", name(c), chunk_size));
      expect_gradients_match(weighted_loss(c, d.in.is_start_BS, chunkwise(chunk_size)), point_of(d), 1e-7);
    }
  }
}

// `point`: inputs and, where there is one, the initial state. Float32 and float64 on every device against autograd's through the
// recurrence.
void expect_gradients_of_the_recurrence(const Case& c, const Tensor& is_start, const std::vector<Tensor>& point,
                                        const std::vector<int64_t>& sizes) {
  const auto seed = static_cast<uint64_t>(c.S);
  at::manual_seed(seed);
  const auto expected = gradients(weighted_loss(c, is_start, recurrence), point);
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      std::vector<Tensor> moved;
      for (const Tensor& x : point) moved.push_back(x.to(device, type));
      for (const int64_t chunk_size : sizes) {
        SCOPED_TRACE(fmt::format("{} chunk {} {} {}", name(c), chunk_size, device.str(), at::toString(type)));
        at::manual_seed(seed);  // the same loss
        const auto grads = gradients(weighted_loss(c, is_start, chunkwise(chunk_size)), moved);
        for (size_t i = 0; i < grads.size(); ++i) EXPECT_LT(relative_error(grads[i], expected[i]), tolerance(type)) << "input " << i;
      }
    }
  }
}

TEST_F(DeltaRuleTest, GradientsMatchTheRecurrenceForEveryChunkSize) {
  for (const Case& c : kCases) {
    if (c.K == 1) continue;  // of a single token of single numbers the two terms of a gradient may cancel, and with them its digits
    const Data d(c);
    expect_gradients_of_the_recurrence(c, d.in.is_start_BS, point_of(d), chunk_sizes(c.S));
  }
}

// |a - b| relative to b, or to `terms`, what b adds up where that cancels.
double error_to_terms(const Tensor& a, const Tensor& b, const Tensor& terms) {
  const Tensor difference = a.to(at::kCPU, at::kDouble) - b;
  return (difference.norm() / at::maximum(b.norm(), terms.norm())).item<double>();
}

// The sum that gives the forget gate's gradient has, within a chunk, a term for every later q . dq and v . dv (docs/mathematics.md 11).
Tensor forget_terms(const DeltaRuleInputs& in, const std::vector<Tensor>& grads) {
  const Tensor squares = (in.q_BSHK * grads[0]).sum(-1).square() + (in.v_BSHV * grads[2]).sum(-1).square();
  std::vector<Tensor> sums;
  for (const Tensor& chunk : squares.split(64, 1)) sums.push_back(chunk.flip(1).cumsum(1).flip(1));
  return at::cat(sums, 1).sqrt() * (-in.fgate_BSH).sigmoid();
}

// Where no state comes out, 2-byte inputs may take kernels of their own on a GPU: widths that these have and have not, in parts of chunks.
TEST_F(DeltaRuleTest, TwoByteGradientsMatchTheRecurrence) {
  for (const Case& c : {Case{8, 1, 8, 8, 16, false, true},
                        {3, 33, 2, 16, 8, true, true},
                        {2, 100, 3, 24, 40, true, true},
                        {1, 130, 2, 128, 64, true, false},
                        {2, 65, 1, 256, 64, false, true},
                        {1, 70, 2, 128, 128, true, true},
                        {2, 64, 1, 72, 136, true, true},
                        {1, 20, 2, 33, 17, true, true}}) {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
      Data d(c);
      for (Tensor* x : {&d.in.q_BSHK, &d.in.k_BSHK, &d.in.v_BSHV}) *x = x->to(type).to(at::kDouble);
      const Tensor weight = randn({c.B, c.S, c.H, c.V}).to(type).to(at::kDouble);
      const auto loss = [&](const Form& form) {
        return [&, form](const std::vector<Tensor>& x) {
          const DeltaRuleOutput out =
              form({x[0], x[1], x[2], x[3], x[4], d.in.is_start_BS}, x.size() > 5 ? DeltaRuleState{x[5]} : DeltaRuleState{});
          return (out.h_BSHV * weight.to(out.h_BSHV.device(), out.h_BSHV.scalar_type())).sum(at::kDouble);
        };
      };
      const std::vector<Tensor> point = point_of(d);
      const Tensor expected_h = recurrence(d.in, d.initial).h_BSHV;
      const auto expected = gradients(loss(recurrence), point);
      for (const at::Device& device : devices()) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        std::vector<Tensor> moved;
        for (size_t i = 0; i < point.size(); ++i) moved.push_back(point[i].to(device, i < 3 ? type : at::kFloat));
        Tensor h;
        const auto grads = gradients(loss([&](const DeltaRuleInputs& in, const DeltaRuleState& initial) {
                                       DeltaRuleOutput out = delta_rule_chunkwise(in, 64, initial, /*returns_state=*/false);
                                       h = out.h_BSHV.detach();
                                       return out;
                                     }),
                                     moved);
        EXPECT_EQ(h.scalar_type(), type);
        EXPECT_LT(relative_error(h, expected_h), tolerance(type));
        for (size_t i = 0; i < grads.size(); ++i) {
          EXPECT_EQ(grads[i].scalar_type(), moved[i].scalar_type()) << "input " << i;
          const double error =
              i == 4 ? error_to_terms(grads[i], expected[i], forget_terms(d.in, expected)) : relative_error(grads[i], expected[i]);
          EXPECT_LT(error, 2 * tolerance(type)) << "input " << i;
        }
        const at::NoGradGuard no_grad;
        const DeltaRuleOutput plain = delta_rule_chunkwise({moved[0], moved[1], moved[2], moved[3], moved[4], d.in.is_start_BS}, 64,
                                                           moved.size() > 5 ? DeltaRuleState{moved[5]} : DeltaRuleState{}, false);
        EXPECT_TRUE(at::equal(plain.h_BSHV, h)) << "without gradients the same output";
      }
    }
  }
}

// A gate that is no number is no forgetting: what comes after it is none either.
TEST_F(DeltaRuleTest, AGateThatIsNoNumberShows) {
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(fmt::format("{} {}", device.str(), at::toString(type)));
      const Data d(Case{1, 70, 2, 16, 16, false, true});
      const Tensor fgate_BSH = d.in.fgate_BSH.to(at::kFloat).clone();
      fgate_BSH[0][40][1] = std::numeric_limits<double>::quiet_NaN();
      const DeltaRuleInputs in{d.in.q_BSHK.to(device, type),          d.in.k_BSHK.to(device, type), d.in.v_BSHV.to(device, type),
                               d.in.igate_BSH.to(device, at::kFloat), fgate_BSH.to(device),         {}};
      const Tensor h_BSHV = delta_rule_chunkwise(in, 64, to(d.initial, device, at::kFloat), /*returns_state=*/false).h_BSHV;
      EXPECT_TRUE(h_BSHV.select(2, 1).narrow(1, 40, 30).isnan().all().item<bool>());
      EXPECT_TRUE(h_BSHV.select(2, 0).isfinite().all().item<bool>()) << "another head";
    }
  }
}

// Views and values that begin between 16-byte borders.
TEST_F(DeltaRuleTest, TwoByteInputsMayBeViewsAnywhere) {
  for (const at::Device& device : devices()) {
    const Data d(Case{2, 40, 2, 16, 8, true});
    const DeltaRuleInputs in = to(d.in, device, at::kFloat);
    const auto moved = [](const Tensor& x) {
      const Tensor wide = at::empty({x.numel() + 1}, x.options().dtype(at::kBFloat16));
      Tensor view = wide.narrow(0, 1, x.numel()).view(x.sizes());
      view.copy_(x);
      return view;
    };
    const auto plain = [](const Tensor& x) { return x.to(at::kBFloat16); };
    const DeltaRuleInputs given{moved(in.q_BSHK), moved(in.k_BSHK), moved(in.v_BSHV), in.igate_BSH, in.fgate_BSH, in.is_start_BS};
    const DeltaRuleInputs same{plain(in.q_BSHK), plain(in.k_BSHK), plain(in.v_BSHV), in.igate_BSH, in.fgate_BSH, in.is_start_BS};
    const Tensor expected = delta_rule_chunkwise(same, 64, {}, /*returns_state=*/false).h_BSHV;
    EXPECT_TRUE(at::equal(delta_rule_chunkwise(given, 64, {}, /*returns_state=*/false).h_BSHV, expected)) << device.str();
  }
}

// As positive features are at the start: here the powers of A reach 1e30.
TEST_F(DeltaRuleTest, NearlyParallelKeysKeepTheirDigits) {
  const Case c{2, 128, 2, 16, 8, false, true};
  Data d(c);
  d.in.q_BSHK = unit_rows(1 + randn({c.B, c.S, c.H, c.K}, 0.03).abs());
  d.in.k_BSHK = unit_rows(1 + randn({c.B, c.S, c.H, c.K}, 0.03).abs());
  d.in.igate_BSH.add_(4);
  d.in.fgate_BSH.add_(6);
  const DeltaRuleOutput expected = run_reference(d);
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      for (const int64_t chunk_size : {16, 64, 128}) {
        SCOPED_TRACE(fmt::format("chunk {} {} {}", chunk_size, device.str(), at::toString(type)));
        const DeltaRuleInputs in = to(d.in, device, type);
        const DeltaRuleState initial = to(d.initial, device, type);
        expect_equal(delta_rule_chunkwise(in, chunk_size, initial), expected, tolerance(type));
        expect_equal(delta_rule_chunkwise_aten(in, chunk_size, initial), expected, tolerance(type));
      }
    }
  }
  expect_gradients_of_the_recurrence(c, {}, point_of(d), {16, 64, 128});
}

// The form that other devices run, on the CPU: the same values, and inputs that stay as they were even where their chunks are views of
// them.
TEST_F(DeltaRuleTest, TheTensorFormEqualsTheKernelsAndLeavesItsInputs) {
  auto cases = kCases;
  cases.push_back({2, 8, 1, 4, 4, false, true});
  for (const Case& c : cases) {
    Data d(c);
    if (!c.with_state) d.initial = {at::zeros({c.B, c.H, c.K, c.V}, at::kDouble)};
    const auto inputs = point_of(d);
    std::vector<Tensor> before;
    for (const Tensor& x : inputs) before.push_back(x.clone());
    expect_equal(delta_rule_recurrent_aten(d.in, d.initial), delta_rule_recurrent_cpu(d.in, d.initial), tolerance(at::kDouble));
    for (const int64_t chunk_size : {int64_t{1}, int64_t{4}, int64_t{8}, int64_t{64}, c.S}) {
      SCOPED_TRACE(fmt::format("{} chunk {}", name(c), chunk_size));
      expect_equal(delta_rule_chunkwise_aten(d.in, chunk_size, d.initial), delta_rule_chunkwise_cpu(d.in, chunk_size, d.initial),
                   tolerance(at::kDouble));
      const Tensor grad_h = randn({c.B, c.S, c.H, c.V});
      const DeltaRuleState grad_final{randn({c.B, c.H, c.K, c.V})};
      const auto [grads, grad_initial] = delta_rule_backward_aten(d.in, chunk_size, d.initial, grad_h, grad_final);
      const auto [expected, expected_initial] = delta_rule_backward_cpu(d.in, chunk_size, d.initial, grad_h, grad_final);
      EXPECT_LT(relative_error(grads.q_BSHK, expected.q_BSHK), tolerance(at::kDouble));
      EXPECT_LT(relative_error(grads.k_BSHK, expected.k_BSHK), tolerance(at::kDouble));
      EXPECT_LT(relative_error(grads.v_BSHV, expected.v_BSHV), tolerance(at::kDouble));
      EXPECT_LT(relative_error(grads.igate_BSH, expected.igate_BSH), tolerance(at::kDouble));
      if (c.K > 1) {  // there a single token finds an empty state: 0 but for rounding
        EXPECT_LT(relative_error(grads.fgate_BSH, expected.fgate_BSH), tolerance(at::kDouble));
      }
      EXPECT_LT(relative_error(grad_initial.cell_BHKV, expected_initial.cell_BHKV), tolerance(at::kDouble));
    }
    for (size_t i = 0; i < inputs.size(); ++i) EXPECT_TRUE(at::equal(inputs[i], before[i])) << i;
  }
}

TEST_F(DeltaRuleTest, ASplitSequenceGivesTheSameGradients) {
  const Case c{2, 13, 2, 4, 5, true, true};
  const Data d(c);
  at::manual_seed(seed_);
  const auto whole = gradients(weighted_loss(c, d.in.is_start_BS, chunkwise(4)), point_of(d));
  for (int64_t at_token = 1; at_token < c.S; ++at_token) {
    const Form split = [&](const DeltaRuleInputs& in, const DeltaRuleState& initial) -> DeltaRuleOutput {
      const DeltaRuleOutput first = delta_rule_chunkwise(narrow(in, 0, at_token), 4, initial);
      const DeltaRuleOutput second = delta_rule_chunkwise(narrow(in, at_token, c.S - at_token), 4, first.state);
      return {at::cat({first.h_BSHV, second.h_BSHV}, 1), second.state};
    };
    at::manual_seed(seed_);  // the same loss
    const auto grads = gradients(weighted_loss(c, d.in.is_start_BS, split), point_of(d));
    for (size_t i = 0; i < whole.size(); ++i)
      EXPECT_LT(relative_error(grads[i], whole[i]), 1e-10) << "split at " << at_token << ", input " << i;
  }
}

TEST_F(DeltaRuleTest, AStartEqualsASequenceOfItsOwn) {
  const Case c{2, 20, 2, 6, 7, false, true};
  Data d(c);
  d.in.is_start_BS = at::zeros({c.B, c.S}, at::kByte);
  d.in.is_start_BS.select(1, 7).fill_(1);
  DeltaRuleInputs rest = narrow(d.in, 7, 13);
  rest.is_start_BS = Tensor();
  for (const at::Device& device : devices()) {
    for (const int64_t chunk_size : {1, 4, 7, 8, 20}) {
      const DeltaRuleOutput joined = delta_rule_chunkwise(to(d.in, device, at::kDouble), chunk_size, to(d.initial, device, at::kDouble));
      const DeltaRuleOutput alone = delta_rule_chunkwise(to(rest, device, at::kDouble), chunk_size);
      EXPECT_LT(relative_error(joined.h_BSHV.narrow(1, 7, 13), alone.h_BSHV), 1e-12) << chunk_size;
      EXPECT_LT(relative_error(joined.state.cell_BHKV, alone.state.cell_BHKV), 1e-12) << chunk_size;
    }
  }
}

// No gradient crosses a start, not even a rounding error's worth.
TEST_F(DeltaRuleTest, AStartStopsGradients) {
  const Data d(Case{1, 12, 1, 4, 4, false, true});
  Tensor is_start = at::zeros({1, 12}, at::kByte);
  is_start[0][5] = 1;
  for (const int64_t chunk_size : {1, 4, 12}) {
    const auto grads = gradients(
        [&](const std::vector<Tensor>& x) {
          const DeltaRuleOutput out = delta_rule_chunkwise({x[0], x[1], x[2], x[3], x[4], is_start}, chunk_size, {x[5]});
          return out.h_BSHV.narrow(1, 5, 7).sum() + out.state.cell_BHKV.sum();
        },
        point_of(d));
    for (size_t i = 0; i < 5; ++i) EXPECT_EQ(grads[i].narrow(1, 0, 5).abs().max().item<double>(), 0.0) << i;
    EXPECT_EQ(grads[4][0][5].abs().max().item<double>(), 0.0) << "the forget gate of the first token decays nothing";
    EXPECT_EQ(grads[5].abs().max().item<double>(), 0.0);
  }
}

TEST_F(DeltaRuleTest, ClosedAndOpenGatesStayFinite) {
  for (const double input_shift : {-1000.0, -50.0, 50.0, 1000.0}) {
    for (const double forget_shift : {-1000.0, -50.0, 50.0, 1000.0}) {
      Data d(Case{2, 40, 2, 8, 8, true, true});
      d.in.igate_BSH.add_(input_shift);
      d.in.fgate_BSH.add_(forget_shift);
      for (const at::Device& device : devices()) {
        std::vector<Tensor> moved;
        for (const Tensor& x : point_of(d)) moved.push_back(x.to(device, at::kFloat));
        const auto grads = gradients(weighted_loss({2, 40, 2, 8, 8}, d.in.is_start_BS, chunkwise(16)), moved);
        for (const Tensor& g : grads) EXPECT_TRUE(g.isfinite().all().item<bool>()) << input_shift << " " << forget_shift;
        const DeltaRuleOutput out = delta_rule_recurrent(to(d.in, device, at::kFloat), to(d.initial, device, at::kFloat));
        EXPECT_TRUE(out.h_BSHV.isfinite().all().item<bool>()) << input_shift << " " << forget_shift;
      }
    }
  }
}

TEST_F(DeltaRuleTest, RefusesWhatDoesNotFit) {
  const Data d(Case{2, 3, 2, 4, 5});
  DeltaRuleInputs in = d.in;
  in.k_BSHK = randn({2, 3, 2, 5});
  EXPECT_THROW(delta_rule_chunkwise(in, 8), ShapeError);
  in = d.in;
  in.fgate_BSH = randn({2, 2, 3});
  EXPECT_THROW(delta_rule_recurrent(in), ShapeError);
  in = d.in;
  in.igate_BSH = Tensor();
  EXPECT_THROW(delta_rule_chunkwise(in, 8), ShapeError);
  in = d.in;
  in.is_start_BS = at::zeros({3, 2}, at::kByte);
  EXPECT_THROW(delta_rule_chunkwise(in, 8), ShapeError);
  EXPECT_THROW(delta_rule_chunkwise(d.in, 0), ValueError);
  EXPECT_THROW(delta_rule_chunkwise(d.in, 4, {randn({2, 2, 5, 4})}), ShapeError);
  EXPECT_THROW(delta_rule_chunkwise(narrow(d.in, 0, 0), 4), ShapeError);
  in = d.in;
  in.v_BSHV = in.v_BSHV.to(at::kMeta);  // another device, without one
  EXPECT_THROW(delta_rule_chunkwise(in, 4), ShapeError);
  EXPECT_THROW(delta_rule_recurrent(d.in, {randn({2, 2, 4, 5}).to(at::kMeta)}), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
