#include "nn/decoder_layer.h"

namespace distil_xlstm::nn {
namespace {

// Recorded norms read the sum again in backward: it is then left as it is.
void add(Tensor& sum, const Tensor& x) {
  if (at::GradMode::is_enabled()) {
    sum = (sum + x).to(sum.scalar_type());
  } else {
    sum.add_(x);
  }
}

void add_product(Tensor& sum, const Matrix& matrix, const MatrixInput& x, const Tensor& bias_E) {
  if (at::GradMode::is_enabled()) return add(sum, matrix.product(x, bias_E));
  matrix.add_product_(sum, x, bias_E);
}

void add_mixed(Tensor& sum, const DecoderWeights& weights, const MatrixInput& mixed_BSE, const LayerCall& call) {
  if (!call.on_mixer_output) return add_product(sum, weights.o_DHK, mixed_BSE, weights.o_bias_D);
  const Tensor output_BSD = weights.o_DHK.product(mixed_BSE, weights.o_bias_D);
  call.on_mixer_output(output_BSD);
  add(sum, output_BSD);
}

}  // namespace

Tensor mixer_output(const DecoderWeights& weights, TokenMixer& mixer, const Tensor& x_BSD, const LayerCall& call) {
  const at::ScalarType dtype = call.compute_dtype.value_or(x_BSD.scalar_type());
  const MatrixInput u_BSD = rms_norm_input(x_BSD.contiguous(), weights.input_norm_D, call.rms_norm_eps, call.product_type).in_type(dtype);
  return weights.o_DHK.product(matrix_input(mixer.mix(u_BSD).to(dtype), call.product_type), weights.o_bias_D);
}

Tensor decoder_layer(const DecoderWeights& weights, TokenMixer& mixer, const Tensor& x_BSD, const LayerCall& call) {
  const at::ScalarType dtype = call.compute_dtype.value_or(x_BSD.scalar_type());
  const bool copies = call.keeps_input && !at::GradMode::is_enabled();
  Tensor sum_BSD = x_BSD.contiguous();
  const MatrixInput u_BSD = copies
                                ? rms_norm_input_of_copy(sum_BSD, weights.input_norm_D, call.rms_norm_eps, call.product_type).in_type(dtype)
                                : rms_norm_input(sum_BSD, weights.input_norm_D, call.rms_norm_eps, call.product_type).in_type(dtype);
  add_mixed(sum_BSD, weights, matrix_input(mixer.mix(u_BSD).to(dtype), call.product_type), call);

  const MatrixInput v_BSD = rms_norm_input(sum_BSD, weights.mlp_norm_D, call.rms_norm_eps, call.product_type).in_type(dtype);
  const MatrixInput gated_BSI = weights.gate_up_2ID.swiglu_product_input(v_BSD, weights.gate_up_bias_2I, call.product_type);
  add_product(sum_BSD, weights.down_DI, gated_BSI, weights.down_bias_D);
  return sum_BSD;
}

}  // namespace distil_xlstm::nn
