// The linear maps and gates of the blocks against compositions of plain operations, over odd sizes and types.
#include <cmath>
#include <map>

#include "base/error.h"
#include "ops/blockdiag.h"
#include "ops/cuda_backend.h"
#include "ops/gated.h"
#include "unit/ops/op_testing.h"

namespace distil_xlstm::ops {
namespace {

using testing::devices;
using testing::expect_gradients_match;
using testing::leaf;
using testing::randn;
using testing::relative_error;
using testing::tolerance;

class BlockOps : public testing::OpTest {};

// y[n, g, a] = sum_b w[g, a, b] x[n, g, b]
Tensor plain_blockdiag(const Tensor& x, const Tensor& w) {
  const Tensor x_NGI = x.view({x.size(0), w.size(0), w.size(2)});
  return (w.unsqueeze(0) * x_NGI.unsqueeze(2)).sum(-1).flatten(1);
}

TEST_F(BlockOps, QkvProjectionEqualsSums) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      for (const int64_t block : {1, 3, 4, 32}) {
        for (const int64_t num_blocks : {1, 5, 19}) {
          for (const int64_t rows : {1, 7, block == 4 ? 1100 : 30}) {
            for (const bool has_bias : {false, true}) {
              const int64_t F = block * num_blocks;
              const auto make = [&](at::IntArrayRef sizes) { return leaf(randn(sizes).to(device, type)); };
              // Rows of c lie in longer ones, as a slice of a joint projection does.
              const Tensor wide = make({rows, 2 * F}), x = make({rows, F});
              const Tensor c = wide.narrow(1, F, F);
              std::vector<Tensor> w, b, inputs{wide, x};
              for (int i = 0; i < 3; ++i) {
                w.push_back(make({num_blocks, block, block}));
                b.push_back(has_bias ? make({F}) : Tensor());
                inputs.push_back(w.back());
                if (has_bias) inputs.push_back(b.back());
              }
              const auto [fused, read_on] = qkv_projection(c, x, {w[0], b[0]}, {w[1], b[1]}, {w[2], b[2]}, type);
              const Tensor reader = at::randn_like(c);
              Tensor loss = (read_on * reader).sum(), reference_loss = (c * reader).sum();
              for (size_t i = 0; i < 3; ++i) {
                Tensor reference = plain_blockdiag(i == 2 ? x : c, w[i]);
                if (has_bias) reference = reference + b[i];
                EXPECT_LT(relative_error(fused[i], reference), tolerance(type)) << block << " " << num_blocks << " " << rows;
                const Tensor weight = at::randn_like(reference);
                loss = loss + (fused[i] * weight).sum();
                reference_loss = reference_loss + (reference * weight).sum();
              }
              reference_loss.backward();
              std::vector<Tensor> expected;
              for (Tensor& input : inputs) {
                expected.push_back(input.grad().clone());
                input.mutable_grad() = Tensor();
              }
              loss.backward();
              // All together: a gradient of one element may be a difference of large sums.
              std::vector<Tensor> got, wanted;
              for (size_t i = 0; i < inputs.size(); ++i) {
                got.push_back(inputs[i].grad().flatten());
                wanted.push_back(expected[i].flatten());
              }
              EXPECT_LT(relative_error(at::cat(got), at::cat(wanted)), tolerance(type)) << block << " " << num_blocks << " " << rows;
            }
          }
        }
      }
    }
  }
}

TEST_F(BlockOps, QkvProjectionInHalfPrecision) {
  for (const at::Device device : devices()) {
    const Tensor c = randn({9, 24}).to(device), x = randn({9, 24}).to(device);
    std::vector<Tensor> w;
    for (int i = 0; i < 3; ++i) w.push_back(randn({6, 4, 4}).to(device));
    const auto exact = qkv_projection(c, x, {w[0], {}}, {w[1], {}}, {w[2], {}}, at::kDouble).qkv_NF;
    const auto half = qkv_projection(c.to(at::kHalf), x.to(at::kHalf), {w[0].to(at::kFloat), {}}, {w[1].to(at::kFloat), {}},
                                     {w[2].to(at::kFloat), {}}, at::kBFloat16)
                          .qkv_NF;
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(half[i].scalar_type(), at::kBFloat16);
      EXPECT_LT(relative_error(half[i], exact[i]), 1e-2);
    }
  }
}

