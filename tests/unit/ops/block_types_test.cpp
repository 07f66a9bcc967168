// The maps and gates of the blocks in every type that training runs them in, forward and backward, against float64 from the same rounded
// inputs: on CUDA these are the fused kernels.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "base/error.h"
#include "ops/blockdiag.h"
#include "ops/causal_conv.h"
#include "ops/gated.h"
#include "ops/mlstm_gates.h"
#include "unit/ops/op_testing.h"

namespace distil_xlstm::ops {
namespace {

using testing::devices;
using testing::gradients;
using testing::leaf;
using testing::randn;
using testing::relative_error;
using testing::tolerance;

class BlockTypes : public testing::OpTest {};

constexpr std::array<at::ScalarType, 3> kTypes{at::kFloat, at::kBFloat16, at::kHalf};

struct Input {
  Tensor value;  // float64 on the CPU
  at::ScalarType type;
};
using Operation = std::function<Tensor(const std::vector<Tensor>&)>;

// The output, then the gradients, for `weight` at the output.
std::vector<Tensor> run(const Operation& operation, const std::vector<Tensor>& at_point, const Tensor& weight) {
  std::vector<Tensor> leaves, results;
  for (const Tensor& x : at_point) leaves.push_back(leaf(x));
  const Tensor out = operation(leaves);
  results.push_back(out.detach());
  out.backward(weight.to(out.device(), out.scalar_type()));
  for (const Tensor& x : leaves) results.push_back(x.grad());
  return results;
}

// Half the distance of two neighbouring numbers of a type, relative to them.
double unit_roundoff(at::ScalarType type) {
  return type == at::kBFloat16 ? 0x1p-9 : type == at::kHalf ? 0x1p-12 : 0x1p-25;
}

// What one rounding to `type` of all inputs and of `weight` does to each result: where terms cancel, and the few elements of a small
// result all may, it is far more than a rounding of the result.
std::vector<double> one_rounding(const Operation& definition, const std::vector<Tensor>& exact, const Tensor& weight,
                                 const std::vector<Tensor>& expected, at::ScalarType type) {
  std::vector<double> largest(expected.size(), 0.0);
  for (int draw = 0; draw < 4; ++draw) {
    const auto rounded = [&](const Tensor& x) { return x * (1.0 + unit_roundoff(type) * at::randn_like(x)); };
    std::vector<Tensor> inputs;
    for (const Tensor& x : exact) inputs.push_back(rounded(x));
    const std::vector<Tensor> results = run(definition, inputs, rounded(weight));
    for (size_t i = 0; i < results.size(); ++i) largest[i] = std::max(largest[i], relative_error(results[i], expected[i]));
  }
  return largest;
}

double limit(at::ScalarType type, double one_rounding) {
  return std::max(tolerance(type), std::min(4 * one_rounding, 0.3));
}

// A gradient has its input's type and so its rounding; one in float32 may carry what arithmetic in `type` left.
void expect_close(const Operation& operation, const Operation& definition, const std::vector<Input>& inputs, at::Device device,
                  at::ScalarType type, at::ScalarType out_type) {
  std::vector<Tensor> exact, moved;
  for (const Input& input : inputs) {
    moved.push_back(input.value.to(device, input.type));
    exact.push_back(moved.back().to(at::kCPU, at::kDouble));
  }
  Tensor weight;
  {
    const at::NoGradGuard no_grad;
    weight = at::randn_like(definition(exact)).to(out_type).to(at::kDouble);
  }
  const std::vector<Tensor> expected = run(definition, exact, weight), got = run(operation, moved, weight);
  EXPECT_EQ(got[0].scalar_type(), out_type);
  std::map<at::ScalarType, std::vector<double>> roundings;
  const auto rounding = [&](at::ScalarType of, size_t result) {
    const auto [found, is_new] = roundings.try_emplace(of);
    if (is_new) found->second = one_rounding(definition, exact, weight, expected, of);
    return found->second[result];
  };
  EXPECT_LT(relative_error(got[0], expected[0]), limit(out_type, rounding(out_type, 0))) << "output";
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_EQ(got[i + 1].scalar_type(), inputs[i].type) << "gradient of input " << i;
    const double allowed = std::max(limit(type, rounding(type, i + 1)), limit(inputs[i].type, rounding(inputs[i].type, i + 1)));
    EXPECT_LT(relative_error(got[i + 1], expected[i + 1]), allowed) << "gradient of input " << i;
  }
}

std::string name(at::Device device, at::ScalarType type, at::IntArrayRef sizes) {
  return fmt::format("{} {} [{}]", device.str(), c10::toString(type), fmt::join(sizes.begin(), sizes.end(), ", "));
}

Tensor plain_activation(const Tensor& x, std::string_view act) {
  if (act == "gelu") return x * (1 + at::erf(x / std::sqrt(2.0))) / 2;
  if (act == "relu") return x.clamp_min(0);
  if (act == "relu^2") return x.clamp_min(0).square();
  if (act == "sigmoid") return at::sigmoid(x);
  if (act == "swish") return x * at::sigmoid(x);
  return 1.0507009873554805 * at::where(x > 0, x, 1.6732632423543772 * (x.clamp_max(0).exp() - 1));
}

TEST_F(BlockTypes, GatedActivation) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : kTypes) {
      for (const int64_t N : {1, 3, 17, 70}) {
        for (const int64_t P : {4, 8, 61, 72}) {
          for (const auto act : config::kNames<Activation>) {
            const auto activation = config::parse_name<Activation>(act, "act");
            SCOPED_TRACE(fmt::format("{} {}", name(device, type, {N, P}), act));
            expect_close([&](const std::vector<Tensor>& in) { return gated_activation(in[0], in[1], activation); },
                         [&](const std::vector<Tensor>& in) { return plain_activation(in[0], act) * in[1]; },
                         {{randn({N, P}), type}, {randn({N, P}), type}}, device, type, type);
          }
        }
      }
    }
  }
}

