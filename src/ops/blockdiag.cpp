#include "ops/blockdiag.h"

#include <torch/csrc/autograd/custom_function.h>

#include <array>

#include "ops/blockdiag_forms.h"
#include "ops/blocks_cpu.h"
#include "ops/cuda_backend.h"
#include "ops/internal.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// [N, G * width] as [G, N, width].
Tensor as_blocks(const Tensor& x_NF, int64_t num_blocks) {
  return x_NF.unflatten(1, {num_blocks, -1}).transpose(0, 1);
}

// x W^T (+ bias).
Tensor blockdiag_forward(const Tensor& x_NF, const Tensor& weight_GOI, const Tensor& bias_F) {
  if (has_blockdiag4_cpu(x_NF, weight_GOI)) return blockdiag4_cpu(x_NF, weight_GOI, bias_F);
  const int64_t num_blocks = weight_GOI.size(0);
  const Tensor out_NF = at::empty(x_NF.sizes(), x_NF.options());
  Tensor out_GNO = as_blocks(out_NF, num_blocks);
  at::bmm_out(out_GNO, as_blocks(x_NF, num_blocks), weight_GOI.transpose(1, 2));
  return bias_F.defined() ? out_NF.add_(bias_F) : out_NF;
}

// grad_x_NF (+)= dy W.
void blockdiag_backward_input(const Tensor& grad_NF, const Tensor& weight_GOI, const Tensor& grad_x_NF, bool accumulate) {
  if (has_blockdiag4_cpu(grad_NF, weight_GOI)) return blockdiag4_input_cpu(grad_NF, weight_GOI, grad_x_NF, accumulate);
  const int64_t num_blocks = weight_GOI.size(0);
  Tensor grad_x_GNI = as_blocks(grad_x_NF, num_blocks);
  const Tensor grad_GNO = as_blocks(grad_NF, num_blocks);
  if (accumulate) {
    grad_x_GNI.baddbmm_(grad_GNO, weight_GOI);
  } else {
    at::bmm_out(grad_x_GNI, grad_GNO, weight_GOI);
  }
}

Tensor blockdiag_backward_weight(const Tensor& grad_NF, const Tensor& x_NF, const Tensor& weight_GOI) {
  const int64_t num_blocks = weight_GOI.size(0);
  if (has_blockdiag4_cpu(grad_NF, weight_GOI)) return blockdiag4_weight_cpu(grad_NF, x_NF, num_blocks);
  return at::bmm(as_blocks(grad_NF, num_blocks).transpose(1, 2), as_blocks(x_NF, num_blocks));
}

// Rows may be slices of longer ones, but a row itself is contiguous.
Tensor with_contiguous_rows(const Tensor& x_NF) {
  return x_NF.stride(1) == 1 ? x_NF : x_NF.contiguous();
}

}  // namespace

std::array<Tensor, 3> qkv_forward_aten(const Tensor& c_NF, const Tensor& x_NF, const QkvMaps& maps, at::ScalarType out_dtype) {
  std::array<Tensor, 3> out;
  for (size_t i = 0; i < 3; ++i) out[i] = blockdiag_forward(i == 2 ? x_NF : c_NF, maps.weight_GOI[i], maps.bias_F[i]).to(out_dtype);
  return out;
}

QkvBackward qkv_backward_aten(const std::array<Tensor, 3>& grad_NF, const Tensor& c_NF, const Tensor& x_NF, const QkvMaps& maps) {
  QkvBackward out{at::empty(c_NF.sizes(), c_NF.options()), at::empty(c_NF.sizes(), c_NF.options()), {}};
  for (size_t i = 0; i < 3; ++i) {
    const Tensor grad = with_contiguous_rows(grad_NF[i].to(c_NF.scalar_type()));
    const Tensor& weight = maps.weight_GOI[i];
    blockdiag_backward_input(grad, weight, i == 2 ? out.x_NF : out.c_NF, /*accumulate=*/i == 1);
    out.maps.weight_GOI[i] = blockdiag_backward_weight(grad, i == 2 ? x_NF : c_NF, weight);
    if (maps.bias_F[i].defined()) out.maps.bias_F[i] = grad.sum(0, false, compute_type(grad));
  }
  return out;
}

