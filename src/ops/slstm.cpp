#include "ops/slstm.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_backend.h"
#include "ops/internal.h"
#include "ops/slstm_forms.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether CUDA kernels serve activations like this one; K is their last dimension.
bool uses_kernels(const Tensor& x) {
  return has_cuda_kernels(x) && x.size(-1) <= cuda_backend().max_head_width;
}

at::ScalarType io_type(const Tensor& x) {
  return uses_kernels(x) ? activation_type(x) : compute_type(x);
}

// In the type to compute in. All zeros come from one tensor: each would be a launch of its own on a GPU.
SlstmState ready(const SlstmState& state, at::IntArrayRef shape, const at::TensorOptions& options) {
  const auto& [hidden, cell, normalizer, stabilizer] = state;
  if (hidden.defined() || cell.defined() || normalizer.defined() || stabilizer.defined()) {
    return {or_zeros(hidden, shape, options), or_zeros(cell, shape, options), or_zeros(normalizer, shape, options),
            or_zeros(stabilizer, shape, options)};
  }
  std::vector<int64_t> all = shape.vec();
  all.insert(all.begin(), 4);
  const Tensor zeros = at::zeros(all, options);
  return {zeros[0], zeros[1], zeros[2], zeros[3]};
}

SlstmForward run_forward(const Tensor& wx, const Tensor& r, const Tensor& bias, const SlstmState& initial, const Tensor& is_start,
                         bool save) {
  const auto run = wx.is_cpu() ? slstm_forward_cpu : uses_kernels(wx) ? cuda_backend().slstm_forward : slstm_forward_aten;
  const at::ScalarType type = compute_type(wx);
  return run(wx.to(io_type(wx)).contiguous(), r.to(type).contiguous(), bias.to(type).contiguous(), initial, is_start, save);
}

// dR[h,e,g,d] = sum over tokens of y_{t-1}[h,e] dp_g[h,d], as one product per head; y_{t-1} is 0 where a document starts.
Tensor recurrent_gradient(const Tensor& y_BSHK, const Tensor& grad_wx_BSHGK, const Tensor& initial_hidden_BHK, const Tensor& is_start_BS) {
  const int64_t B = y_BSHK.size(0), S = y_BSHK.size(1), H = y_BSHK.size(2), K = y_BSHK.size(3);
  Tensor before_BSHK = at::cat({initial_hidden_BHK.unsqueeze(1).to(y_BSHK.scalar_type()), y_BSHK.narrow(1, 0, S - 1)}, 1);
  if (is_start_BS.defined()) before_BSHK.masked_fill_(is_start_BS.to(at::kBool).view({B, S, 1, 1}), 0);
  const Tensor before_HKN = before_BSHK.view({B * S, H, K}).permute({1, 2, 0});
  const Tensor grad_HNJ = grad_wx_BSHGK.view({B * S, H, 4 * K}).transpose(0, 1);
  return at::bmm(before_HKN, grad_HNJ).view({H, K, 4, K});
}

