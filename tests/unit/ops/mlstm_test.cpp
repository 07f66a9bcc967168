#include "ops/mlstm.h"

#include "base/error.h"
#include "gated_testing.h"
#include "kernels/reference/reference.h"
#include "ops/mlstm_forms.h"

namespace distil_xlstm::ops {
namespace {

using namespace distil_xlstm::testing;
using testing::to;  // beside those of states

// K = 1 and a single token without a state give gradients of exactly 0 (h does not depend on q; h = +-v): there is nothing to measure
// errors against, so the gradients' tests leave such cases out.
const std::vector<Case> kCases = {{1, 1, 1, 1, 1},
                                  {4, 1, 2, 6, 5, false, true},
                                  {1, 1, 2, 4, 4, false, true},
                                  {3, 7, 2, 5, 3, true, true},
                                  {1, 33, 3, 8, 8, true},
                                  {3, 33, 2, 16, 16, true, true},
                                  {2, 100, 4, 24, 40, true, true},
                                  {1, 100, 2, 64, 64, true},
                                  {3, 33, 2, 16, 16, true, true, 50.0},
                                  {2, 70, 2, 33, 17, false, true},
                                  {2, 9, 3, 20, 64, true, true}};

struct Data {
  MlstmInputs in;
  MlstmState initial;