namespace {

constexpr int64_t kKernelBlock = 4;  // the block width that the CUDA kernel is made for

bool has_qkv_kernel(const Tensor& c_NF, const Tensor& x_NF, const Tensor& weight_GOI, at::ScalarType out_dtype) {
  const at::ScalarType type = c_NF.scalar_type();
  const bool has_out_type = out_dtype == type || (out_dtype == at::kBFloat16 && type == at::kHalf);
  return has_cuda_kernels(c_NF) && x_NF.scalar_type() == type && has_out_type && weight_GOI.size(1) == kKernelBlock && c_NF.numel() > 0;
}

struct QkvFunction : torch::autograd::Function<QkvFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& c_in, const Tensor& x_in, const Tensor& wq, const Tensor& wk,
                               const Tensor& wv, const std::optional<Tensor>& bq, const std::optional<Tensor>& bk,
                               const std::optional<Tensor>& bv, int64_t out_index) {
    const auto out_dtype = static_cast<at::ScalarType>(out_index);
    const bool has_kernel = has_qkv_kernel(c_in, x_in, wq, out_dtype), has_bias = bq.has_value();
    const Tensor c = has_kernel ? c_in.contiguous() : with_contiguous_rows(c_in);
    const Tensor x = has_kernel ? x_in.contiguous() : with_contiguous_rows(x_in);
    const auto ready = [&](const Tensor& map) { return has_kernel ? map.to(at::kFloat).contiguous() : map.to(c.scalar_type()); };
    QkvMaps maps{{ready(wq), ready(wk), ready(wv)}, {}};
    if (has_bias) maps.bias_F = {ready(*bq), ready(*bk), ready(*bv)};
    const auto run = has_kernel ? cuda_backend().qkv_forward : qkv_forward_aten;
    const std::array<Tensor, 3> out = run(c, x, maps, out_dtype);
    ctx->save_for_backward(
        {c, x, maps.weight_GOI[0], maps.weight_GOI[1], maps.weight_GOI[2], maps.bias_F[0], maps.bias_F[1], maps.bias_F[2]});
    ctx->saved_data["weight_dtype"] = static_cast<int64_t>(wq.scalar_type());
    ctx->saved_data["has_kernel"] = has_kernel;
    ctx->saved_data["out_dtype"] = out_index;
    ctx->set_materialize_grads(false);
    return {out[0], out[1], out[2], c_in.detach()};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto weight_dtype = static_cast<at::ScalarType>(ctx->saved_data["weight_dtype"].toInt());
    const QkvMaps maps{{saved[2], saved[3], saved[4]}, {saved[5], saved[6], saved[7]}};
    const Tensor& c = saved[0];
    const auto out_options = c.options().dtype(static_cast<at::ScalarType>(ctx->saved_data["out_dtype"].toInt()));
    std::array<Tensor, 3> grad_NF;
    for (size_t i = 0; i < 3; ++i) grad_NF[i] = grads[i].defined() ? grads[i] : at::zeros(c.sizes(), out_options);
    const Tensor residual = grads[3].defined() ? grads[3].contiguous() : Tensor();
    const QkvBackward out = run_backward(ctx->saved_data["has_kernel"].toBool(), grad_NF, residual, c, saved[1], maps);
    variable_list result{out.c_NF, out.x_NF};
    for (const Tensor& grad : out.maps.weight_GOI) result.push_back(grad.to(weight_dtype));
    for (const Tensor& grad : out.maps.bias_F) result.push_back(grad.defined() ? grad.to(weight_dtype) : Tensor());
    result.emplace_back();
    return result;
  }

  static QkvBackward run_backward(bool has_kernel, const std::array<Tensor, 3>& grad_NF, const Tensor& residual, const Tensor& c,
                                  const Tensor& x, const QkvMaps& maps) {
    if (has_kernel) return cuda_backend().qkv_backward(grad_NF, residual, c, x, maps);
    QkvBackward out = qkv_backward_aten(grad_NF, c, x, maps);
    if (residual.defined()) out.c_NF.add_(residual);
    return out;
  }
};