TEST_F(BlockOps, SlstmGatesGoToTheirSlots) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      for (const auto& [H, K] : {std::pair<int64_t, int64_t>{1, 3}, {3, 4}, {4, 16}, {5, 33}}) {
        const auto make = [&](at::IntArrayRef sizes) { return leaf(randn(sizes).to(device, type)); };
        const std::vector<Tensor> inputs{make({11, H * K}), make({11, H * K}), make({H, K, K}),
                                         make({H, K, K}),   make({H, K, K}),   make({H, K, K})};
        const Tensor out = slstm_gate_projection(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5], type);
        ASSERT_EQ(out.sizes(), (at::IntArrayRef{11, H, 4, K}));
        std::vector<Tensor> slots;
        for (size_t g = 0; g < 4; ++g) slots.push_back(plain_blockdiag(inputs[g < 2 ? 0 : 1], inputs[2 + g]).view({11, H, K}));
        const Tensor reference = at::stack(slots, 2);
        EXPECT_LT(relative_error(out, reference), tolerance(type));
        const Tensor weight = at::randn_like(reference);
        (reference * weight).sum().backward();
        std::vector<Tensor> expected;
        for (const Tensor& input : inputs) {
          expected.push_back(input.grad().clone());
          input.mutable_grad() = Tensor();
        }
        (out * weight).sum().backward();
        for (size_t i = 0; i < inputs.size(); ++i) EXPECT_LT(relative_error(inputs[i].grad(), expected[i]), tolerance(type)) << i;
      }
    }
  }
}

TEST_F(BlockOps, SplitLinearGradients) {
  const auto function = [](const std::vector<Tensor>& in) {
    const auto [first, second] = split_linear(in[0], in[1], in[2], at::kDouble);
    return (first.sin() * second).sum();
  };
  expect_gradients_match(function, {randn({5, 3}), randn({8, 3}), randn({8})});
  for (const at::Device device : devices()) {
    const Tensor x = randn({5, 7}).to(device), w = randn({6, 7}).to(device), b = randn({6}).to(device);
    const auto [first, second] = split_linear(x, w, b, at::kDouble);
    EXPECT_LT(relative_error(at::cat({first, second}, 1), at::linear(x, w, b)), 1e-10);
    const auto [rounded, other] = split_linear(x.to(at::kFloat), w.to(at::kFloat), {}, at::kBFloat16);
    EXPECT_EQ(rounded.scalar_type(), at::kBFloat16);
    EXPECT_LT(relative_error(rounded, at::linear(x, w).narrow(1, 0, 3)), 1e-2);
  }
}

TEST_F(BlockOps, ResidualLinearGradients) {
  const auto function = [](const std::vector<Tensor>& in) { return residual_linear(in[0], in[1], in[2], in[3], at::kDouble).sin().sum(); };
  expect_gradients_match(function, {randn({4, 3}), randn({4, 5}), randn({3, 5}), randn({3})});
  for (const at::Device device : devices()) {
    const Tensor residual = randn({4, 3}).to(device, at::kFloat), x = randn({4, 5}).to(device, at::kFloat),
                 w = randn({3, 5}).to(device, at::kFloat);
    const Tensor out = residual_linear(residual, x, w, {}, at::kBFloat16);
    EXPECT_EQ(out.scalar_type(), at::kFloat);
    EXPECT_LT(relative_error(out, residual + at::linear(x, w)), 1e-2);
    // The same type for residual and product, weights in float32 as they are stored.
    const Tensor half_residual = residual.to(at::kBFloat16), bias = randn({3}).to(device, at::kFloat);
    const Tensor half_out = residual_linear(half_residual, x.to(at::kBFloat16), w, bias, at::kBFloat16);
    EXPECT_EQ(half_out.scalar_type(), at::kBFloat16);
    EXPECT_LT(relative_error(half_out, residual + at::linear(x, w, bias)), 2e-2);
  }
}