struct SlstmFunction : torch::autograd::Function<SlstmFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& wx, const Tensor& r, const Tensor& bias, const Tensor& hidden,
                               const Tensor& cell, const Tensor& normalizer, const Tensor& stabilizer,
                               const std::optional<Tensor>& is_start_or_none) {
    const Tensor is_start = is_start_or_none.value_or(Tensor());
    const at::ScalarType type = compute_type(wx);
    const auto options = wx.options().dtype(type);
    const std::vector<int64_t> state_shape{wx.size(0), wx.size(2), wx.size(4)};
    const SlstmState initial = ready({hidden, cell, normalizer, stabilizer}, state_shape, options);
    const SlstmForward out = run_forward(wx, r, bias, initial, is_start, /*save=*/true);
    const Tensor y_out = out.y_BSHK.to(wx.scalar_type());
    ctx->save_for_backward(
        {out.y_BSHK, out.saved_BSHXK, r.to(type).contiguous(), initial.hidden_BHK, initial.cell_BHK, initial.normalizer_BHK, is_start});
    ctx->saved_data["types"] = std::vector<int64_t>{int64_t(wx.scalar_type()), int64_t(r.scalar_type()), int64_t(bias.scalar_type())};
    ctx->mark_non_differentiable({out.state.stabilizer_BHK});
    ctx->set_materialize_grads(false);
    return {y_out, out.state.hidden_BHK, out.state.cell_BHK, out.state.normalizer_BHK, out.state.stabilizer_BHK};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto types = ctx->saved_data["types"].toIntVector();
    const auto as = [&](const Tensor& x, int index) { return x.to(static_cast<at::ScalarType>(types[index])); };
    const Tensor &y = saved[0], &r = saved[2];
    const SlstmState initial{saved[3], saved[4], saved[5], {}};
    const Tensor& is_start = saved[6];
    const Tensor grad_y = or_zeros(grads[0], y.sizes(), y.options());
    const auto wide = initial.hidden_BHK.options();
    const at::IntArrayRef state_shape = initial.hidden_BHK.sizes();
    const SlstmState grad_state = ready({grads[1], grads[2], grads[3], {}}, state_shape, wide);
    const auto run = y.is_cpu() ? slstm_backward_cpu : uses_kernels(y) ? cuda_backend().slstm_backward : slstm_backward_aten;
    const SlstmBackward out = run(grad_y, grad_state, y, saved[1], r, initial, is_start);
    Tensor grad_r, grad_bias;
    if (ctx->needs_input_grad(1)) {
      const bool is_made = out.grad_r_HKGK.defined();
      grad_r = as(is_made ? out.grad_r_HKGK : recurrent_gradient(y, out.grad_wx_BSHGK, initial.hidden_BHK, is_start), 1);
    }
    if (ctx->needs_input_grad(2)) {
      const bool is_made = out.grad_bias_HGK.defined();
      grad_bias = as(is_made ? out.grad_bias_HGK : out.grad_wx_BSHGK.sum(at::IntArrayRef{0, 1}, false, wide.dtype().toScalarType()), 2);
    }
    return {as(out.grad_wx_BSHGK, 0),        grad_r,   grad_bias, out.grad_initial.hidden_BHK, out.grad_initial.cell_BHK,
            out.grad_initial.normalizer_BHK, Tensor(), Tensor()};
  }
};

void check_inputs(const Tensor& wx, const Tensor& r, const Tensor& bias, const SlstmState& initial, const Tensor& is_start) {
  check_rank("slstm_scan: wx_BSHGK", wx, 5);
  const int64_t B = wx.size(0), S = wx.size(1), H = wx.size(2), K = wx.size(4);
  check_shape("slstm_scan: wx_BSHGK", wx, {B, S, H, 4, K});
  if (wx.numel() == 0) throw ShapeError("slstm_scan: wx_BSHGK {}: no dimension may be 0", shape_text(wx.sizes()));
  check_shape("slstm_scan: r_HKGK", r, {H, K, 4, K});
  check_shape("slstm_scan: bias_HGK", bias, {H, 4, K});
  check_device("slstm_scan: wx_BSHGK", wx, {r, bias});
  for (const Tensor& state : {initial.hidden_BHK, initial.cell_BHK, initial.normalizer_BHK, initial.stabilizer_BHK}) {
    if (state.defined()) check_shape("slstm_scan: initial state", state, {B, H, K});
    check_device("slstm_scan: wx_BSHGK", wx, {state});
  }
  if (is_start.defined()) check_shape("slstm_scan: is_start_BS", is_start, {B, S});
}

}  // namespace

SlstmOutput slstm_scan(const Tensor& wx_BSHGK, const Tensor& r_HKGK, const Tensor& bias_HGK, const SlstmState& initial,
                       const Tensor& is_start_BS) {
  check_inputs(wx_BSHGK, r_HKGK, bias_HGK, initial, is_start_BS);
  const Tensor is_start = is_start_BS.defined() ? is_start_BS.to(wx_BSHGK.device(), at::kByte).contiguous() : Tensor();
  const auto options = wx_BSHGK.options().dtype(compute_type(wx_BSHGK));
  const std::vector<int64_t> shape{wx_BSHGK.size(0), wx_BSHGK.size(2), wx_BSHGK.size(4)};
  const SlstmState start = ready(initial, shape, options);
  if (any_requires_grad({wx_BSHGK, r_HKGK, bias_HGK, initial.hidden_BHK, initial.cell_BHK, initial.normalizer_BHK})) {
    const variable_list out = SlstmFunction::apply(wx_BSHGK, r_HKGK, bias_HGK, start.hidden_BHK, start.cell_BHK, start.normalizer_BHK,
                                                   start.stabilizer_BHK, as_optional(is_start));
    return {out[0], {out[1], out[2], out[3], out[4]}};
  }
  at::NoGradGuard no_grad;
  const SlstmForward out = run_forward(wx_BSHGK, r_HKGK, bias_HGK, start, is_start, /*save=*/false);
  return {out.y_BSHK.to(wx_BSHGK.scalar_type()), out.state};
}

}  // namespace distil_xlstm::ops
