// The causal convolution in tensor operations, one per tap: what runs on devices without a kernel of ours.
#include "ops/causal_conv_forms.h"

namespace distil_xlstm::ops {
namespace {

// The inputs with the K - 1 before them, and how far back each token may look.
struct Window {
  Tensor extended_BPF;  // P = J + S
  Tensor reach_BS1;     // tokens since the document's start; undefined without starts
  int64_t S, J;

  Window(const Tensor& x_BSF, const Tensor& initial_BJF, const Tensor& is_start_BS) : S(x_BSF.size(1)), J(initial_BJF.size(1)) {
    extended_BPF = at::cat({initial_BJF, x_BSF}, 1);
    if (!is_start_BS.defined()) return;
    const Tensor position = at::arange(S, x_BSF.options().dtype(at::kLong));
    const Tensor marks = at::where(is_start_BS.to(at::kBool), position, at::full({}, -J, position.options()));
    reach_BS1 = (position - std::get<0>(marks.cummax(1))).unsqueeze(-1);
  }

  // What tap j of every token sees or, in backward, gives; 0 across a document's start.
  [[nodiscard]] Tensor masked_tap(const Tensor& values_BSF, int64_t j) const {
    return reach_BS1.defined() ? values_BSF.masked_fill(reach_BS1 < J - j, 0) : values_BSF;
  }
  [[nodiscard]] Tensor tap(int64_t j) const { return masked_tap(extended_BPF.narrow(1, j, S), j); }

  // The rows that the next segment gets; 0 before the last document's start.
  [[nodiscard]] Tensor masked_state(const Tensor& values_BJF) const {
    if (!reach_BS1.defined()) return values_BJF;
    const Tensor age = at::arange(J, 0, -1, reach_BS1.options()).view({1, J, 1});
    return values_BJF.masked_fill(reach_BS1.narrow(1, S - 1, 1) + 1 < age, 0);
  }
};

Tensor pre_activation(const Window& window, const Tensor& weight_FK, const Tensor& bias_F) {
  Tensor pre = window.tap(0) * weight_FK.select(1, 0) + bias_F;
  for (int64_t j = 1; j <= window.J; ++j) pre = at::addcmul(pre, window.tap(j), weight_FK.select(1, j));
  return pre;
}

}  // namespace

CausalConvOutput causal_conv_forward_aten(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                          const Tensor& is_start_BS, bool has_silu) {
  const Window window(x_BSF, initial_BJF, is_start_BS);
  const Tensor sum = pre_activation(window, weight_FK, bias_F);
  return {has_silu ? at::silu(sum) : sum, window.masked_state(window.extended_BPF.narrow(1, window.S, window.J)).contiguous()};
}

CausalConvBackward causal_conv_backward_aten(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& x_BSF,
                                             const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                             const Tensor& is_start_BS, bool has_silu) {
  const Window window(x_BSF, initial_BJF, is_start_BS);
  const Tensor grad = has_silu ? at::silu_backward(grad_y_BSF, pre_activation(window, weight_FK, bias_F)) : grad_y_BSF;
  Tensor grad_extended = at::zeros_like(window.extended_BPF);
  grad_extended.narrow(1, window.S, window.J).add_(window.masked_state(grad_state_BJF));
  std::vector<Tensor> grad_taps;
  for (int64_t j = 0; j <= window.J; ++j) {
    grad_extended.narrow(1, j, window.S).add_(window.masked_tap(grad * weight_FK.select(1, j), j));
    grad_taps.push_back((grad * window.tap(j)).sum(at::IntArrayRef{0, 1}));
  }
  return {grad_extended.narrow(1, window.J, window.S).contiguous(), at::stack(grad_taps, 1), grad.sum(at::IntArrayRef{0, 1}),
          grad_extended.narrow(1, 0, window.J).contiguous()};
}

}  // namespace distil_xlstm::ops
