#include "nn/decoder_layer.h"

#include "ops/norm.h"

namespace distil_xlstm::nn {
namespace {

void add_mixed(Tensor& sum, const DecoderWeights& weights, const MatrixInput& mixed_BSE, const LayerCall& call) {
  if (!call.on_mixer_output) return weights.o_DHK.add_product_(sum, mixed_BSE, weights.o_bias_D);
  const Tensor output_BSD = weights.o_DHK.product(mixed_BSE, weights.o_bias_D);
  call.on_mixer_output(output_BSD);
  sum.add_(output_BSD);
}

at::ScalarType product_dtype(const LayerCall& call, const Tensor& x_BSD) {
  return call.compute_dtype.value_or(x_BSD.scalar_type());
}

// With a gradient: sums are made in the norms that read them, where their gradients meet too.
Tensor recorded_layer(const DecoderWeights& weights, TokenMixer& mixer, const Tensor& x_BSD, const LayerCall& call) {
  const at::ScalarType dtype = product_dtype(call, x_BSD);
  const auto [x_again_BSD, u_BSD] = ops::add_rms_norm(x_BSD.contiguous(), {}, weights.input_norm_D, call.rms_norm_eps, dtype);
  const MatrixInput mixed_BSE = matrix_input(mixer.mix(matrix_input(u_BSD, call.product_type)).to(dtype), call.product_type);
  const Tensor output_BSD = weights.o_DHK.product(mixed_BSE, weights.o_bias_D);
  if (call.on_mixer_output) call.on_mixer_output(output_BSD);
  const auto [sum_BSD, v_BSD] = ops::add_rms_norm(x_again_BSD, output_BSD, weights.mlp_norm_D, call.rms_norm_eps, dtype);
  const MatrixInput gated_BSI =
      weights.gate_up_2ID.swiglu_product_input(matrix_input(v_BSD, call.product_type), weights.gate_up_bias_2I, call.product_type);
  return (sum_BSD + weights.down_DI.product(gated_BSI, weights.down_bias_D)).to(x_BSD.scalar_type());
}

}  // namespace

MatrixInput mixer_input(const Tensor& input_norm_D, const Tensor& x_BSD, const LayerCall& call) {
  const Tensor u_BSD = ops::add_rms_norm(x_BSD.contiguous(), {}, input_norm_D, call.rms_norm_eps, product_dtype(call, x_BSD)).normed;
  return matrix_input(u_BSD, call.product_type);
}

Tensor mixer_output(const DecoderWeights& weights, TokenMixer& mixer, const Tensor& x_BSD, const LayerCall& call) {
  const Tensor mixed_BSE = mixer.mix(mixer_input(weights.input_norm_D, x_BSD, call)).to(product_dtype(call, x_BSD));
  return weights.o_DHK.product(matrix_input(mixed_BSE, call.product_type), weights.o_bias_D);
}

Tensor decoder_layer(const DecoderWeights& weights, TokenMixer& mixer, const Tensor& x_BSD, const LayerCall& call) {
  if (at::GradMode::is_enabled()) return recorded_layer(weights, mixer, x_BSD, call);
  const at::ScalarType dtype = product_dtype(call, x_BSD);
  Tensor sum_BSD = x_BSD.contiguous();
  const MatrixInput u_BSD = call.keeps_input
                                ? rms_norm_input_of_copy(sum_BSD, weights.input_norm_D, call.rms_norm_eps, call.product_type).in_type(dtype)
                                : rms_norm_input(sum_BSD, weights.input_norm_D, call.rms_norm_eps, call.product_type).in_type(dtype);
  add_mixed(sum_BSD, weights, matrix_input(mixer.mix(u_BSD).to(dtype), call.product_type), call);

  const MatrixInput v_BSD = rms_norm_input(sum_BSD, weights.mlp_norm_D, call.rms_norm_eps, call.product_type).in_type(dtype);
  const MatrixInput gated_BSI = weights.gate_up_2ID.swiglu_product_input(v_BSD, weights.gate_up_bias_2I, call.product_type);
  weights.down_DI.add_product_(sum_BSD, gated_BSI, weights.down_bias_D);
  return sum_BSD;
}

}  // namespace distil_xlstm::nn