  explicit Data(const Case& c, double igate_shift = 0.0) {
    const Tensor gates = randn({2, c.B, c.S, c.H}, c.gate_scale);
    in = {randn({c.B, c.S, c.H, c.K}), randn({c.B, c.S, c.H, c.K}), randn({c.B, c.S, c.H, c.V}), gates[0] + igate_shift, gates[1] + 2, {}};
    // With large gates nothing bounds the denominator from below: without cancellation in it, errors stay those of the arithmetic.
    if (c.gate_scale > 1) in.q_BSHK = in.q_BSHK.abs(), in.k_BSHK = in.k_BSHK.abs();
    if (c.with_starts) in.is_start_BS = random_starts(c.B, c.S, 0.08);
    if (c.with_state) initial = {randn({c.B, c.H, c.K, c.V}), randn({c.B, c.H, c.K}), randn({c.B, c.H}) + igate_shift};
  }
};

MlstmState to(const MlstmState& state, at::Device device, at::ScalarType type) {
  const auto as = [&](const Tensor& x) { return x.defined() ? x.to(device, type) : x; };
  return {as(state.cell_BHKV), as(state.normalizer_BHK), as(state.stabilizer_BH)};
}

MlstmInputs narrow(const MlstmInputs& in, int64_t begin, int64_t length) {
  const auto part = [&](const Tensor& x) { return x.defined() ? x.narrow(1, begin, length) : x; };
  return {part(in.q_BSHK), part(in.k_BSHK), part(in.v_BSHV), part(in.igate_BSH), part(in.fgate_BSH), part(in.is_start_BS)};
}

MlstmOutput run_reference(const Data& d) {
  const auto& in = d.in;
  const int64_t B = in.q_BSHK.size(0), S = in.q_BSHK.size(1), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  const auto state = [&](const Tensor& x, at::IntArrayRef sizes) { return x.defined() ? x.clone() : at::zeros(sizes, at::kDouble); };
  MlstmOutput out{
      at::empty({B, S, H, V}, at::kDouble),
      {state(d.initial.cell_BHKV, {B, H, K, V}), state(d.initial.normalizer_BHK, {B, H, K}), state(d.initial.stabilizer_BH, {B, H})}};
  const Tensor q = in.q_BSHK.contiguous(), k = in.k_BSHK.contiguous(), v = in.v_BSHV.contiguous(), i = in.igate_BSH.contiguous(),
               f = in.fgate_BSH.contiguous();
  kernels::reference::mlstm(
      {B, S, H, K, V},
      {q.data_ptr<double>(), k.data_ptr<double>(), v.data_ptr<double>(), i.data_ptr<double>(), f.data_ptr<double>(),
       in.is_start_BS.defined() ? in.is_start_BS.data_ptr<uint8_t>() : nullptr},
      {out.state.cell_BHKV.data_ptr<double>(), out.state.normalizer_BHK.data_ptr<double>(), out.state.stabilizer_BH.data_ptr<double>()},
      out.h_BSHV.data_ptr<double>());
  return out;
}

enum class Frame { fixed, moving };

// The recurrence step by step in ATen operations. eps is added in a frame m that moves with the gates; the chunkwise form's derivative
// leaves that out by design: autograd gives it with m a constant of the graph (Frame::fixed), and the whole derivative with Frame::moving.
MlstmOutput recurrence(const MlstmInputs& in, const MlstmState& initial, Frame frame) {
  const int64_t B = in.q_BSHK.size(0), S = in.q_BSHK.size(1), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  const auto options = in.q_BSHK.options().requires_grad(false);
  const auto or_zeros = [&](const Tensor& x, at::IntArrayRef sizes) { return x.defined() ? x : at::zeros(sizes, options); };
  Tensor C = or_zeros(initial.cell_BHKV, {B, H, K, V}), n = or_zeros(initial.normalizer_BHK, {B, H, K}),
         m = or_zeros(initial.stabilizer_BH, {B, H});
  std::vector<Tensor> h;
  for (int64_t t = 0; t < S; ++t) {
    if (in.is_start_BS.defined()) {
      const Tensor kept = in.is_start_BS.select(1, t).eq(0).to(options.dtype()).unsqueeze(-1);
      C = C * kept.unsqueeze(-1).unsqueeze(-1), n = n * kept.unsqueeze(-1), m = m * kept;
    }
    const Tensor q = in.q_BSHK.select(1, t), k = in.k_BSHK.select(1, t) / std::sqrt(static_cast<double>(K)), v = in.v_BSHV.select(1, t);
    const Tensor carried = at::log_sigmoid(in.fgate_BSH.select(1, t)) + m, i = in.igate_BSH.select(1, t);
    m = at::maximum(carried, i);
    if (frame == Frame::fixed) m = m.detach();
    const Tensor forget = (carried - m).exp().unsqueeze(-1), weighted = (i - m).exp().unsqueeze(-1) * k;
    C = forget.unsqueeze(-1) * C + weighted.unsqueeze(-1) * v.unsqueeze(-2);
    n = forget * n + weighted;
    const Tensor divisor = at::maximum((q * n).sum(-1).abs(), (-m).exp()) + 1e-6;
    h.push_back((q.unsqueeze(-1) * C).sum(-2) / divisor.unsqueeze(-1));
  }
  return {at::stack(h, 1), {C, n, m}};
}

void expect_equal(const MlstmOutput& out, const MlstmOutput& expected, double limit) {
  EXPECT_LT(relative_error(out.h_BSHV, expected.h_BSHV), limit) << "h";
  // States are compared in a common frame: where all gates are nearly closed, m is a rounding apart and exp(m) multiplies that.
  const Tensor m = out.state.stabilizer_BH.detach().to(at::kCPU, at::kDouble),
               shift = (m - expected.state.stabilizer_BH.to(at::kCPU, at::kDouble)).exp();
  EXPECT_LT(relative_error(out.state.cell_BHKV.cpu() * shift.unsqueeze(-1).unsqueeze(-1), expected.state.cell_BHKV), limit) << "C";
  EXPECT_LT(relative_error(out.state.normalizer_BHK.cpu() * shift.unsqueeze(-1), expected.state.normalizer_BHK), limit) << "n";
  EXPECT_LT(relative_error(m, expected.state.stabilizer_BH), limit) << "m";
}

class MlstmTest : public OpTest {};

TEST_F(MlstmTest, ChunkwiseMatchesTheReferenceForEveryChunkSize) {
  for (const Case& c : kCases) {
    const Data d(c);
    const MlstmOutput expected = run_reference(d);
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        for (const int64_t chunk_size : chunk_sizes(c.S)) {
          SCOPED_TRACE(fmt::format("{} chunk {} {} {}", name(c), chunk_size, device.str(), at::toString(type)));
          // Rounding a gate of +-50 to float32 moves its weight by 4e-6 already.
          const double limit = tolerance(type) * (c.gate_scale > 1 && type == at::kFloat ? 5 : 1);
          expect_equal(mlstm_chunkwise(to(d.in, device, type), chunk_size, to(d.initial, device, type)), expected, limit);
        }
      }
    }
  }
}

