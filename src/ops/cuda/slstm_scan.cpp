// Glue of the sLSTM scan.
#include "kernels/cuda/slstm_scan.h"

#include "ops/cuda/glue.h"
#include "ops/cuda/slstm_steps.h"

namespace distil_xlstm::ops {
namespace {

SlstmForward slstm_forward_cuda(const Tensor& wx_BSHGK, const Tensor& r_HKGK, const Tensor& bias_HGK, const SlstmState& initial,
                                const Tensor& is_start_BS, bool save) {
  const int64_t B = wx_BSHGK.size(0), S = wx_BSHGK.size(1), H = wx_BSHGK.size(2), K = wx_BSHGK.size(4);
  const c10::cuda::CUDAGuard guard(wx_BSHGK.device());
  const auto options = wx_BSHGK.options();
  // Copies, which the kernels change: one launch for all in training, tensors of their own where they may be carried on.
  std::vector<Tensor> states{initial.cell_BHK, initial.normalizer_BHK, initial.stabilizer_BHK};
  if (save) {
    states = at::stack(states).unbind(0);
  } else {
    for (Tensor& state : states) state = state.clone();
  }
  SlstmForward out{at::empty({B, S, H, K}, options), {at::empty_like(initial.hidden_BHK), states[0], states[1], states[2]}, {}};
  if (save) {
    const size_t size_bytes = gpu::slstm_saved_bytes(type_of(wx_BSHGK), int(B), int(S), int(H), int(K));
    out.saved_BSHXK = at::empty({int64_t(size_bytes)}, options.dtype(at::kByte));
  }
  const Tensor wx = aligned(wx_BSHGK), r = aligned(r_HKGK.to(wx_BSHGK.scalar_type()));
  const gpu::SlstmForward args{.type = type_of(wx_BSHGK),
                               .B = int(B),
                               .S = int(S),
                               .H = int(H),
                               .K = int(K),
                               .wx_BSHGK = pointer(wx),
                               .r_HKGK = pointer(r),
                               .bias_HGK = floats(bias_HGK),
                               .is_start_BS = starts(is_start_BS),
                               .initial_hidden_BHK = floats(initial.hidden_BHK),
                               .hidden_BHK = floats(out.state.hidden_BHK),
                               .cell_BHK = floats(out.state.cell_BHK),
                               .normalizer_BHK = floats(out.state.normalizer_BHK),
                               .stabilizer_BHK = floats(out.state.stabilizer_BHK),
                               .y_BSHK = pointer(out.y_BSHK),
                               .saved = pointer(out.saved_BSHXK)};
  const cudaError_t error = gpu::slstm_takes_steps(args.type, args.K)
                                ? slstm_forward_by_steps(args, r.contiguous(), initial.hidden_BHK, is_start_BS)
                                : gpu::slstm_forward(args, c10::cuda::getCurrentCUDAStream());
  check(error, "slstm_scan forward, wx_BSHGK", wx_BSHGK);
  return out;
}

// dR[h,e,g,d] = sum over tokens of y_{t-1}[h,e] dp_g[h,d]: one batched product of half-precision inputs with float32 sums and result.
Tensor recurrent_gradient(const Tensor& y_BSHK, const Tensor& grad_wx_BSHGK, const Tensor& initial_hidden_BHK, const Tensor& is_start_BS) {
  const int64_t B = y_BSHK.size(0), S = y_BSHK.size(1), H = y_BSHK.size(2), K = y_BSHK.size(3);
  const Tensor before_BSHK = at::empty_like(y_BSHK);
  check(gpu::slstm_hidden_before({.type = type_of(y_BSHK),
                                  .B = int(B),
                                  .S = int(S),
                                  .H = int(H),
                                  .K = int(K),
                                  .y_BSHK = pointer(y_BSHK),
                                  .initial_hidden_BHK = floats(initial_hidden_BHK),
                                  .is_start_BS = starts(is_start_BS),
                                  .before_BSHK = pointer(before_BSHK)},
                                 c10::cuda::getCurrentCUDAStream()),
        "slstm_scan backward, y_BSHK", y_BSHK);
  const Tensor before_HKN = before_BSHK.view({B * S, H, K}).permute({1, 2, 0});
  const Tensor grad_HNJ = grad_wx_BSHGK.view({B * S, H, 4 * K}).transpose(0, 1);
  return at::bmm(before_HKN, grad_HNJ, at::kFloat).view({H, K, 4, K});
}

SlstmBackward slstm_backward_cuda(const Tensor& grad_y_BSHK, const SlstmState& grad_state, const Tensor& y_BSHK, const Tensor& saved_BSHXK,
                                  const Tensor& r_HKGK, const SlstmState& initial, const Tensor& is_start_BS) {
  const int64_t B = y_BSHK.size(0), S = y_BSHK.size(1), H = y_BSHK.size(2), K = y_BSHK.size(3);
  const c10::cuda::CUDAGuard guard(y_BSHK.device());
  const gpu::Type type = type_of(y_BSHK);
  const bool uses_tensor_cores = gpu::slstm_uses_tensor_cores(type, int(K)), takes_steps = gpu::slstm_takes_steps(type, int(K));
  const Tensor grads = at::stack({grad_state.hidden_BHK, grad_state.cell_BHK, grad_state.normalizer_BHK});  // the kernels change them
  SlstmBackward out{at::empty({B, S, H, 4, K}, y_BSHK.options()), {grads[0], grads[1], grads[2], {}}};
  const Tensor grad_y = aligned(grad_y_BSHK), r = aligned(r_HKGK.to(y_BSHK.scalar_type()));
  const Tensor transposed = uses_tensor_cores || takes_steps ? Tensor() : r.permute({0, 2, 3, 1}).contiguous();
  const Tensor grad_bias_PHGK =
      uses_tensor_cores ? at::empty({gpu::slstm_num_tiles(int(B)), H, 4, K}, y_BSHK.options().dtype(at::kFloat)) : Tensor();
  const gpu::SlstmBackward args{.type = type,
                                .B = int(B),
                                .S = int(S),
                                .H = int(H),
                                .K = int(K),
                                .grad_y_BSHK = pointer(grad_y),
                                .y_BSHK = pointer(y_BSHK),
                                .saved = pointer(saved_BSHXK),
                                .r_HKGK = pointer(r),
                                .r_transposed_HGKK = pointer(transposed),
                                .initial_cell_BHK = floats(initial.cell_BHK),
                                .initial_normalizer_BHK = floats(initial.normalizer_BHK),
                                .is_start_BS = starts(is_start_BS),
                                .grad_hidden_BHK = floats(out.grad_initial.hidden_BHK),
                                .grad_cell_BHK = floats(out.grad_initial.cell_BHK),
                                .grad_normalizer_BHK = floats(out.grad_initial.normalizer_BHK),
                                .grad_wx_BSHGK = pointer(out.grad_wx_BSHGK),
                                .grad_bias_PHGK = floats(grad_bias_PHGK)};
  const cudaError_t error = takes_steps ? slstm_backward_by_steps(args, r.contiguous(), out.grad_initial.hidden_BHK, is_start_BS)
                                        : gpu::slstm_backward(args, c10::cuda::getCurrentCUDAStream());
  check(error, "slstm_scan backward, y_BSHK", y_BSHK);
  if (uses_tensor_cores) out.grad_bias_HGK = grad_bias_PHGK.sum(0);
  if (type != gpu::Type::float32) out.grad_r_HKGK = recurrent_gradient(y_BSHK, out.grad_wx_BSHGK, initial.hidden_BHK, is_start_BS);
  return out;
}

}  // namespace

void register_slstm_scan(CudaBackend& table) {
  table.slstm_forward = slstm_forward_cuda;
  table.slstm_backward = slstm_backward_cuda;
  table.max_head_width = gpu::kSlstmMaxHeadWidth;
}

}  // namespace distil_xlstm::ops