// wx_NHC[:, :, offset : offset + J] = x W^T per head.
void project(const Tensor& x_NF, const Tensor& w_HJK, const Tensor& wx_NHC, int64_t offset) {
  const int64_t J = w_HJK.size(1);
  if (has_headwise_cpu(x_NF, w_HJK.size(2), J)) return headwise_cpu(x_NF, w_HJK, wx_NHC, offset);
  Tensor wx_HNJ = wx_NHC.narrow(2, offset, J).transpose(0, 1);
  at::bmm_out(wx_HNJ, as_blocks(x_NF, w_HJK.size(0)), w_HJK.transpose(1, 2));
}

// Gradients of x and of the weight.
std::pair<Tensor, Tensor> project_backward(const Tensor& grad_NHC, int64_t offset, const Tensor& x_NF, const Tensor& w_HJK) {
  const int64_t H = w_HJK.size(0), J = w_HJK.size(1);
  if (has_headwise_cpu(x_NF, w_HJK.size(2), J)) return headwise_backward_cpu(grad_NHC, offset, x_NF, w_HJK);
  const Tensor grad_HNJ = grad_NHC.narrow(2, offset, J).transpose(0, 1);
  const Tensor grad_x_NF = at::empty_like(x_NF);
  Tensor grad_x_HNK = as_blocks(grad_x_NF, H);
  at::bmm_out(grad_x_HNK, grad_HNJ, w_HJK);
  return {grad_x_NF, at::bmm(grad_HNJ.transpose(1, 2), as_blocks(x_NF, H))};
}

// Per head: [N, 2K] = input_NK [W_first; W_second]^T, written where it belongs in wx [N, H, 4, K].
struct GateFunction : torch::autograd::Function<GateFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& c_in, const Tensor& x_in, const Tensor& wi, const Tensor& wf, const Tensor& wz,
                        const Tensor& wo, int64_t dtype_index, const std::vector<Tensor>& converted) {
    const auto dtype = static_cast<at::ScalarType>(dtype_index);
    const int64_t N = c_in.size(0), H = wi.size(0), K = wi.size(1);
    const Tensor c = c_in.to(dtype).contiguous();
    const Tensor x = x_in.to(dtype).contiguous();
    const std::vector<Tensor> w = converted.empty() ? std::vector<Tensor>{wi, wf, wz, wo} : converted;
    const Tensor from_c_HJK = at::cat({w[0], w[1]}, 1).to(dtype);  // J = 2K outputs
    const Tensor from_x_HJK = at::cat({w[2], w[3]}, 1).to(dtype);
    const Tensor wx = at::empty({N, H, 4 * K}, c.options());
    project(c, from_c_HJK, wx, 0);
    project(x, from_x_HJK, wx, 2 * K);
    ctx->save_for_backward({c, x, from_c_HJK, from_x_HJK});
    ctx->saved_data["input_dtype"] = static_cast<int64_t>(c_in.scalar_type());
    ctx->saved_data["weight_dtype"] = static_cast<int64_t>(wi.scalar_type());
    return wx.view({N, H, 4, K});
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto input_dtype = static_cast<at::ScalarType>(ctx->saved_data["input_dtype"].toInt());
    const auto weight_dtype = static_cast<at::ScalarType>(ctx->saved_data["weight_dtype"].toInt());
    const int64_t H = saved[2].size(0), K = saved[2].size(2);
    const Tensor grad_NHC = grads[0].to(saved[0].scalar_type()).contiguous().view({-1, H, 4 * K});
    variable_list out(8);
    for (size_t side = 0; side < 2; ++side) {  // 0: from c, gates i and f; 1: from x, gates z and o
      const auto [grad_input, grad_weight_HJK] =
          project_backward(grad_NHC, static_cast<int64_t>(side) * 2 * K, saved[side], saved[2 + side]);
      out[side] = grad_input.to(input_dtype);
      out[2 + 2 * side] = grad_weight_HJK.narrow(1, 0, K).to(weight_dtype);
      out[3 + 2 * side] = grad_weight_HJK.narrow(1, K, K).to(weight_dtype);
    }
    return out;
  }
};

}  // namespace

