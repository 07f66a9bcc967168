// A decoder layer with attention: its gradients, and its forms with and without them.
#include <algorithm>

#include "nn/decoder_layer.h"

#include "base/error.h"
#include "unit/nn/layer_testing.h"

namespace distil_xlstm::nn {
namespace {

using testing::devices;
using testing::error_of;
using testing::expect_gradients_match;
using testing::gradients;
using testing::leaf;
using testing::randn;
using testing::random_starts;
using testing::relative_error;

class DecoderLayerTest : public testing::OpTest {};

// x, the mixer's weights, then the layer's.
struct Inputs {
  explicit Inputs(const LayerVariant& variant, int64_t B = 2, int64_t S = 5) : tensors{randn({B, S, LayerVariant::D})} {
    for (const Tensor& weight : random_attention_weights(variant)) tensors.push_back(weight);
    num_attention = tensors.size() - 1;
    for (const Tensor& weight : random_decoder_weights(variant, variant.num_heads * LayerVariant::K)) tensors.push_back(weight);
  }
  std::vector<Tensor> tensors;
  size_t num_attention = 0;
};

std::vector<Tensor> part(const std::vector<Tensor>& tensors, size_t begin, size_t end) {
  return {tensors.begin() + static_cast<std::ptrdiff_t>(begin), tensors.begin() + static_cast<std::ptrdiff_t>(end)};
}

Tensor run(const LayerVariant& variant, const std::vector<Tensor>& tensors, size_t num_attention, const Tensor& is_start_BS,
           const LayerCall& call = {}, bool packs = false) {
  const Tensor& x = tensors[0];
  AttentionWeights attention = attention_weights(variant, part(tensors, 1, 1 + num_attention));
  DecoderWeights layer = decoder_weights(part(tensors, 1 + num_attention, tensors.size()));
  if (packs) {
    for (Matrix* matrix : {&attention.qkv_ED, &layer.o_DHK, &layer.gate_up_2ID, &layer.down_DI}) matrix->pack();
  }
  const Attention shared(variant.config(), x.device());
  const Sight sight = shared.sight(x.size(0), x.size(1), x.options().dtype(call.compute_dtype.value_or(x.scalar_type())), is_start_BS);
  AttentionMixer mixer(shared, attention, sight);
  return decoder_layer(layer, mixer, x, call);
}

std::vector<Tensor> in_type(const std::vector<Tensor>& tensors, at::TensorOptions options) {
  std::vector<Tensor> out;
  for (const Tensor& tensor : tensors) out.push_back(tensor.to(options));
  return out;
}

// Differences take the forms without gradients: those are checked along with the others.
TEST_F(DecoderLayerTest, GradientsAreThoseOfDifferences) {
  for (const LayerVariant& variant : layer_variants()) {
    for (const bool has_starts : {false, true}) {
      SCOPED_TRACE(fmt::format("{}, documents {}", variant.name(), has_starts));
      const Inputs inputs(variant);
      Tensor is_start;
      if (has_starts) {
        is_start = random_starts(2, 5, 0.3);
        is_start[1][3] = 1;
      }
      const Tensor projection = randn(inputs.tensors[0].sizes());
      expect_gradients_match(
          [&](const std::vector<Tensor>& at) { return (run(variant, at, inputs.num_attention, is_start) * projection).sum(); },
          inputs.tensors);
    }
  }
}

// Of x alone, through matrices and norms that are not trained, as they are and packed.
TEST_F(DecoderLayerTest, FrozenWeightsHandTheGradientOn) {
  for (const LayerVariant& variant : layer_variants()) {
    for (const int64_t S : {1, 6}) {
      SCOPED_TRACE(fmt::format("{}, {} tokens", variant.name(), S));
      const Inputs inputs(variant, 3, S);
      const Tensor projection = randn(inputs.tensors[0].sizes()), is_start = random_starts(3, S);
      const auto expected =
          gradients([&](const std::vector<Tensor>& at) { return (run(variant, at, inputs.num_attention, is_start) * projection).sum(); },
                    inputs.tensors);
      for (const auto& [type, packs] : {std::pair{at::kDouble, false}, {at::kFloat, false}, {at::kFloat, true}}) {
        std::vector<Tensor> tensors = in_type(inputs.tensors, at::TensorOptions().dtype(type));
        tensors[0] = leaf(tensors[0]);
        const Tensor y = run(variant, tensors, inputs.num_attention, is_start, {}, packs);
        (y * projection.to(type)).sum().backward();
        EXPECT_LT(relative_error(tensors[0].grad(), expected[0]), testing::tolerance(type)) << "packed " << packs;
        for (size_t i = 1; i < tensors.size(); ++i) EXPECT_FALSE(tensors[i].grad().defined());
      }
    }
  }
}

// Each alone: none of the others' gradients is made, and its own does not depend on theirs.
TEST_F(DecoderLayerTest, OneWeightAloneIsTrained) {
  const LayerVariant variant{.has_biases = true, .has_qk_norm = true};
  const Inputs inputs(variant);
  const auto loss = [&](const std::vector<Tensor>& at) { return run(variant, at, inputs.num_attention, {}).pow(2).sum(); };
  const auto expected = gradients(loss, inputs.tensors);
  for (size_t i = 0; i < inputs.tensors.size(); ++i) {
    std::vector<Tensor> tensors = inputs.tensors;
    tensors[i] = leaf(tensors[i]);
    loss(tensors).backward();
    EXPECT_LT(relative_error(tensors[i].grad(), expected[i]), 1e-10) << "input " << i;
  }
}

TEST_F(DecoderLayerTest, IsTheSameWithAndWithoutGradients) {
  for (const at::Device device : devices()) {
    for (const LayerVariant& variant : layer_variants()) {
      for (const auto& [B, S] : {std::pair<int64_t, int64_t>{1, 1}, {2, 1}, {3, 17}, {2, 70}}) {
        for (const bool has_starts : {false, true}) {
          SCOPED_TRACE(fmt::format("{} {}, {} x {}, documents {}", device.str(), variant.name(), B, S, has_starts));
          const Inputs inputs(variant, B, S);
          const Tensor is_start = has_starts ? random_starts(B, S) : Tensor();
          const Tensor exact = [&] {
            const at::NoGradGuard no_grad;
            return run(variant, inputs.tensors, inputs.num_attention, is_start);
          }();
          for (const bool packs : {false, true}) {
            std::vector<Tensor> tensors = in_type(inputs.tensors, at::TensorOptions(device).dtype(at::kFloat));
            tensors[0] = leaf(tensors[0]);
            const Tensor before = tensors[0].detach().clone();
            const Tensor recorded = run(variant, tensors, inputs.num_attention, is_start, {}, packs);
            EXPECT_TRUE(recorded.requires_grad());
            const at::NoGradGuard no_grad;
            const Tensor plain = run(variant, tensors, inputs.num_attention, is_start, {}, packs);
            EXPECT_LT(relative_error(recorded, plain), 1e-5);
            EXPECT_LT(relative_error(plain, exact), 1e-5);
            EXPECT_TRUE(at::equal(tensors[0], before)) << "the input was to be kept";
            const Tensor given = before.clone();
            tensors[0] = given;
            EXPECT_TRUE(at::equal(run(variant, tensors, inputs.num_attention, is_start, {.keeps_input = false}, packs), plain));
          }
        }
      }
    }
  }
}

// Float32 weights whose products run in half precision: the stream stays in float32, and so do the gradients.
TEST_F(DecoderLayerTest, WeightsOfAnotherTypeThanTheirProducts) {
  const LayerVariant variant{.has_biases = true, .has_qk_norm = true};
  const Inputs inputs(variant, 3, 19);
  const Tensor projection = randn(inputs.tensors[0].sizes());
  const auto loss = [&](const std::vector<Tensor>& at, const LayerCall& call) {
    return (run(variant, at, inputs.num_attention, {}, call) * projection.to(at[0].options())).sum();
  };
  const auto expected = gradients([&](const std::vector<Tensor>& at) { return loss(at, {}); }, inputs.tensors);
  // What one rounding to 8 bits of every input does to the exact gradients: how far roundings inside are enlarged depends on the draw.
  std::vector<double> one_rounding(inputs.tensors.size(), 2e-3);
  for (int draw = 0; draw < 4; ++draw) {
    std::vector<Tensor> moved;
    for (const Tensor& tensor : inputs.tensors) moved.push_back(tensor * (1.0 + 0x1p-9 * at::randn(tensor.sizes(), tensor.options())));
    const auto near = gradients([&](const std::vector<Tensor>& at) { return loss(at, {}); }, moved);
    for (size_t i = 0; i < near.size(); ++i) one_rounding[i] = std::max(one_rounding[i], relative_error(near[i], expected[i]));
  }
  for (const at::Device device : devices()) {
    std::vector<Tensor> leaves;
    for (const Tensor& tensor : in_type(inputs.tensors, at::TensorOptions(device).dtype(at::kFloat))) leaves.push_back(leaf(tensor));
    loss(leaves, {.compute_dtype = at::kBFloat16}).backward();
    for (size_t i = 0; i < leaves.size(); ++i) {
      ASSERT_TRUE(leaves[i].grad().defined()) << "input " << i;
      EXPECT_EQ(leaves[i].grad().scalar_type(), at::kFloat);
      EXPECT_LT(relative_error(leaves[i].grad(), expected[i]), std::min(8 * one_rounding[i], 0.3))
          << "input " << i;  // seven steps round to 8 bits
    }
    const at::NoGradGuard no_grad;
    const Tensor half = run(variant, leaves, inputs.num_attention, {}, {.compute_dtype = at::kBFloat16});
    EXPECT_EQ(half.scalar_type(), at::kFloat);
    const Tensor exact = run(variant, inputs.tensors, inputs.num_attention, {});
    EXPECT_LT(relative_error(half, exact), 1e-2);
    EXPECT_GT(relative_error(half, exact), 1e-5) << "nothing was rounded";
  }
}

TEST_F(DecoderLayerTest, AKeptConversionIsTakenAndItsWeightGetsTheGradient) {
  const Tensor weight = leaf(randn({5, 4}).to(at::kFloat)), x = randn({3, 4}).to(at::kBFloat16);
  const Matrix matrix(weight, 2 * weight.detach().to(at::kBFloat16));  // another one, to be told apart
  const Tensor y = matrix.product(matrix_input(x, ProductType::same_as_weights), {});
  EXPECT_LT(relative_error(y, at::matmul(x.to(at::kDouble), 2 * weight.detach().to(at::kDouble).t())), 1e-2);
  y.sum().backward();
  EXPECT_LT(relative_error(weight.grad(), x.to(at::kFloat).sum(0).expand({5, 4})), 1e-2);
  EXPECT_EQ(weight.grad().scalar_type(), at::kFloat);
}

TEST_F(DecoderLayerTest, ShowsWhatTheMixerAdds) {
  const LayerVariant variant;
  const Inputs inputs(variant);
  for (const bool records : {false, true}) {
    const at::AutoGradMode mode(records);
    std::vector<Tensor> tensors = inputs.tensors;
    if (records) tensors[0] = leaf(tensors[0]);
    Tensor seen;
    LayerCall call;
    call.on_mixer_output = [&](const Tensor& output_BSD) { seen = output_BSD; };
    const Tensor y = run(variant, tensors, inputs.num_attention, {}, call);
    EXPECT_EQ(seen.requires_grad(), records);
    EXPECT_LT(relative_error(y, run(variant, tensors, inputs.num_attention, {})), 1e-12);
    // With an MLP that adds nothing, it is the difference.
    tensors.back().zero_();
    EXPECT_LT(relative_error(run(variant, tensors, inputs.num_attention, {}) - tensors[0], seen), 1e-10);
    tensors.back().copy_(random_matrix(LayerVariant::D, LayerVariant::I));
  }
}

TEST_F(DecoderLayerTest, RefusesWhatHasNoGradient) {
  const LayerVariant variant;
  const Inputs inputs(variant);
  std::vector<Tensor> tensors = in_type(inputs.tensors, at::kFloat);
  tensors[0] = leaf(tensors[0]);
  const auto in_fp8 = [&] { (void)run(variant, tensors, inputs.num_attention, {}, {.product_type = ProductType::fp8}); };
  EXPECT_NE(error_of<ValueError>(in_fp8).find("fp8 have no gradient"), std::string::npos);
  Matrix rounded(tensors.back());
  rounded.use_fp8();
  const Tensor gated = leaf(at::randn({2, LayerVariant::I}));
  EXPECT_NE(error_of<ValueError>([&] { (void)rounded.product({{2, LayerVariant::I}, gated, {}}, {}); }).find("fp8"), std::string::npos);

  const Attention shared(variant.config(), at::kCPU);
  const AttentionWeights attention = attention_weights(variant, part(tensors, 1, 1 + inputs.num_attention));
  const DecoderWeights layer = decoder_weights(part(tensors, 1 + inputs.num_attention, tensors.size()));
  const auto with = [&](const Sight& sight) {
    AttentionMixer mixer(shared, attention, sight);
    (void)decoder_layer(layer, mixer, tensors[0], {});
  };
  KvCache cache(variant.config(), 2, 5, tensors[0].options());
  EXPECT_NE(error_of<ValueError>([&] { with(shared.sight(2, 5, tensors[0].options(), {}, &cache)); }).find("KV cache"), std::string::npos);
  const Sight unrecorded = [&] {
    const at::NoGradGuard no_grad;
    return shared.sight(2, 5, tensors[0].options(), {});
  }();
  EXPECT_NE(error_of<ValueError>([&] { with(unrecorded); }).find("sight"), std::string::npos);
}

// A weight that is to be trained is never packed away.
TEST_F(DecoderLayerTest, ATrainedMatrixIsNotPacked) {
  Matrix matrix(leaf(at::randn({3, 4})));
  matrix.pack();
  EXPECT_TRUE(matrix.weight().defined());
}

}  // namespace
}  // namespace distil_xlstm::nn
