#include "ops/mlstm_gates.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_backend.h"
#include "ops/internal.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

MlstmGates project(const std::array<Tensor, 3>& qkv_NI, const MlstmGateWeights& w, at::IntArrayRef cell_sizes) {
  const Tensor weight_GJ = at::cat({w.input_HJ, w.forget_HJ});
  Tensor gates_NG = at::cat({w.input_bias_H, w.forget_bias_H});  // G = 2 H
  const int64_t I = qkv_NI[0].size(1), H = w.input_HJ.size(0);
  for (int64_t i = 0; i < 3; ++i)
    gates_NG = at::addmm(gates_NG, qkv_NI[static_cast<size_t>(i)].to(weight_GJ.scalar_type()), weight_GJ.narrow(1, i * I, I).t());
  return {gates_NG.narrow(1, 0, H),
          gates_NG.narrow(1, H, H),
          {qkv_NI[0].view(cell_sizes), qkv_NI[1].view(cell_sizes), qkv_NI[2].view(cell_sizes)}};
}

// float16 is left to plain operations: its range would have to hold the gates' gradients, and the cell's inputs are bfloat16 there.
bool can_split(const std::array<Tensor, 3>& qkv, const MlstmGateWeights& w) {
  if (!has_cuda_kernels(qkv[0]) || qkv[0].numel() == 0) return false;
  for (const Tensor& x : qkv) {
    if (x.scalar_type() != at::kBFloat16) return false;
  }
  return w.input_HJ.scalar_type() == at::kFloat && w.forget_HJ.scalar_type() == at::kFloat;
}

// gradient + a b for one that came from another operation's backward: in its own memory where nobody else can see that.
Tensor with_product(const Tensor& gradient, const Tensor& a_NC, const Tensor& b_CI) {
  if (!gradient.defined()) return at::mm(a_NC, b_CI);
  // Two references: one of the node's arguments, one of their copy that backward is given.
  const bool is_ours = gradient.use_count() <= 2 && gradient.storage().use_count() == 1 && gradient.is_contiguous();
  const Tensor gradient_NI = gradient.reshape({a_NC.size(0), b_CI.size(1)});
  return is_ours ? gradient_NI.addmm_(a_NC, b_CI) : at::addmm(gradient_NI, a_NC, b_CI);
}

// Letters: P parts (high, low), G gates (input, forget), C = P G H. q, k and v are handed on, and their other readers' gradients arrive
// here.
struct SplitProjectionFunction : torch::autograd::Function<SplitProjectionFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q_NI, const Tensor& k_NI, const Tensor& v_NI, const Tensor& input_HJ,
                               const Tensor& input_bias_H, const Tensor& forget_HJ, const Tensor& forget_bias_H,
                               const std::vector<int64_t>& cell_sizes) {
    const int64_t N = q_NI.size(0), I = q_NI.size(1), H = input_HJ.size(0);
    const Tensor weight_PGHJ = at::empty({2, 2, H, 3 * I}, q_NI.options());
    cuda_backend().split_gates(input_HJ.reshape({1, -1}), forget_HJ.reshape({1, -1}), weight_PGHJ);
    const std::array<Tensor, 3> qkv_NI{q_NI, k_NI, v_NI};
    Tensor sum_NC = at::empty({N, 4 * H}, q_NI.options().dtype(at::kFloat));
    for (int64_t i = 0; i < 3; ++i) {
      const Tensor weight_IC = weight_PGHJ.view({4 * H, 3 * I}).narrow(1, i * I, I).t();
      at::addmm_out(sum_NC, sum_NC, qkv_NI[static_cast<size_t>(i)], weight_IC, at::kFloat, /*beta=*/i == 0 ? 0 : 1);
    }
    const auto [input_NH, forget_NH] = cuda_backend().sum_gate_parts(sum_NC, input_bias_H, forget_bias_H);
    ctx->save_for_backward({q_NI, k_NI, v_NI, weight_PGHJ[0]});
    ctx->set_materialize_grads(false);
    return {input_NH, forget_NH, q_NI.detach().view(cell_sizes), k_NI.detach().view(cell_sizes), v_NI.detach().view(cell_sizes)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& weight_GHJ = saved[3];
    const int64_t N = saved[0].size(0), I = saved[0].size(1), H = weight_GHJ.size(1);
    const auto options = saved[0].options().dtype(at::kFloat);
    const std::array<Tensor, 2> gates{or_zeros(grads[0], {N, H}, options), or_zeros(grads[1], {N, H}, options)};
    const Tensor grad_NPGH = at::empty({N, 2, 2, H}, saved[0].options());
    cuda_backend().split_gates(gates[0], gates[1], grad_NPGH);
    const Tensor grad_NC = grad_NPGH.view({N, 4 * H}), high_NC = grad_NC.narrow(1, 0, 2 * H);
    const Tensor products_XCI = at::empty({3, 4 * H, I}, options);  // X: q, k, v
    variable_list out;
    for (size_t i = 0; i < 3; ++i) {
      const auto at = static_cast<int64_t>(i);
      out.push_back(with_product(grads[2 + i], high_NC, weight_GHJ.view({2 * H, 3 * I}).narrow(1, at * I, I)));
      Tensor product_CI = products_XCI[at];
      at::mm_out(product_CI, grad_NC.t(), saved[i], at::kFloat);
    }
    const Tensor products_XPRI = products_XCI.view({3, 2, 2 * H, I});  // R = G H
    const Tensor grad_weight_GHJ = at::empty({2, H, 3 * I}, options);
    Tensor grad_weight_XRI = grad_weight_GHJ.view({2 * H, 3, I}).transpose(0, 1);
    at::add_out(grad_weight_XRI, products_XPRI.select(1, 0), products_XPRI.select(1, 1));
    for (int64_t g = 0; g < 2; ++g) {
      out.push_back(grad_weight_GHJ[g]);
      out.push_back(gates[static_cast<size_t>(g)].sum(0));
    }
    out.emplace_back();
    return out;
  }
};

}  // namespace

MlstmGates mlstm_gate_projection(const std::array<Tensor, 3>& qkv_NI, const MlstmGateWeights& weights, at::IntArrayRef cell_sizes) {
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
  if (cell_sizes.empty()) cell_sizes = qkv_NI[0].sizes();
  if (c10::multiply_integers(cell_sizes) != N * I)
    throw ShapeError("mlstm_gate_projection: cell_sizes {} do not fit q_NI {}: as many elements are needed", shape_text(cell_sizes),
                     shape_text(qkv_NI[0].sizes()));
  if (!can_split(qkv_NI, weights)) return project(qkv_NI, weights, cell_sizes);
  const variable_list out = SplitProjectionFunction::apply(qkv_NI[0], qkv_NI[1], qkv_NI[2], weights.input_HJ, weights.input_bias_H,
                                                           weights.forget_HJ, weights.forget_bias_H, cell_sizes.vec());
  return {out[0], out[1], {out[2], out[3], out[4]}};
}

}  // namespace distil_xlstm::ops