// On CUDA these go through the tensor cores.
TEST_F(MlstmTest, TwoByteInputsMatchTheReferenceOnTheSameInputs) {
  for (const Case& c : kCases) {
    if (c.gate_scale > 1) continue;
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
      Data d(c);
      for (Tensor* x : {&d.in.q_BSHK, &d.in.k_BSHK, &d.in.v_BSHV}) *x = x->to(type).to(at::kDouble);
      const MlstmOutput expected = run_reference(d);
      for (const at::Device& device : devices()) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        MlstmInputs in = to(d.in, device, at::kFloat);
        for (Tensor* x : {&in.q_BSHK, &in.k_BSHK, &in.v_BSHV}) *x = x->to(type);
        const MlstmOutput out = mlstm_chunkwise(in, 64, to(d.initial, device, at::kFloat));
        EXPECT_EQ(out.h_BSHV.scalar_type(), type);
        expect_equal(out, expected, type == at::kBFloat16 ? 1.2e-2 : 2e-3);
      }
    }
  }
}

// Without the final state the same outputs and gradients; without an initial one those of zeros.
TEST_F(MlstmTest, StatesMayBeLeftOut) {
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kBFloat16, at::kFloat, at::kDouble}) {
      Data d(Case{2, 37, 3, 16, 8});
      const MlstmInputs in = to(d.in, device, at::kFloat);
      const auto options = in.igate_BSH.options();
      const MlstmState zeros{at::zeros({2, 3, 16, 8}, options), at::zeros({2, 3, 16}, options), at::zeros({2, 3}, options)};
      const Tensor weight = randn({2, 37, 3, 8}).to(device, type);
      std::vector<std::vector<Tensor>> all;
      for (const bool has_state : {true, false}) {
        std::vector<Tensor> x{testing::leaf(in.q_BSHK.to(type)), testing::leaf(in.k_BSHK.to(type)), testing::leaf(in.v_BSHV.to(type)),
                              testing::leaf(in.igate_BSH), testing::leaf(in.fgate_BSH)};
        const MlstmOutput out =
            mlstm_chunkwise({x[0], x[1], x[2], x[3], x[4], in.is_start_BS}, 16, has_state ? zeros : MlstmState{}, has_state);
        EXPECT_EQ(out.state.cell_BHKV.defined(), has_state);
        out.h_BSHV.backward(weight);
        std::vector<Tensor> results{out.h_BSHV.detach()};
        for (const Tensor& leaf : x) results.push_back(leaf.grad());
        const at::NoGradGuard no_grad;
        const MlstmOutput plain = mlstm_chunkwise({x[0], x[1], x[2], x[3], x[4], in.is_start_BS}, 16, {}, has_state);
        EXPECT_EQ(plain.state.cell_BHKV.defined(), has_state);
        results.push_back(plain.h_BSHV);
        all.push_back(std::move(results));
      }
      for (size_t i = 0; i < all[0].size(); ++i)
        EXPECT_TRUE(at::equal(all[0][i], all[1][i])) << device.str() << " " << at::toString(type) << " " << i;
    }
  }
}

TEST_F(MlstmTest, RecurrentMatchesTheReference) {
  for (const Case& c : kCases) {
    const Data d(c);
    const MlstmOutput expected = run_reference(d);
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        SCOPED_TRACE(fmt::format("{} {} {}", name(c), device.str(), at::toString(type)));
        const double limit = tolerance(type) * (c.gate_scale > 1 && type == at::kFloat ? 5 : 1);
        expect_equal(mlstm_recurrent(to(d.in, device, type), to(d.initial, device, type)), expected, limit);
      }
    }
  }
}

TEST_F(MlstmTest, ChunkwiseEqualsRecurrentForEverySplit) {
  const Case c{2, 23, 2, 6, 9, true, true};
  const Data d(c);
  const MlstmOutput expected = mlstm_recurrent(d.in, d.initial);
  for (int64_t at_token = 1; at_token < c.S; ++at_token) {
    for (const int64_t chunk_size : {1, 4, 8, 64}) {
      SCOPED_TRACE(fmt::format("split at {}, chunk {}", at_token, chunk_size));
      const MlstmOutput first = mlstm_chunkwise(narrow(d.in, 0, at_token), chunk_size, d.initial);
      const MlstmOutput second = mlstm_chunkwise(narrow(d.in, at_token, c.S - at_token), chunk_size, first.state);
      expect_equal({at::cat({first.h_BSHV, second.h_BSHV}, 1), second.state}, expected, 1e-10);
    }
  }
}

