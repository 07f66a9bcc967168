#include "student/convert/mixer.h"

#include <optional>
#include <utility>

#include "ops/gated.h"
#include "ops/linear.h"

namespace distil_xlstm::student {

void ConvertState::for_each(const std::function<void(Tensor&)>& visit) {
  if (tail_BJT.defined()) visit(tail_BJT);
  for (Tensor& tensor : cell) visit(tensor);
}

Tensor ConvertMixer::mix(const nn::MatrixInput& u_BSD) {
  std::optional<ConvertState> next;  // takes the state's place at the end: an error leaves that as it was
  if (state_) next = *state_;
  const Heads x = heads(u_BSD, next ? &next->tail_BJT : nullptr);
  const Tensor h_BSHK = normed(cell_.run(cell_inputs(u_BSD, x), next ? &next->cell : nullptr));
  const Tensor gate_BSE = projected(u_BSD, w_.output_gate_ED, products_.output_gate_ED, w_.output_gate_bias_E);
  if (next) {
    next->num_tokens += gate_BSE.size(1);
    *state_ = std::move(*next);
  }
  return ops::gated_activation(gate_BSE, h_BSHK.reshape(gate_BSE.sizes()).to(gate_BSE.scalar_type()), ops::Activation::sigmoid);
}

// `tail_BJT`, unless null, holds the convolution's inputs before the first, and takes the last.
ConvertMixer::Heads ConvertMixer::heads(const nn::MatrixInput& u_BSD, Tensor* tail_BJT) const {
  const int64_t B = u_BSD.sizes[0], S = u_BSD.sizes[1], H = config_.decoder.num_heads, K = config_.decoder.head_dim;
  const Tensor qkv_BST = convolved(projected(u_BSD, w_.qkv_TD, products_.qkv_TD, w_.qkv_bias_T), w_.conv_TJ, call_.is_start_BS, tail_BJT);
  const auto parts = qkv_BST.split(H * K, 2);  // its gradient is one copy
  const auto part = [&](size_t i) { return parts[i].view({B, S, H, K}); };
  return {placed(part(0), w_.q_norm_K), placed(part(1), w_.k_norm_K), part(2)};
}

// Normed where the teacher's are, and turned by its place.
Tensor ConvertMixer::placed(const Tensor& x_BSHK, const Tensor& norm_K) const {
  const Tensor x =
      norm_K.defined() ? nn::rms_norm_input(x_BSHK, norm_K, config_.decoder.rms_norm_eps, nn::ProductType::same_as_weights).values : x_BSHK;
  return rotary_ ? rotary_->rotate(x, state_ ? state_->num_tokens : 0) : x;
}

CellInputs ConvertMixer::cell_inputs(const nn::MatrixInput& u_BSD, const Heads& heads) const {
  const Tensor gates_BSG = ops::wide_linear(u_BSD.values, at::cat({w_.input_gate_HD, w_.forget_gate_HD}),
                                            at::cat({w_.input_gate_bias_H, w_.forget_gate_bias_H}));
  const auto gates = gates_BSG.chunk(2, 2);
  return {.q_BSHK = heads.q_BSHK,
          .k_BSHK = heads.k_BSHK,
          .v_BSHK = heads.v_BSHK,
          .feature_q_HKM = w_.feature_q_HKM,
          .feature_k_HKM = w_.feature_k_HKM,
          .input_gate_BSH = gates[0],
          .forget_gate_BSH = gates[1],
          .is_start_BS = call_.is_start_BS,
          .normalizer = config_.normalizer,
          .type = cell_dtype(call_.compute_dtype),
          .form = call_.form,
          .chunk_size = config_.chunk_size};
}

// Head by head.
Tensor ConvertMixer::normed(const Tensor& h_BSHK) const {
  if (!w_.head_norm_E.defined()) return h_BSHK;
  const int64_t K = h_BSHK.size(3);
  return at::layer_norm(h_BSHK, {K}, {}, {}, config_.decoder.rms_norm_eps) * w_.head_norm_E.to(h_BSHK.scalar_type()).view({-1, K});
}

Tensor ConvertMixer::mixing_error_sum(const nn::MatrixInput& u_BSD, const AttentionMatrix& attention) const {
  return cell_.mixing_error_sum(cell_inputs(u_BSD, heads(u_BSD, nullptr)), attention);
}

}  // namespace distil_xlstm::student