// Weights that the caller keeps in the products' type are what products take; gradients go to the weights themselves.
TEST_F(BlockOps, ProductsTakeTheConvertedWeights) {
  for (const at::Device device : devices()) {
    const auto make = [&](at::IntArrayRef sizes) { return leaf(randn(sizes).to(device, at::kFloat)); };
    const Tensor x = make({5, 8}), up = make({12, 8}), down = make({8, 6}), weight = randn({5, 8}).to(device, at::kFloat);
    const std::array<Tensor, 4> gates{make({2, 4, 4}), make({2, 4, 4}), make({2, 4, 4}), make({2, 4, 4})};
    // The same bits as products of weights that hold those values.
    std::vector<std::vector<Tensor>> all;
    for (const bool is_kept : {false, true}) {
      const auto given = [&](const Tensor& w) { return is_kept ? w : leaf(w.detach().to(at::kBFloat16).to(at::kFloat) * -2); };
      const auto kept = [&](const Tensor& w) { return is_kept ? w.detach().to(at::kBFloat16) * -2 : Tensor(); };
      const Tensor in = leaf(x.detach()), up_in = given(up), down_in = given(down);
      std::vector<Tensor> gates_in;
      for (const Tensor& gate : gates) gates_in.push_back(given(gate));
      const std::array<Tensor, 4> kept_gates{kept(gates[0]), kept(gates[1]), kept(gates[2]), kept(gates[3])};
      const auto [first, second] = split_linear(in, {up_in, kept(up)}, {}, at::kBFloat16);
      const Tensor out = residual_linear(in, first * second, {down_in, kept(down)}, {}, at::kBFloat16);
      const Tensor wx = slstm_gate_projection(in, in, gates_in[0], gates_in[1], gates_in[2], gates_in[3], at::kBFloat16, kept_gates);
      ((out * weight).sum() + wx.to(at::kFloat).square().sum()).backward();
      std::vector<Tensor> results{out.detach(), wx.detach(), in.grad(), up_in.grad(), down_in.grad()};
      for (const Tensor& gate : gates_in) results.push_back(gate.grad());
      all.push_back(std::move(results));
    }
    for (size_t i = 0; i < all[0].size(); ++i) EXPECT_TRUE(at::equal(all[0][i], all[1][i])) << device.str() << " " << i;
  }
}

TEST_F(BlockOps, GatedActivationsPassNanOn) {
  for (const at::Device device : devices()) {
    for (const auto act : config::kNames<Activation>) {
      SCOPED_TRACE(fmt::format("{} {}", act, device.str()));
      const Tensor gate = at::full({1, 8}, NAN, at::TensorOptions(device).dtype(at::kFloat));
      const Tensor out = gated_activation(gate, at::ones_like(gate), config::parse_name<Activation>(act, "act"));
      EXPECT_TRUE(out.isnan().all().item<bool>());
    }
  }
}

// Where gelu is a small difference of large terms. LibTorch's own on CUDA is not.
TEST_F(BlockOps, GeluIsExactFarBelowZero) {
  for (const at::Device device : devices()) {
    if (device.is_cuda() && !has_cuda_kernels(at::zeros({1}, device))) continue;
    for (const double x : {-3.0, -4.0, -6.0}) {
      const Tensor gate = at::full({1, 8}, x, at::kDouble), value = at::ones_like(gate);
      const Tensor out = gated_activation(gate.to(device, at::kFloat), value.to(device, at::kFloat), Activation::gelu);
      EXPECT_LT(relative_error(out, gate * at::erfc(-gate / std::sqrt(2.0)) / 2), 1e-5) << device << " " << x;
    }
  }
}

TEST_F(BlockOps, GatedActivationsEqualTheirDefinitions) {
  const std::map<std::string, std::function<Tensor(const Tensor&)>> definitions{
      {"gelu", [](const Tensor& x) { return x * (1 + at::erf(x / std::sqrt(2.0))) / 2; }},
      {"relu", [](const Tensor& x) { return x.clamp_min(0); }},
      {"relu^2", [](const Tensor& x) { return x.clamp_min(0).square(); }},
      {"sigmoid", [](const Tensor& x) { return 1 / (1 + (-x).exp()); }},
      {"swish", [](const Tensor& x) { return x / (1 + (-x).exp()); }},
      {"selu", [](const Tensor& x) { return 1.0507009873554805 * at::where(x > 0, x, 1.6732632423543772 * (x.exp() - 1)); }}};
  for (const auto& [name, act] : definitions) {
    const auto activation = config::parse_name<Activation>(name, "act");
    const Tensor gate = randn({6, 5}), value = randn({6, 5});
    for (const at::Device device : devices())
      EXPECT_LT(relative_error(gated_activation(gate.to(device), value.to(device), activation), act(gate) * value), 1e-10) << name;
    const auto function = [activation](const std::vector<Tensor>& in) { return gated_activation(in[0], in[1], activation).sin().sum(); };
    expect_gradients_match(function, {gate, value});
  }
}