// The parallel form adds eps in another frame. With closed input gates both frames lie at or below 1, so eps counts for at most itself;
// with open ones it counts for eps / N, however small N becomes by cancellation.
TEST_F(MlstmTest, ParallelFormAgrees) {
  for (const double igate_shift : {-4.0, 0.0}) {
    for (const bool with_starts : {false, true}) {
      SCOPED_TRACE(fmt::format("input gates {}, starts {}", igate_shift, with_starts));
      const Data d(Case{2, 40, 2, 8, 12, with_starts}, igate_shift);
      const Tensor weights = randn({2, 40, 2, 12});
      const auto point = std::vector<Tensor>{d.in.q_BSHK, d.in.k_BSHK, d.in.v_BSHV, d.in.igate_BSH, d.in.fgate_BSH};
      const auto inputs = [&](const std::vector<Tensor>& x) { return MlstmInputs{x[0], x[1], x[2], x[3], x[4], d.in.is_start_BS}; };
      EXPECT_LT(relative_error(mlstm_chunkwise(d.in, 16).h_BSHV, mlstm_parallel(d.in)), 1e-6);
      const auto expected = gradients([&](const std::vector<Tensor>& x) { return (mlstm_parallel(inputs(x)) * weights).sum(); }, point);
      const auto grads =
          gradients([&](const std::vector<Tensor>& x) { return (mlstm_chunkwise(inputs(x), 16).h_BSHV * weights).sum(); }, point);
      for (size_t i = 0; i < grads.size(); ++i) {
        EXPECT_LT(relative_error(grads[i], expected[i]), igate_shift < 0 ? 2e-6 : 5e-4) << "input " << i;
      }
    }
  }
}

using Form = std::function<MlstmOutput(const MlstmInputs&, const MlstmState&)>;

Form chunkwise(int64_t chunk_size) {
  return [=](const MlstmInputs& in, const MlstmState& initial) { return mlstm_chunkwise(in, chunk_size, initial); };
}

// A weighted sum of outputs and of the final state as C exp(m) and n exp(m): what C and n mean, whatever the frame m.
std::function<Tensor(const std::vector<Tensor>&)> weighted_loss(const Case& c, const Tensor& is_start, const Form& form) {
  const Tensor wh = randn({c.B, c.S, c.H, c.V}), wc = randn({c.B, c.H, c.K, c.V}), wn = randn({c.B, c.H, c.K});
  return [=](const std::vector<Tensor>& x) {
    const auto like = [&](const Tensor& w) { return w.to(x[0].device(), x[0].scalar_type()); };
    const MlstmState initial = x.size() > 5 ? MlstmState{x[5], x[6], x[7]} : MlstmState{};
    const MlstmOutput out = form({x[0], x[1], x[2], x[3], x[4], is_start}, initial);
    const Tensor frame = out.state.stabilizer_BH.exp().unsqueeze(-1);
    return (out.h_BSHV * like(wh)).sum() + (out.state.cell_BHKV * frame.unsqueeze(-1) * like(wc)).sum() +
           (out.state.normalizer_BHK * frame * like(wn)).sum();
  };
}

std::vector<Tensor> point_of(const Case& c, const Data& d) {
  std::vector<Tensor> point{d.in.q_BSHK, d.in.k_BSHK, d.in.v_BSHV, d.in.igate_BSH, d.in.fgate_BSH};
  if (c.with_state) point.insert(point.end(), {d.initial.cell_BHKV, d.initial.normalizer_BHK, d.initial.stabilizer_BH});
  return point;
}

// Again with other inputs where a denominator lies at its kink.
void expect_gradients_match_differences(const Case& c, const Form& form, double limit) {
  bool compared = false;
  for (int draw = 0; draw < 4 && !compared; ++draw) {
    const Data d(c);
    compared = gradients_were_compared(weighted_loss(c, d.in.is_start_BS, form), point_of(c, d), limit);
  }
  EXPECT_TRUE(compared) << "differences converge in no draw";
}

