// Glue of the chunkwise delta rule.
#include "kernels/cuda/delta_rule.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

gpu::DeltaRuleInputs delta_rule_arguments(const DeltaRuleInputs& in, const DeltaRuleState& initial) {
  const Tensor& q = in.q_BSHK;
  return {.type = type_of(q),
          .B = int(q.size(0)),
          .S = int(q.size(1)),
          .H = int(q.size(2)),
          .K = int(q.size(3)),
          .V = int(in.v_BSHV.size(3)),
          .q_BSHK = pointer(q),
          .k_BSHK = pointer(in.k_BSHK),
          .v_BSHV = pointer(in.v_BSHV),
          .igate_BSH = floats(in.igate_BSH),
          .fgate_BSH = floats(in.fgate_BSH),
          .is_start_BS = starts(in.is_start_BS),
          .initial_cell_BHKV = floats(initial.cell_BHKV)};
}

DeltaRuleInputs aligned_inputs(const DeltaRuleInputs& in) {
  return {aligned(in.q_BSHK), aligned(in.k_BSHK), aligned(in.v_BSHV), in.igate_BSH, in.fgate_BSH, in.is_start_BS};
}

Tensor bytes(size_t count, const Tensor& like) {
  return at::empty({int64_t(count)}, like.options().dtype(at::kByte));
}

Tensor empty_cell(const DeltaRuleInputs& in) {
  return at::empty({in.q_BSHK.size(0), in.q_BSHK.size(2), in.q_BSHK.size(3), in.v_BSHV.size(3)}, in.q_BSHK.options().dtype(at::kFloat));
}

bool delta_rule_serves_cuda(const Tensor& q_BSHK, const Tensor& v_BSHV) {
  return gpu::delta_rule_serves(int(q_BSHK.size(3)), int(v_BSHV.size(3)), q_BSHK.get_device());
}

// In chunks of the kernels' own.
Tensor delta_rule_chunkwise_cuda(const DeltaRuleInputs& inputs, const DeltaRuleState& initial, Tensor& kept) {
  const c10::cuda::CUDAGuard guard(inputs.q_BSHK.device());
  const DeltaRuleInputs in = aligned_inputs(inputs);
  const Tensor h_BSHV = at::empty_like(in.v_BSHV);
  gpu::DeltaRuleForward args{.inputs = delta_rule_arguments(in, initial), .h_BSHV = pointer(h_BSHV), .cell_BHKV = nullptr, .kept = nullptr};
  kept = bytes(gpu::delta_rule_kept(args.inputs), in.q_BSHK);
  args.kept = pointer(kept);
  check(gpu::delta_rule_forward(args, c10::cuda::getCurrentCUDAStream()), "delta_rule_chunkwise forward, q_BSHK", in.q_BSHK);
  return h_BSHV;
}

DeltaRuleBackward delta_rule_backward_cuda(const DeltaRuleInputs& inputs, const DeltaRuleState& initial, const Tensor& kept,
                                           const Tensor& grad_h_BSHV) {
  const c10::cuda::CUDAGuard guard(inputs.q_BSHK.device());
  const DeltaRuleInputs in = aligned_inputs(inputs);
  const Tensor grad_h = aligned(grad_h_BSHV);
  DeltaRuleBackward out{{at::empty_like(in.q_BSHK), at::empty_like(in.k_BSHK), at::empty_like(in.v_BSHV), at::empty_like(in.igate_BSH),
                         at::empty_like(in.fgate_BSH), Tensor()},
                        {initial.cell_BHKV.defined() ? empty_cell(in) : Tensor()}};
  gpu::DeltaRuleBackward args{.inputs = delta_rule_arguments(in, initial),
                              .kept = pointer(kept),
                              .grad_h_BSHV = pointer(grad_h),
                              .grad_cell_BHKV = nullptr,
                              .grad_q_BSHK = pointer(out.grad_inputs.q_BSHK),
                              .grad_k_BSHK = pointer(out.grad_inputs.k_BSHK),
                              .grad_v_BSHV = pointer(out.grad_inputs.v_BSHV),
                              .grad_igate_BSH = floats(out.grad_inputs.igate_BSH),
                              .grad_fgate_BSH = floats(out.grad_inputs.fgate_BSH),
                              .grad_initial_cell_BHKV = floats(out.grad_initial.cell_BHKV),
                              .workspace = nullptr};
  const Tensor memory = bytes(gpu::delta_rule_backward_workspace(args.inputs), in.q_BSHK);
  args.workspace = pointer(memory);
  check(gpu::delta_rule_backward(args, c10::cuda::getCurrentCUDAStream()), "delta_rule_chunkwise backward, q_BSHK", in.q_BSHK);
  return out;
}

}  // namespace

void register_delta_rule(CudaBackend& table) {
  table.delta_rule_serves = delta_rule_serves_cuda;
  table.delta_rule_chunkwise = delta_rule_chunkwise_cuda;
  table.delta_rule_backward = delta_rule_backward_cuda;
}

}  // namespace distil_xlstm::ops