TEST_F(BlockOps, SwigluEqualsItsDefinition) {
  const auto definition = [](const Tensor& gate_up) {
    const auto halves = gate_up.to(at::kCPU, at::kDouble).chunk(2, -1);
    return halves[0] / (1 + (-halves[0]).exp()) * halves[1];
  };
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const int64_t I : {1, 3, 8, 61, 96, 1000}) {
        for (const std::vector<int64_t>& sizes : std::vector<std::vector<int64_t>>{{2 * I}, {5, 2 * I}, {2, 17, 2 * I}, {0, 2 * I}}) {
          const Tensor gate_up = randn(sizes, 2).to(device, type), before = gate_up.clone();
          const Tensor out = swiglu(gate_up);
          EXPECT_EQ(out.scalar_type(), type);
          EXPECT_LT(relative_error(out, definition(gate_up)), tolerance(type)) << device << " " << type << " " << gate_up.sizes();
          EXPECT_TRUE(at::equal(gate_up, before));
        }
      }
      const Tensor shifted = randn({6 * 32 + 1}).to(device, type).narrow(0, 1, 6 * 32).view({6, 32});
      EXPECT_LT(relative_error(swiglu(shifted), definition(shifted)), tolerance(type)) << "not at a multiple of 16 bytes";
      const Tensor across = randn({32, 6}).to(device, type).t();
      EXPECT_LT(relative_error(swiglu(across), definition(across)), tolerance(type)) << "columns";
    }
  }
  expect_gradients_match([](const std::vector<Tensor>& in) { return swiglu(in[0]).sin().sum(); }, {randn({4, 10})});
}

TEST_F(BlockOps, SkipGateGradients) {
  const auto definition = [](const std::vector<Tensor>& in) { return (in[0] + in[1] * in[2]) * in[3] * at::sigmoid(in[3]); };
  const std::vector<Tensor> inputs{randn({6, 5}), randn({5}), randn({6, 5}), randn({6, 5})};
  expect_gradients_match([](const std::vector<Tensor>& in) { return skip_gate(in[0], in[1], in[2], in[3]).sin().sum(); }, inputs);
  for (const at::Device device : devices()) {
    const auto as = [&](size_t i, at::ScalarType type) { return inputs[i].to(device, type); };
    EXPECT_LT(relative_error(skip_gate(as(0, at::kDouble), as(1, at::kDouble), as(2, at::kDouble), as(3, at::kDouble)), definition(inputs)),
              1e-10);
    const Tensor mixed = skip_gate(as(0, at::kBFloat16), as(1, at::kFloat), as(2, at::kHalf), as(3, at::kHalf));
    EXPECT_EQ(mixed.scalar_type(), at::kHalf);
    EXPECT_LT(relative_error(mixed, definition(inputs)), 1e-2);
  }
}

TEST_F(BlockOps, WrongShapesAndNames) {
  const Tensor x = randn({3, 8}), w = randn({2, 4, 4});
  EXPECT_THROW((void)qkv_projection(x, randn({3, 4}), {w, {}}, {w, {}}, {w, {}}, at::kDouble), ShapeError);
  EXPECT_THROW((void)qkv_projection(x, x, {w, {}}, {randn({4, 2, 2}), {}}, {w, {}}, at::kDouble), ShapeError);
  EXPECT_THROW((void)qkv_projection(x, x, {w, randn({8})}, {w, {}}, {w, {}}, at::kDouble), ShapeError);
  EXPECT_THROW((void)qkv_projection(x, x, {randn({3, 4, 4}), {}}, {w, {}}, {w, {}}, at::kDouble), ShapeError);
  EXPECT_THROW((void)slstm_gate_projection(x, x, w, w, w, randn({4, 2, 2}), at::kDouble), ShapeError);
  EXPECT_THROW((void)split_linear(x, {randn({4, 8}), randn({4, 7})}, {}, at::kDouble), ShapeError);
  EXPECT_THROW((void)residual_linear(randn({3, 4}), x, {randn({4, 8}), randn({5, 8})}, {}, at::kDouble), ShapeError);
  EXPECT_THROW((void)split_linear(x, randn({4, 7}), {}, at::kDouble), ShapeError);
  EXPECT_THROW((void)split_linear(x, randn({5, 8}), {}, at::kDouble), ShapeError);
  EXPECT_THROW((void)gated_activation(x, randn({3, 7}), Activation::gelu), ShapeError);
  EXPECT_THROW((void)swiglu(randn({3, 7})), ShapeError);
  EXPECT_THROW((void)swiglu(Tensor()), ShapeError);
  EXPECT_THROW((void)skip_gate(x, randn({7}), x, x), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