// Halves of a joint product, columns, and memory that begins anywhere.
TEST_F(BlockTypes, GatesOfViews) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : kTypes) {
      SCOPED_TRACE(name(device, type, {17, 24}));
      expect_close(
          [](const std::vector<Tensor>& in) { return gated_activation(in[0].narrow(1, 0, 24), in[0].narrow(1, 24, 24), Activation::gelu); },
          [](const std::vector<Tensor>& in) { return plain_activation(in[0].narrow(1, 0, 24), "gelu") * in[0].narrow(1, 24, 24); },
          {{randn({17, 48}), type}}, device, type, type);
      expect_close(
          [](const std::vector<Tensor>& in) { return skip_gate(in[0].t(), in[1], in[2].narrow(1, 1, 24), in[3].narrow(1, 3, 24)); },
          [](const std::vector<Tensor>& in) { return (in[0].t() + in[1] * in[2].narrow(1, 1, 24)) * at::silu(in[3].narrow(1, 3, 24)); },
          {{randn({24, 17}), type}, {randn({24}), at::kFloat}, {randn({17, 27}), type}, {randn({17, 27}), type}}, device, type, type);
      const auto shifted = [](const Tensor& x) { return x.narrow(0, 1, 17 * 24).view({17, 24}); };
      expect_close([&](const std::vector<Tensor>& in) { return gated_activation(shifted(in[0]), shifted(in[1]), Activation::swish); },
                   [&](const std::vector<Tensor>& in) { return at::silu(shifted(in[0])) * shifted(in[1]); },
                   {{randn({17 * 24 + 1}), type}, {randn({17 * 24 + 1}), type}}, device, type, type);
    }
  }
}

TEST_F(BlockTypes, SkipGate) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : kTypes) {
      for (const at::ScalarType cell_type : {type, at::kBFloat16}) {
        for (const int64_t N : {1, 3, 17, 70}) {
          for (const int64_t F : {4, 8, 61, 72}) {
            SCOPED_TRACE(fmt::format("{} cell {}", name(device, type, {N, F}), c10::toString(cell_type)));
            expect_close([](const std::vector<Tensor>& in) { return skip_gate(in[0], in[1], in[2], in[3]); },
                         [](const std::vector<Tensor>& in) { return (in[0] + in[1] * in[2]) * at::silu(in[3]); },
                         {{randn({N, F}), cell_type}, {randn({F}), at::kFloat}, {randn({N, F}), type}, {randn({N, F}), type}}, device, type,
                         type);
          }
        }
      }
    }
  }
}

