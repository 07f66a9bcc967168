// One layer of a decoder: norm, token mixer, output projection, residual sum; norm, gated MLP, residual sum. Teachers are stacks of it,
// without gradients and with attention; a student may be made of the same with another mixer, and be trained. Letters: B batch, S sequence,
// D hidden_size, E the mixer's width, I intermediate_size.
#pragma once

#include <functional>
#include <optional>

#include "nn/matrix.h"
#include "nn/token_mixer.h"

namespace distil_xlstm::nn {

// All but the mixer's. Matrices are [out, in] as stored; gate and up lie one after the other in one. Undefined: absent.
struct DecoderWeights {
  Tensor input_norm_D;
  Matrix o_DHK;  // of the mixer's output; E = H K for attention
  Tensor o_bias_D, mlp_norm_D;
  Matrix gate_up_2ID;
  Tensor gate_up_bias_2I;
  Matrix down_DI;
  Tensor down_bias_D;
};

struct LayerCall {
  double rms_norm_eps = 1e-6;
  ProductType product_type = ProductType::same_as_weights;
  // Of the products' inputs and of what they give; none: the residual stream's. Weights of another type are converted.
  std::optional<at::ScalarType> compute_dtype;
  // False: without gradients, the result may take the place of x in memory. True costs a copy.
  bool keeps_input = true;
  // Sees what the mixer adds to the stream, after the output projection.
  std::function<void(const Tensor& output_BSD)> on_mixer_output;
};

// What the mixer reads: the stream x_BSD behind the layer's first norm. Differentiable as decoder_layer is.
MatrixInput mixer_input(const Tensor& input_norm_D, const Tensor& x_BSD, const LayerCall& call);

// What the mixer adds to the stream, and nothing behind it, in the type of the products. Differentiable as decoder_layer is.
Tensor mixer_output(const DecoderWeights& weights, TokenMixer& mixer, const Tensor& x_BSD, const LayerCall& call);

// The residual stream after the layer, in x's type. Where gradients are recorded, it is differentiable in x and in every weight that
// requires one, and nothing is computed in place; frozen matrices hand the gradient on to their inputs, packed ones too. Otherwise the
// fastest forms are taken. Throws ValueError for gradients through fp8.
Tensor decoder_layer(const DecoderWeights& weights, TokenMixer& mixer, const Tensor& x_BSD, const LayerCall& call);

}  // namespace distil_xlstm::nn