bool qkv_takes_float32_weights(const Tensor& activation, int64_t block) {
  return has_cuda_kernels(activation) && block == kKernelBlock;
}

QkvProjection qkv_projection(const Tensor& c_NF, const Tensor& x_NF, const BlockDiagonal& q, const BlockDiagonal& k, const BlockDiagonal& v,
                             at::ScalarType out_dtype) {
  check_rank("qkv_projection: c_NF", c_NF, 2);
  const int64_t N = c_NF.size(0), F = c_NF.size(1);
  check_shape("qkv_projection: x_NF", x_NF, {N, F});
  check_rank("qkv_projection: q weight", q.weight_GOI, 3);
  const int64_t G = q.weight_GOI.size(0);
  if (G < 1 || F % G != 0) throw ShapeError("qkv_projection: {} blocks do not divide {} features", G, F);
  for (const BlockDiagonal* projection : {&q, &k, &v}) {
    check_shape("qkv_projection: weight_GOI", projection->weight_GOI, {G, F / G, F / G});
    if (projection->bias_F.defined() != q.bias_F.defined())
      throw ShapeError("qkv_projection: some of q, k, v have a bias and some have none");
    if (projection->bias_F.defined()) check_shape("qkv_projection: bias_F", projection->bias_F, {F});
  }
  for (const BlockDiagonal* projection : {&q, &k, &v})
    check_device("qkv_projection: c_NF", c_NF, {x_NF, projection->weight_GOI, projection->bias_F});
  const variable_list out = QkvFunction::apply(c_NF, x_NF, q.weight_GOI, k.weight_GOI, v.weight_GOI, as_optional(q.bias_F),
                                               as_optional(k.bias_F), as_optional(v.bias_F), static_cast<int64_t>(out_dtype));
  return {{out[0], out[1], out[2]}, out[3]};
}

Tensor slstm_gate_projection(const Tensor& c_NF, const Tensor& x_NF, const Tensor& input_HKK, const Tensor& forget_HKK,
                             const Tensor& cell_HKK, const Tensor& output_HKK, at::ScalarType dtype,
                             const std::array<Tensor, 4>& converted) {
  check_rank("slstm_gate_projection: c_NF", c_NF, 2);
  check_rank("slstm_gate_projection: weight", input_HKK, 3);
  const int64_t N = c_NF.size(0), H = input_HKK.size(0), K = input_HKK.size(1);
  check_shape("slstm_gate_projection: c_NF", c_NF, {N, H * K});
  check_shape("slstm_gate_projection: x_NF", x_NF, {N, H * K});
  for (const Tensor* weight : {&input_HKK, &forget_HKK, &cell_HKK, &output_HKK})
    check_shape("slstm_gate_projection: weight", *weight, {H, K, K});
  check_device("slstm_gate_projection: c_NF", c_NF, {x_NF, input_HKK, forget_HKK, cell_HKK, output_HKK});
  std::vector<Tensor> ready;
  if (converted[0].defined() && converted[0].scalar_type() == dtype) ready.assign(converted.begin(), converted.end());
  for (const Tensor& weight : ready) check_shape("slstm_gate_projection: converted", weight, {H, K, K});
  return GateFunction::apply(c_NF, x_NF, input_HKK, forget_HKK, cell_HKK, output_HKK, static_cast<int64_t>(dtype), ready);
}

}  // namespace distil_xlstm::ops