// The whole derivative to 1e-6 in the recurrence, whose fixed frame is then what the chunkwise form must equal; the chunkwise form itself
// up to the part that it leaves out, of the order of eps / N.
TEST_F(MlstmTest, GradientsMatchDifferences) {
  for (const Case& c :
       {Case{2, 1, 1, 3, 2, false, true}, Case{2, 5, 2, 3, 2, true, true}, Case{1, 11, 1, 4, 6, false, true}, Case{2, 9, 1, 5, 3, true}}) {
    SCOPED_TRACE(name(c));
    expect_gradients_match_differences(
        c, [](const MlstmInputs& in, const MlstmState& initial) { return recurrence(in, initial, Frame::moving); }, 1e-6);
    for (const int64_t chunk_size : {1, 3, 4, 16}) {
      SCOPED_TRACE(fmt::format("chunk {}", chunk_size));
      expect_gradients_match_differences(c, chunkwise(chunk_size), 5e-4);
    }
  }
}

TEST_F(MlstmTest, GradientsMatchTheRecurrenceForEveryChunkSize) {
  for (const Case& c : kCases) {
    if (c.gate_scale > 1 || c.K == 1) continue;
    const Data d(c);
    const auto point = point_of(c, d);
    const int64_t seed_state = c.S;
    at::manual_seed(seed_state);
    const Form fixed = [](const MlstmInputs& in, const MlstmState& initial) { return recurrence(in, initial, Frame::fixed); };
    const auto expected = gradients(weighted_loss(c, d.in.is_start_BS, fixed), point);
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        for (const int64_t chunk_size : chunk_sizes(c.S)) {
          SCOPED_TRACE(fmt::format("{} chunk {} {} {}", name(c), chunk_size, device.str(), at::toString(type)));
          std::vector<Tensor> moved;
          for (const Tensor& x : point) moved.push_back(x.to(device, type));
          at::manual_seed(seed_state);  // the same loss
          const auto grads = gradients(weighted_loss(c, d.in.is_start_BS, chunkwise(chunk_size)), moved);
          for (size_t i = 0; i < grads.size(); ++i) {
            EXPECT_LT(relative_error(grads[i], expected[i]), tolerance(type)) << "input " << i;
          }
        }
      }
    }
  }
}

// The form that other devices run, on the CPU: the same values, and inputs that stay as they were even where their chunks are views of
// them.
TEST_F(MlstmTest, TheTensorFormEqualsTheKernelsAndLeavesItsInputs) {
  auto cases = kCases;
  cases.push_back({2, 8, 1, 4, 4, false, true});
  for (const Case& c : cases) {
    const Data d(c);
    const auto zeros = [&](at::IntArrayRef sizes) { return at::zeros(sizes, at::kDouble); };
    const MlstmState initial =
        c.with_state ? d.initial : MlstmState{zeros({c.B, c.H, c.K, c.V}), zeros({c.B, c.H, c.K}), zeros({c.B, c.H})};
    const MlstmInputs kept = to(d.in, at::kCPU, at::kDouble);
    for (const int64_t chunk_size : {int64_t{1}, int64_t{4}, c.S}) {
      SCOPED_TRACE(fmt::format("{} chunk {}", name(c), chunk_size));
      const MlstmInputs before{kept.q_BSHK.clone(),    kept.k_BSHK.clone(),    kept.v_BSHV.clone(),
                               kept.igate_BSH.clone(), kept.fgate_BSH.clone(), {}};
      const MlstmOutput out = mlstm_chunkwise_aten(kept, chunk_size, initial), expected = mlstm_chunkwise_cpu(kept, chunk_size, initial);
      EXPECT_LT(relative_error(out.h_BSHV, expected.h_BSHV), tolerance(at::kDouble));
      const Tensor grad_h = randn({c.B, c.S, c.H, c.V});
      const MlstmState grad_state{randn({c.B, c.H, c.K, c.V}), randn({c.B, c.H, c.K}), {}};
      if (c.gate_scale == 1) {
        const auto grads = mlstm_backward_aten(kept, chunk_size, initial, out.h_BSHV, grad_h, grad_state);
        const auto expected_grads = mlstm_backward_cpu(kept, chunk_size, initial, out.h_BSHV, grad_h, grad_state);
        EXPECT_LT(relative_error(grads.grad_inputs.v_BSHV, expected_grads.grad_inputs.v_BSHV), tolerance(at::kDouble));
        EXPECT_LT(relative_error(grads.grad_initial.cell_BHKV, expected_grads.grad_initial.cell_BHKV), tolerance(at::kDouble));
        if (c.K > 1) {
          EXPECT_LT(relative_error(grads.grad_inputs.k_BSHK, expected_grads.grad_inputs.k_BSHK), tolerance(at::kDouble));
        }
      }
      EXPECT_TRUE(at::equal(kept.q_BSHK, before.q_BSHK) && at::equal(kept.k_BSHK, before.k_BSHK) && at::equal(kept.v_BSHV, before.v_BSHV));
      EXPECT_TRUE(at::equal(kept.igate_BSH, before.igate_BSH) && at::equal(kept.fgate_BSH, before.fgate_BSH));
    }
  }
}