// Few rows, and as many as the kernel takes; sizes that it takes and such as it does not.
TEST_F(BlockTypes, SwigluProduct) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const auto& [N, I, K] :
           {std::tuple<int64_t, int64_t, int64_t>{1, 8, 8}, {3, 24, 40}, {601, 24, 40}, {530, 136, 72}, {515, 5, 7}}) {
        SCOPED_TRACE(name(device, type, {N, I, K}));
        const at::NoGradGuard no_grad;
        const Tensor x = randn({N, K}).to(type), w = (randn({2 * I, K}) / std::sqrt(double(K))).to(type);
        const auto halves = at::linear(x.to(at::kDouble), w.to(at::kDouble)).chunk(2, 1);
        const Tensor expected = at::silu(halves[0]) * halves[1];
        const Tensor out = swiglu_product(x.to(device).view({1, N, K}), w.to(device));
        EXPECT_EQ(out.scalar_type(), type);
        EXPECT_LT(relative_error(out, expected.view({1, N, I})), tolerance(type));
        EXPECT_TRUE(at::equal(out, swiglu_product(x.to(device).view({1, N, K}), w.to(device))));
      }
    }
  }
  EXPECT_THROW((void)swiglu_product(randn({3, 4}), randn({6, 5})), ShapeError);
  EXPECT_THROW((void)swiglu_product(randn({3, 4}), randn({5, 4})), ShapeError);
}

// y[n, g, a] = sum_b w[g, a, b] x[n, g, b]
Tensor plain_blockdiag(const Tensor& x, const Tensor& w) {
  return (w.unsqueeze(0) * x.reshape({x.size(0), w.size(0), 1, w.size(2)})).sum(-1).flatten(1);
}

TEST_F(BlockTypes, QkvProjection) {
  for (const at::Device device : devices()) {
    for (const auto& [type, out_type] :
         {std::pair(at::kFloat, at::kFloat), {at::kBFloat16, at::kBFloat16}, {at::kHalf, at::kHalf}, {at::kHalf, at::kBFloat16}}) {
      for (const int64_t N : {1, 3, 17, 70, 130}) {
        for (const int64_t num_blocks : {1, 2, 19}) {
          for (const bool has_bias : {false, true}) {
            SCOPED_TRACE(fmt::format("{} to {} bias {}", name(device, type, {N, num_blocks}), c10::toString(out_type), has_bias));
            std::vector<Input> inputs{{randn({N, 4 * num_blocks}), type}, {randn({N, 4 * num_blocks}), type}};
            for (int i = 0; i < 3; ++i) inputs.push_back({randn({num_blocks, 4, 4}), at::kFloat});
            for (int i = 0; i < (has_bias ? 3 : 0); ++i) inputs.push_back({randn({4 * num_blocks}), at::kFloat});
            const auto bias = [&](const std::vector<Tensor>& in, size_t i) { return has_bias ? in[5 + i] : Tensor(); };
            expect_close(
                [&](const std::vector<Tensor>& in) {
                  const auto [out, c] =
                      qkv_projection(in[0], in[1], {in[2], bias(in, 0)}, {in[3], bias(in, 1)}, {in[4], bias(in, 2)}, out_type);
                  return at::cat({out[0], out[1], out[2]}, 1);
                },
                [&](const std::vector<Tensor>& in) {
                  std::vector<Tensor> out;
                  for (size_t i = 0; i < 3; ++i) {
                    const Tensor y = plain_blockdiag(in[i == 2 ? 1 : 0], in[2 + i]);
                    out.push_back(has_bias ? y + in[5 + i] : y);
                  }
                  return at::cat(out, 1);
                },
                inputs, device, out_type == type ? type : at::kBFloat16, out_type);
          }
        }
      }
    }
  }
}

