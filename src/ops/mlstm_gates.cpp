#include "ops/mlstm_gates.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_backend.h"
#include "ops/internal.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

MlstmGates project(const std::array<Tensor, 3>& qkv_NI, const MlstmGateWeights& w) {
  const Tensor weight_GJ = at::cat({w.input_HJ, w.forget_HJ});
  Tensor gates_NG = at::cat({w.input_bias_H, w.forget_bias_H});  // G = 2 H
  const int64_t I = qkv_NI[0].size(1), H = w.input_HJ.size(0);
  for (int64_t i = 0; i < 3; ++i)
    gates_NG = at::addmm(gates_NG, qkv_NI[static_cast<size_t>(i)].to(weight_GJ.scalar_type()), weight_GJ.narrow(1, i * I, I).t());
  return {gates_NG.narrow(1, 0, H), gates_NG.narrow(1, H, H)};
}

// x ~ high + low, both of a half-precision type: 16 bits of x for bfloat16.
void split_in_two(const Tensor& x, const Tensor& high, Tensor low) {
  high.copy_(x);
  at::sub_out(low, x, high);
}

// float16 is left to plain operations: its range would have to hold the gates' gradients, and the cell's inputs are bfloat16 there.
bool can_split(const std::array<Tensor, 3>& qkv, const MlstmGateWeights& w) {
  if (!has_cuda_kernels(qkv[0]) || qkv[0].numel() == 0) return false;
  for (const Tensor& x : qkv) {
    if (x.scalar_type() != at::kBFloat16) return false;
  }
  return w.input_HJ.scalar_type() == at::kFloat && w.forget_HJ.scalar_type() == at::kFloat;
}

// Letters: P parts (high, low), G gates (input, forget), C = P G H.
struct SplitProjectionFunction : torch::autograd::Function<SplitProjectionFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q_NI, const Tensor& k_NI, const Tensor& v_NI, const Tensor& input_HJ,
                               const Tensor& input_bias_H, const Tensor& forget_HJ, const Tensor& forget_bias_H) {
    const int64_t N = q_NI.size(0), I = q_NI.size(1), H = input_HJ.size(0);
    const Tensor weight_PGHJ = at::empty({2, 2, H, 3 * I}, q_NI.options());
    split_in_two(input_HJ, weight_PGHJ[0][0], weight_PGHJ[1][0]);
    split_in_two(forget_HJ, weight_PGHJ[0][1], weight_PGHJ[1][1]);
    const std::array<Tensor, 3> qkv_NI{q_NI, k_NI, v_NI};
    Tensor sum_NC;
    for (int64_t i = 0; i < 3; ++i) {
      const Tensor weight_CI = weight_PGHJ.view({4 * H, 3 * I}).narrow(1, i * I, I);
      const Tensor product_NC = at::mm(qkv_NI[static_cast<size_t>(i)], weight_CI.t(), at::kFloat);
      sum_NC = i == 0 ? product_NC : sum_NC.add_(product_NC);
    }
    const Tensor gates_NGH = sum_NC.view({N, 2, 2, H}).sum(1);
    ctx->save_for_backward({q_NI, k_NI, v_NI, weight_PGHJ[0]});
    return {gates_NGH.select(1, 0) + input_bias_H, gates_NGH.select(1, 1) + forget_bias_H};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& weight_GHJ = saved[3];
    const int64_t N = saved[0].size(0), I = saved[0].size(1), H = weight_GHJ.size(1);
    const Tensor grad_NPGH = at::empty({N, 2, 2, H}, saved[0].options());
    for (int64_t g = 0; g < 2; ++g)
      split_in_two(grads[static_cast<size_t>(g)], grad_NPGH.select(1, 0).select(1, g), grad_NPGH.select(1, 1).select(1, g));
    const Tensor grad_NC = grad_NPGH.view({N, 4 * H}), grad_weight_GHJ = at::empty({2, H, 3 * I}, grads[0].options());
    variable_list out;
    for (int64_t i = 0; i < 3; ++i) {
      const Tensor weight_CI = weight_GHJ.view({2 * H, 3 * I}).narrow(1, i * I, I);
      out.push_back(at::mm(grad_NC.narrow(1, 0, 2 * H), weight_CI));
      const Tensor products_PGHI = at::mm(grad_NC.t(), saved[static_cast<size_t>(i)], at::kFloat).view({2, 2, H, I});
      Tensor grad_weight_GHI = grad_weight_GHJ.narrow(2, i * I, I);
      at::add_out(grad_weight_GHI, products_PGHI[0], products_PGHI[1]);
    }
    for (int64_t g = 0; g < 2; ++g) {
      out.push_back(grad_weight_GHJ[g]);
      out.push_back(grads[static_cast<size_t>(g)].sum(0));
    }
    return out;
  }
};

}  // namespace

MlstmGates mlstm_gate_projection(const std::array<Tensor, 3>& qkv_NI, const MlstmGateWeights& weights) {
  check_rank("mlstm_gate_projection: q_NI", qkv_NI[0], 2);
  check_rank("mlstm_gate_projection: input_HJ", weights.input_HJ, 2);
  const int64_t N = qkv_NI[0].size(0), I = qkv_NI[0].size(1), H = weights.input_HJ.size(0);
  check_shape("mlstm_gate_projection: k_NI", qkv_NI[1], {N, I});
  check_shape("mlstm_gate_projection: v_NI", qkv_NI[2], {N, I});
  check_shape("mlstm_gate_projection: input_HJ", weights.input_HJ, {H, 3 * I});
  check_shape("mlstm_gate_projection: forget_HJ", weights.forget_HJ, {H, 3 * I});
  check_shape("mlstm_gate_projection: input_bias_H", weights.input_bias_H, {H});
  check_shape("mlstm_gate_projection: forget_bias_H", weights.forget_bias_H, {H});
  check_device("mlstm_gate_projection: q_NI", qkv_NI[0],
               {qkv_NI[1], qkv_NI[2], weights.input_HJ, weights.input_bias_H, weights.forget_HJ, weights.forget_bias_H});
  if (!can_split(qkv_NI, weights)) return project(qkv_NI, weights);
  const variable_list out = SplitProjectionFunction::apply(qkv_NI[0], qkv_NI[1], qkv_NI[2], weights.input_HJ, weights.input_bias_H,
                                                           weights.forget_HJ, weights.forget_bias_H);
  return {out[0], out[1]};
}

}  // namespace distil_xlstm::ops