TEST_F(MlstmTest, ASplitSequenceGivesTheSameGradients) {
  const Case c{2, 13, 2, 4, 5, true, true};
  const Data d(c);
  const Tensor wh = randn({c.B, c.S, c.H, c.V}), wc = randn({c.B, c.H, c.K, c.V});
  const auto inputs = [&](const std::vector<Tensor>& x) { return MlstmInputs{x[0], x[1], x[2], x[3], x[4], d.in.is_start_BS}; };
  const auto state = [&](const std::vector<Tensor>& x) { return MlstmState{x[5], x[6], x[7]}; };
  const auto whole = gradients(
      [&](const std::vector<Tensor>& x) {
        const MlstmOutput out = mlstm_chunkwise(inputs(x), 4, state(x));
        return (out.h_BSHV * wh).sum() + (out.state.cell_BHKV * wc).sum();
      },
      point_of(c, d));
  for (int64_t at_token = 1; at_token < c.S; ++at_token) {
    const auto split = gradients(
        [&](const std::vector<Tensor>& x) {
          const MlstmOutput first = mlstm_chunkwise(narrow(inputs(x), 0, at_token), 4, state(x));
          const MlstmOutput second = mlstm_chunkwise(narrow(inputs(x), at_token, c.S - at_token), 4, first.state);
          return (at::cat({first.h_BSHV, second.h_BSHV}, 1) * wh).sum() + (second.state.cell_BHKV * wc).sum();
        },
        point_of(c, d));
    for (size_t i = 0; i < whole.size(); ++i)
      EXPECT_LT(relative_error(split[i], whole[i]), 1e-10) << "split at " << at_token << ", input " << i;
  }
}

TEST_F(MlstmTest, AStartEqualsASequenceOfItsOwn) {
  const Case c{2, 20, 2, 6, 7, false, true};
  Data d(c);
  d.in.is_start_BS = at::zeros({c.B, c.S}, at::kByte);
  d.in.is_start_BS.select(1, 7).fill_(1);
  for (const at::Device& device : devices()) {
    for (const int64_t chunk_size : {1, 4, 7, 8, 20}) {
      const MlstmOutput joined = mlstm_chunkwise(to(d.in, device, at::kDouble), chunk_size, to(d.initial, device, at::kDouble));
      MlstmInputs rest = narrow(d.in, 7, 13);
      rest.is_start_BS = Tensor();
      const MlstmOutput alone = mlstm_chunkwise(to(rest, device, at::kDouble), chunk_size);
      EXPECT_LT(relative_error(joined.h_BSHV.narrow(1, 7, 13), alone.h_BSHV), 1e-12) << chunk_size;
      EXPECT_LT(relative_error(joined.state.cell_BHKV, alone.state.cell_BHKV), 1e-12) << chunk_size;
    }
  }
}

// No gradient crosses a start, not even a rounding error's worth.
TEST_F(MlstmTest, AStartStopsGradients) {
  const Case c{1, 12, 1, 4, 4, false, true};
  const Data d(c);
  Tensor is_start = at::zeros({1, 12}, at::kByte);
  is_start[0][5] = 1;
  for (const int64_t chunk_size : {1, 4, 12}) {
    const auto grads = gradients(
        [&](const std::vector<Tensor>& x) {
          const MlstmOutput out = mlstm_chunkwise({x[0], x[1], x[2], x[3], x[4], is_start}, chunk_size, {x[5], x[6], x[7]});
          return out.h_BSHV.narrow(1, 5, 7).sum() + out.state.cell_BHKV.sum();
        },
        point_of(c, d));
    for (size_t i = 0; i < 5; ++i) EXPECT_EQ(grads[i].narrow(1, 0, 5).abs().max().item<double>(), 0.0) << i;
    EXPECT_EQ(grads[4][0][5].abs().max().item<double>(), 0.0) << "the forget gate of the first token decays nothing";
    for (size_t i = 5; i < 8; ++i) EXPECT_EQ(grads[i].abs().max().item<double>(), 0.0) << i;
  }
}