// What else reads the convolution's input and output reads them from the operation before it, whose backward adds those gradients.
TEST_F(BlockTypes, ConvolutionAndProjectionsAddTheGradientsOfOtherReaders) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : kTypes) {
      for (const auto& [S, num_blocks, taps] : {std::tuple<int64_t, int64_t, int64_t>{1, 2, 4}, {37, 5, 4}, {70, 2, 3}}) {
        const int64_t B = 2, F = 4 * num_blocks;
        SCOPED_TRACE(name(device, type, {B, S, F, taps}));
        std::vector<Input> inputs{{randn({B, S, F}), type}, {randn({F, 1, taps}), at::kFloat}, {randn({F}), at::kFloat}};
        for (int i = 0; i < 3; ++i) inputs.push_back({randn({num_blocks, 4, 4}), at::kFloat});
        const auto joined = [&](const std::vector<Tensor>& parts) { return at::cat(parts, 1); };
        expect_close(
            [&, taps = taps](const std::vector<Tensor>& in) {
              const CausalConvOutput conv = causal_conv_silu(in[0], in[1], in[2]);
              const auto [out, c] = qkv_projection(conv.y_BSF.view({B * S, F}), conv.x_BSF.view({B * S, F}), {in[3], {}}, {in[4], {}},
                                                   {in[5], {}}, in[0].scalar_type());
              return joined({out[0], out[1], out[2], c, conv.x_BSF.view({B * S, F})});
            },
            [&, S = S, num_blocks = num_blocks, taps = taps](const std::vector<Tensor>& in) {
              const Tensor padded = at::constant_pad_nd(in[0], {0, 0, taps - 1, 0});
              Tensor pre = at::zeros_like(in[0]) + in[2];
              for (int64_t j = 0; j < taps; ++j) pre = pre + padded.narrow(1, j, S) * in[1].select(2, j).squeeze(1);
              const Tensor c = at::silu(pre).view({B * S, F}), x = in[0].reshape({B * S, F});
              return joined({plain_blockdiag(c, in[3]), plain_blockdiag(c, in[4]), plain_blockdiag(x, in[5]), c, x});
            },
            inputs, device, type, type);
      }
    }
  }
}

// Whatever the type of q, k and v: pre-activations, and gradients of weights and biases, have float32's accuracy.
TEST_F(BlockTypes, MlstmGateProjection) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType type : kTypes) {
      for (const int64_t N : {1, 3, 17, 70}) {
        for (const auto& [I, H] : {std::pair<int64_t, int64_t>{8, 2}, {12, 3}, {64, 4}, {264, 12}}) {
          SCOPED_TRACE(name(device, type, {N, I, H}));
          std::vector<Tensor> exact, moved;
          for (int i = 0; i < 3; ++i) moved.push_back(randn({N, I}).to(device, type));
          for (const auto& sizes : {std::vector<int64_t>{H, 3 * I}, {H}, {H, 3 * I}, {H}})
            moved.push_back(randn(sizes).to(device, at::kFloat));
          for (const Tensor& x : moved) exact.push_back(x.to(at::kCPU, at::kDouble));
          const Tensor weight = randn({N, 2 * H}).to(at::kFloat).to(at::kDouble);
          const auto got = run(
              [](const std::vector<Tensor>& in) {
                const MlstmGates gates = mlstm_gate_projection({in[0], in[1], in[2]}, {in[3], in[4], in[5], in[6]});
                EXPECT_EQ(gates.input_NH.scalar_type(), in[3].scalar_type());
                return at::cat({gates.input_NH, gates.forget_NH}, 1);
              },
              moved, weight);
          const auto definition = [](const std::vector<Tensor>& in) {
            const Tensor joint = at::cat({in[0], in[1], in[2]}, 1);
            return at::cat({at::linear(joint, in[3], in[4]), at::linear(joint, in[5], in[6])}, 1);
          };
          const auto expected = run(definition, exact, weight);
          for (size_t i = 0; i < got.size(); ++i) {
            const at::ScalarType result_type = i >= 1 && i <= 3 ? type : at::kFloat;
            EXPECT_EQ(got[i].scalar_type(), result_type) << i;
            const double rounding = one_rounding(definition, exact, weight, expected, result_type)[i];
            EXPECT_LT(relative_error(got[i], expected[i]), limit(result_type, rounding)) << i;
          }
        }
      }
    }
  }
}

