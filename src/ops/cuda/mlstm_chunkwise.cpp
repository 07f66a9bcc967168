// Glue of the chunkwise mLSTM.
#include "kernels/cuda/mlstm_chunkwise.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

gpu::MlstmInputs mlstm_arguments(const MlstmInputs& in, const MlstmState& initial) {
  const Tensor& q = in.q_BSHK;
  return {.type = type_of(q),
          .normalizer = gpu::MlstmNormalizer::bounded,
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
          .initial_cell_BHKV = floats(initial.cell_BHKV),
          .initial_normalizer_BHK = floats(initial.normalizer_BHK),
          .initial_stabilizer_BH = floats(initial.stabilizer_BH),
          .segment_chunks = 0};
}

Tensor workspace(size_t bytes, const Tensor& like) {
  return at::empty({int64_t(bytes)}, like.options().dtype(at::kByte));
}

// Uninitialised, of the sizes that the inputs ask for.
MlstmState empty_state(const MlstmInputs& in) {
  const int64_t B = in.q_BSHK.size(0), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  const auto options = in.q_BSHK.options().dtype(at::kFloat);
  return {at::empty({B, H, K, V}, options), at::empty({B, H, K}, options), at::empty({B, H}, options)};
}

// In chunks of the kernels' own.
MlstmOutput mlstm_chunkwise_cuda(const MlstmInputs& in, const MlstmState& initial, bool returns_state) {
  const c10::cuda::CUDAGuard guard(in.q_BSHK.device());
  MlstmOutput out{at::empty_like(in.v_BSHV), returns_state ? empty_state(in) : MlstmState{}};
  gpu::MlstmForward args{.inputs = mlstm_arguments(in, initial),
                         .h_BSHV = pointer(out.h_BSHV),
                         .cell_BHKV = floats(out.state.cell_BHKV),
                         .normalizer_BHK = floats(out.state.normalizer_BHK),
                         .stabilizer_BH = floats(out.state.stabilizer_BH)};
  const Tensor memory = workspace(gpu::mlstm_forward_workspace(args), in.q_BSHK);
  args.workspace = pointer(memory);
  check(gpu::mlstm_forward(args, c10::cuda::getCurrentCUDAStream()), "mlstm_chunkwise forward, q_BSHK", in.q_BSHK);
  return out;
}

MlstmBackward mlstm_backward_cuda(const MlstmInputs& in, int64_t /*chunk_size*/, const MlstmState& initial, const Tensor& h_BSHV,
                                  const Tensor& grad_h_BSHV, const MlstmState& grad_state) {
  const c10::cuda::CUDAGuard guard(in.q_BSHK.device());
  MlstmBackward out{{at::empty_like(in.q_BSHK), at::empty_like(in.k_BSHK), at::empty_like(in.v_BSHV), at::empty_like(in.igate_BSH),
                     at::empty_like(in.fgate_BSH), Tensor()},
                    initial.cell_BHKV.defined() ? empty_state(in) : MlstmState{}};
  gpu::MlstmBackward args{.inputs = mlstm_arguments(in, initial),
                          .h_BSHV = pointer(h_BSHV),
                          .grad_h_BSHV = pointer(grad_h_BSHV),
                          .grad_cell_BHKV = floats(grad_state.cell_BHKV),
                          .grad_normalizer_BHK = floats(grad_state.normalizer_BHK),
                          .grad_q_BSHK = pointer(out.grad_inputs.q_BSHK),
                          .grad_k_BSHK = pointer(out.grad_inputs.k_BSHK),
                          .grad_v_BSHV = pointer(out.grad_inputs.v_BSHV),
                          .grad_igate_BSH = floats(out.grad_inputs.igate_BSH),
                          .grad_fgate_BSH = floats(out.grad_inputs.fgate_BSH),
                          .grad_initial_cell_BHKV = floats(out.grad_initial.cell_BHKV),
                          .grad_initial_normalizer_BHK = floats(out.grad_initial.normalizer_BHK),
                          .grad_initial_stabilizer_BH = floats(out.grad_initial.stabilizer_BH)};
  const Tensor memory = workspace(gpu::mlstm_backward_workspace(args), in.q_BSHK);
  args.workspace = pointer(memory);
  check(gpu::mlstm_backward(args, c10::cuda::getCurrentCUDAStream()), "mlstm_chunkwise backward, q_BSHK", in.q_BSHK);
  return out;
}

}  // namespace

void register_mlstm_chunkwise(CudaBackend& table) {
  table.mlstm_chunkwise = mlstm_chunkwise_cuda;
  table.mlstm_backward = mlstm_backward_cuda;
}

}  // namespace distil_xlstm::ops