TEST_F(MlstmTest, AnEmptyStateHidesItsStabilizer) {
  const Case c{2, 20, 1, 8, 8};
  const Data d(c);
  const Tensor expected = mlstm_chunkwise(d.in, 8).h_BSHV;
  for (const double m : {-20.0, -1.0, 1.0}) {
    const MlstmState empty{at::zeros({2, 1, 8, 8}, at::kDouble), at::zeros({2, 1, 8}, at::kDouble), at::full({2, 1}, m, at::kDouble)};
    EXPECT_LT(relative_error(mlstm_chunkwise(d.in, 8, empty).h_BSHV, expected), 1e-5) << m;
    EXPECT_LT(relative_error(mlstm_recurrent(d.in, empty).h_BSHV, expected), 1e-5) << m;
  }
}

TEST_F(MlstmTest, ClosedAndOpenGatesStayFinite) {
  const Case c{2, 40, 2, 8, 8};
  for (const double input_shift : {-1000.0, -100.0, -50.0, 50.0}) {
    for (const double forget_shift : {-1000.0, -50.0, 50.0}) {
      Data d(c);
      d.in.igate_BSH.add_(input_shift);
      d.in.fgate_BSH.add_(forget_shift);
      for (const at::Device& device : devices()) {
        const auto point = point_of(c, d);
        std::vector<Tensor> moved;
        for (const Tensor& x : point) moved.push_back(x.to(device, at::kFloat));
        const auto grads = gradients(
            [&](const std::vector<Tensor>& x) { return mlstm_chunkwise({x[0], x[1], x[2], x[3], x[4], {}}, 16).h_BSHV.sum(); }, moved);
        for (const Tensor& g : grads) EXPECT_TRUE(g.isfinite().all().item<bool>()) << input_shift << " " << forget_shift;
        EXPECT_TRUE(mlstm_chunkwise(to(d.in, device, at::kFloat), 16).h_BSHV.isfinite().all().item<bool>());
      }
    }
  }
}

TEST_F(MlstmTest, HalfPrecisionInputsComputeInFloat) {
  const Data d(Case{2, 17, 2, 16, 8, true});
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
      MlstmInputs in = to(d.in, device, type);
      in.igate_BSH = in.igate_BSH.to(at::kFloat);
      in.fgate_BSH = in.fgate_BSH.to(at::kFloat);
      const MlstmOutput out = mlstm_chunkwise(in, 8), wide = mlstm_chunkwise(to(in, device, at::kFloat), 8);
      EXPECT_EQ(out.h_BSHV.scalar_type(), type);
      EXPECT_EQ(out.state.cell_BHKV.scalar_type(), at::kFloat);
      EXPECT_LT(relative_error(out.h_BSHV, wide.h_BSHV), tolerance(type));
    }
  }
}

TEST_F(MlstmTest, RefusesWhatDoesNotFit) {
  const Data d(Case{2, 3, 2, 4, 5});
  MlstmInputs in = d.in;
  in.k_BSHK = randn({2, 3, 2, 5});
  EXPECT_THROW(mlstm_chunkwise(in, 8), ShapeError);
  in = d.in;
  in.fgate_BSH = randn({2, 2, 3});
  EXPECT_THROW(mlstm_recurrent(in), ShapeError);
  EXPECT_THROW(mlstm_chunkwise(d.in, 0), ValueError);
  EXPECT_THROW(mlstm_chunkwise(d.in, 4, {randn({2, 2, 5, 4})}), ShapeError);
  EXPECT_THROW(mlstm_chunkwise(narrow(d.in, 0, 0), 4), ShapeError);
  in = d.in;
  in.v_BSHV = in.v_BSHV.to(at::kMeta);  // another device, without one
  EXPECT_THROW(mlstm_chunkwise(in, 4), ShapeError);
  EXPECT_THROW(mlstm_recurrent(d.in, {randn({2, 2, 4, 5}).to(at::kMeta), {}, {}}), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