// What else reads q, k and v reads them from the projection, whose backward adds those gradients: also such as it must not write to.
TEST_F(BlockTypes, MlstmGateProjectionAddsTheGradientsOfOtherReaders) {
  for (const at::Device device : devices()) {
    enum class Reader { own, sum, sum_with_another };  // a gradient of its own, one of stride 0, one that goes to another tensor too
    for (const Reader reader : {Reader::own, Reader::sum, Reader::sum_with_another}) {
      const int64_t N = 17, I = 24, H = 3;
      std::vector<Tensor> exact, moved;
      for (int i = 0; i < 3; ++i) moved.push_back(randn({N, I}).to(device, at::kBFloat16));
      for (const auto& sizes : {std::vector<int64_t>{H, 3 * I}, {H}, {H, 3 * I}, {H}}) moved.push_back(randn(sizes).to(device, at::kFloat));
      moved.push_back(randn({N, I}).to(device, at::kBFloat16));
      for (const Tensor& x : moved) exact.push_back(x.to(at::kCPU, at::kDouble));
      const Tensor w = randn({N, 2 * H}).to(at::kFloat), other = randn({N, I}).to(at::kBFloat16);
      const auto loss = [&](const Tensor& input, const Tensor& forget, const std::array<Tensor, 3>& qkv, const Tensor& another) {
        Tensor sum = (at::cat({input, forget}, 1) * w.to(input.device())).sum(at::kDouble) + 0 * another.sum(at::kDouble);
        for (const Tensor& x : qkv) {
          const Tensor read = reader == Reader::sum_with_another ? x + another : x;
          sum = sum + (reader == Reader::sum ? read.sum(at::kDouble) : (read * other.to(x.device())).sum(at::kDouble));
        }
        return sum;
      };
      const auto got = gradients(
          [&](const std::vector<Tensor>& in) {
            const MlstmGates gates = mlstm_gate_projection({in[0], in[1], in[2]}, {in[3], in[4], in[5], in[6]});
            return loss(gates.input_NH, gates.forget_NH, gates.qkv, in[7]);
          },
          moved);
      const auto expected = gradients(
          [&](const std::vector<Tensor>& in) {
            const Tensor joint = at::cat({in[0], in[1], in[2]}, 1);
            return loss(at::linear(joint, in[3], in[4]), at::linear(joint, in[5], in[6]), {in[0], in[1], in[2]}, in[7]);
          },
          exact);
      for (size_t i = 0; i < got.size(); ++i) {
        SCOPED_TRACE(fmt::format("{} {} {}", device.str(), static_cast<int>(reader), i));
        const double allowed = tolerance(i < 3 || i == 7 ? at::kBFloat16 : at::kFloat) * (got[i].numel() < 16 ? 3 : 1);  // a bias sums rows
        EXPECT_LT(relative_error(got[i], expected[i]), allowed);
      }
    }
  }
}

TEST_F(BlockTypes, MlstmGateProjectionInFloat64) {
  const int64_t N = 5, I = 6, H = 2;
  testing::expect_gradients_match(
      [](const std::vector<Tensor>& in) {
        const MlstmGates gates = mlstm_gate_projection({in[0], in[1], in[2]}, {in[3], in[4], in[5], in[6]});
        return (gates.input_NH.sin() * gates.forget_NH).sum();
      },
      {randn({N, I}), randn({N, I}), randn({N, I}), randn({H, 3 * I}), randn({H}), randn({H, 3 * I}), randn({H})});
}

TEST_F(BlockTypes, MlstmGateProjectionRefusesOtherShapes) {
  const Tensor x = randn({3, 4}), w = randn({2, 12}), b = randn({2});
  EXPECT_THROW((void)mlstm_gate_projection({x, randn({3, 5}), x}, {w, b, w, b}), ShapeError);
  EXPECT_THROW((void)mlstm_gate_projection({x, x, x}, {w, b, randn({2, 4}), b}), ShapeError);
  EXPECT_THROW((void)mlstm_gate_projection({x, x, x}, {w, b, w, randn({3})}), ShapeError);
  EXPECT_THROW((void)mlstm_gate_projection({x, x, x}, {w, b, w, b}, {1, 3, 2, 3}), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
