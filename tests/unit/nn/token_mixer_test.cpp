// A token mixer that is no part of the program in place of attention: a mean over earlier tokens that decays with their distance, a rate a
// channel.
#include "nn/token_mixer.h"

#include "unit/nn/layer_testing.h"

namespace distil_xlstm::nn {
namespace {

using testing::expect_gradients_match;
using testing::leaf;
using testing::randn;

class TokenMixerTest : public testing::OpTest {};

class DecayMean final : public TokenMixer {
 public:
  DecayMean(Matrix value_ED, Tensor rate_E) : value_ED_(std::move(value_ED)), rate_E_(std::move(rate_E)) {}

  [[nodiscard]] Tensor mix(const MatrixInput& u_BSD) override {
    const int64_t S = u_BSD.sizes[1];
    const Tensor value_BSE = value_ED_.product(u_BSD, {});
    const Tensor place_S = at::arange(S, value_BSE.options());
    const Tensor distance_TS1 = (place_S.unsqueeze(1) - place_S).unsqueeze(2);
    const Tensor share_TSE = (-at::softplus(rate_E_) * distance_TS1).masked_fill(distance_TS1 < 0, -1e30).softmax(1);
    return (share_TSE.unsqueeze(0) * value_BSE.unsqueeze(1)).sum(2);
  }

 private:
  Matrix value_ED_;
  Tensor rate_E_;
};

constexpr int64_t kMixed = 5, kVocabulary = 11;

// Of one layer: the mixer's two, then the layer's.
std::vector<Tensor> random_layer() {
  std::vector<Tensor> tensors = {random_matrix(kMixed, LayerVariant::D), randn({kMixed})};
  for (const Tensor& weight : random_decoder_weights({}, kMixed)) tensors.push_back(weight);
  return tensors;
}

Tensor run_layer(const std::vector<Tensor>& tensors, const Tensor& x_BSD, bool packs = false) {
  DecoderWeights weights = decoder_weights({tensors.begin() + 2, tensors.end()});
  if (packs) {
    for (Matrix* matrix : {&weights.o_DHK, &weights.gate_up_2ID, &weights.down_DI}) matrix->pack();
  }
  DecayMean mixer(tensors[0], tensors[1]);
  return decoder_layer(weights, mixer, x_BSD, {});
}

TEST_F(TokenMixerTest, GradientsOfAStackAreThoseOfDifferences) {
  std::vector<Tensor> inputs = {randn({2, 5, LayerVariant::D})};
  size_t layer_size = 0;
  for (int layer = 0; layer < 2; ++layer) {
    const std::vector<Tensor> one = random_layer();
    layer_size = one.size();
    inputs.insert(inputs.end(), one.begin(), one.end());
  }
  const Tensor projection = randn(inputs[0].sizes());
  expect_gradients_match(
      [&](const std::vector<Tensor>& at) {
        Tensor x = at[0];
        for (auto layer = at.begin() + 1; layer != at.end(); layer += static_cast<std::ptrdiff_t>(layer_size))
          x = run_layer({layer, layer + static_cast<std::ptrdiff_t>(layer_size)}, x);
        return (x * projection).sum();
      },
      inputs);
}

// Loss of the next token under a fixed embedding, before and after a few steps of plain gradient descent.
std::pair<double, double> trained(std::vector<std::vector<Tensor>>& layers, const std::vector<Tensor>& parameters, bool packs) {
  const Tensor embedding_VD = at::randn({kVocabulary, LayerVariant::D});
  const Tensor tokens = at::randint(kVocabulary, {3, 10}, at::kLong);
  const auto loss_now = [&] {
    Tensor x_BSD = at::embedding(embedding_VD, tokens.narrow(1, 0, 9));
    for (const auto& layer : layers) x_BSD = run_layer(layer, x_BSD, packs);
    return at::cross_entropy_loss(at::matmul(x_BSD, embedding_VD.t()).flatten(0, 1), tokens.narrow(1, 1, 9).flatten());
  };
  const double before = loss_now().item<double>();
  for (int step = 0; step < 30; ++step) {
    for (const Tensor& parameter : parameters) parameter.mutable_grad() = Tensor();
    loss_now().backward();
    const at::NoGradGuard no_grad;
    for (const Tensor& parameter : parameters) parameter.sub_(parameter.grad() * (0.05 / (1 + parameter.grad().norm())));
  }
  const at::NoGradGuard no_grad;
  return {before, loss_now().item<double>()};
}

TEST_F(TokenMixerTest, AStackIsTrained) {
  std::vector<std::vector<Tensor>> layers(2);
  std::vector<Tensor> parameters;
  for (auto& layer : layers) {
    for (const Tensor& tensor : random_layer()) {
      layer.push_back(leaf(tensor.to(at::kFloat)));
      parameters.push_back(layer.back());
    }
  }
  const auto [before, after] = trained(layers, parameters, /*packs=*/false);
  EXPECT_LT(after, 0.9 * before) << before;
}

// The mixers of a stack whose other weights are frozen: the gradient reaches the first through all above it.
TEST_F(TokenMixerTest, MixersAloneAreTrainedThroughFrozenLayers) {
  for (const bool packs : {false, true}) {
    std::vector<std::vector<Tensor>> layers(2);
    std::vector<Tensor> parameters, frozen, copies;
    for (auto& layer : layers) {
      for (const Tensor& tensor : random_layer()) {
        const bool is_mixers = layer.size() < 2;
        layer.push_back(is_mixers ? leaf(tensor.to(at::kFloat)) : tensor.to(at::kFloat));
        (is_mixers ? parameters : frozen).push_back(layer.back());
        if (!is_mixers) copies.push_back(layer.back().clone());
      }
    }
    const auto [before, after] = trained(layers, parameters, packs);
    EXPECT_LT(after, before) << "packed " << packs;
    for (size_t i = 0; i < frozen.size(); ++i) EXPECT_TRUE(at::equal(frozen[i], copies[i])) << i;
  }
}

}  // namespace
}  // namespace distil_xlstm::nn
