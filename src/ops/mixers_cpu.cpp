// The mixers' cells on CPU tensors.
#include <algorithm>
#include <type_traits>

#include "ops/cpu_glue.h"
#include "ops/delta_rule_forms.h"
#include "ops/mlstm_forms.h"
#include "ops/slstm_forms.h"

namespace distil_xlstm::ops {
namespace {

static_assert(kNumSaved == kernels::kSlstmSaved);

// Rows of the batch per task of the sLSTM: whole register tiles, and tasks enough for all threads.
int64_t slstm_tile_rows(int64_t B, int64_t H) {
  int64_t tile = B;
  while (tile > 6 && H * divide_up(B, tile) < 3 * at::get_num_threads()) tile = divide_up(divide_up(tile, 2), 6) * 6;
  return tile;
}

// The chunks that cost least: products inside a chunk grow with its length, the work on states shrinks. The output does not depend on it.
int64_t mlstm_chunk(int64_t S, int64_t chunk_size, int64_t K, int64_t V) {
  const int64_t best = K * V <= 32 * 32 ? 32 : 64;
  return std::min({S, chunk_size, best});
}
int64_t delta_rule_chunk(int64_t S, int64_t chunk_size, int64_t K, int64_t V) {
  const int64_t best = K * V <= 32 * 32 ? 16 : 32;
  return std::min({S, chunk_size, best});
}

// Sizes and inputs, which the kernels of both cells name alike.
template <typename Args>
Args with_inputs(const GatedInputs& in, int64_t L, const Tensor& initial_cell, const Tensor& final_cell, const Tensor& h) {
  using T = std::remove_pointer_t<decltype(Args::h_BSHV)>;
  Args args{};
  args.B = in.q_BSHK.size(0), args.S = in.q_BSHK.size(1), args.H = in.q_BSHK.size(2), args.K = in.q_BSHK.size(3);
  args.V = in.v_BSHV.size(3);
  args.L = L;
  args.q_BSHK = data<T>(in.q_BSHK);
  args.k_BSHK = data<T>(in.k_BSHK);
  args.v_BSHV = data<T>(in.v_BSHV);
  args.igate_BSH = data<T>(in.igate_BSH);
  args.fgate_BSH = data<T>(in.fgate_BSH);
  args.is_start_BS = starts(in.is_start_BS);
  args.initial_cell_BHKV = data<T>(initial_cell);
  args.cell_BHKV = data<T>(final_cell);
  args.h_BSHV = data<T>(h);
  return args;
}

// Where the gradients of the inputs and of the initial state's matrix go.
template <typename T, typename Args>
void set_gradients(Args& args, const GatedInputs& gradients, const Tensor& cell) {
  args.grad_q_BSHK = data<T>(gradients.q_BSHK);
  args.grad_k_BSHK = data<T>(gradients.k_BSHK);
  args.grad_v_BSHV = data<T>(gradients.v_BSHV);
  args.grad_igate_BSH = data<T>(gradients.igate_BSH);
  args.grad_fgate_BSH = data<T>(gradients.fgate_BSH);
  args.grad_cell_BHKV = data<T>(cell);
}

// Uninitialised.
GatedInputs gradients_of(const GatedInputs& in) {
  return {at::empty_like(in.q_BSHK),    at::empty_like(in.k_BSHK),    at::empty_like(in.v_BSHV),
          at::empty_like(in.igate_BSH), at::empty_like(in.fgate_BSH), {}};
}

template <typename T>
kernels::MlstmForwardArgs<T> mlstm_arguments(const MlstmInputs& in, int64_t chunk_size, const MlstmState& initial,
                                             const MlstmState& final_state, const Tensor& h) {
  const int64_t L = mlstm_chunk(in.q_BSHK.size(1), chunk_size, in.q_BSHK.size(3), in.v_BSHV.size(3));
  auto args = with_inputs<kernels::MlstmForwardArgs<T>>(in, L, initial.cell_BHKV, final_state.cell_BHKV, h);
  args.initial_normalizer_BHK = data<T>(initial.normalizer_BHK);
  args.initial_stabilizer_BH = data<T>(initial.stabilizer_BH);
  args.normalizer_BHK = data<T>(final_state.normalizer_BHK);
  args.stabilizer_BH = data<T>(final_state.stabilizer_BH);
  return args;
}

template <typename T>
kernels::DeltaRuleForwardArgs<T> delta_rule_arguments(const DeltaRuleInputs& in, int64_t chunk_size, const DeltaRuleState& initial,
                                                      const DeltaRuleState& final_state, const Tensor& h) {
  const int64_t L = delta_rule_chunk(in.q_BSHK.size(1), chunk_size, in.q_BSHK.size(3), in.v_BSHV.size(3));
  return with_inputs<kernels::DeltaRuleForwardArgs<T>>(in, L, initial.cell_BHKV, final_state.cell_BHKV, h);
}

}  // namespace

SlstmForward slstm_forward_cpu(const Tensor& wx_BSHGK, const Tensor& r_HKGK, const Tensor& bias_HGK, const SlstmState& initial,
                               const Tensor& is_start_BS, bool save) {
  const Profiled profiled("distil_xlstm::slstm");
  const int64_t B = wx_BSHGK.size(0), S = wx_BSHGK.size(1), H = wx_BSHGK.size(2), K = wx_BSHGK.size(4);
  SlstmForward out{
      at::empty({B, S, H, K}, wx_BSHGK.options()),
      {at::empty_like(initial.hidden_BHK), initial.cell_BHK.clone(), initial.normalizer_BHK.clone(), initial.stabilizer_BHK.clone()},
      save ? at::empty({B, S, H, kNumSaved, K}, wx_BSHGK.options()) : Tensor()};
  with_type(wx_BSHGK, [&](auto zero) {
    using T = decltype(zero);
    const int64_t tile = slstm_tile_rows(B, H);
    const kernels::SlstmForwardArgs<T> args{.B = B,
                                            .S = S,
                                            .H = H,
                                            .K = K,
                                            .tile_rows = tile,
                                            .wx_BSHGK = data<T>(wx_BSHGK),
                                            .r_HKGK = data<T>(r_HKGK),
                                            .bias_HGK = data<T>(bias_HGK),
                                            .is_start_BS = starts(is_start_BS),
                                            .initial_hidden_BHK = data<T>(initial.hidden_BHK),
                                            .hidden_BHK = data<T>(out.state.hidden_BHK),
                                            .cell_BHK = data<T>(out.state.cell_BHK),
                                            .normalizer_BHK = data<T>(out.state.normalizer_BHK),
                                            .stabilizer_BHK = data<T>(out.state.stabilizer_BHK),
                                            .y_BSHK = data<T>(out.y_BSHK),
                                            .saved_BSHXK = data<T>(out.saved_BSHXK)};
    run_tasks<T>(H * divide_up(B, tile), cpu_kernels<T>().slstm_workspace(K, tile),
                 [&](int64_t begin, int64_t end, T* workspace) { cpu_kernels<T>().slstm_forward(args, begin, end, workspace); });
  });
  return out;
}

SlstmBackward slstm_backward_cpu(const Tensor& grad_y_BSHK, const SlstmState& grad_state, const Tensor& y_BSHK, const Tensor& saved_BSHXK,
                                 const Tensor& r_HKGK, const SlstmState& initial, const Tensor& is_start_BS) {
  const Profiled profiled("distil_xlstm::slstm_backward");
  const int64_t B = y_BSHK.size(0), S = y_BSHK.size(1), H = y_BSHK.size(2), K = y_BSHK.size(3);
  SlstmBackward out{at::empty({B, S, H, 4, K}, y_BSHK.options()),
                    {grad_state.hidden_BHK.clone(), grad_state.cell_BHK.clone(), grad_state.normalizer_BHK.clone(), {}}};
  with_type(y_BSHK, [&](auto zero) {
    using T = decltype(zero);
    const int64_t tile = slstm_tile_rows(B, H);
    const kernels::SlstmBackwardArgs<T> args{.B = B,
                                             .S = S,
                                             .H = H,
                                             .K = K,
                                             .tile_rows = tile,
                                             .grad_y_BSHK = data<T>(grad_y_BSHK),
                                             .y_BSHK = data<T>(y_BSHK),
                                             .saved_BSHXK = data<T>(saved_BSHXK),
                                             .r_HKGK = data<T>(r_HKGK),
                                             .initial_cell_BHK = data<T>(initial.cell_BHK),
                                             .initial_normalizer_BHK = data<T>(initial.normalizer_BHK),
                                             .is_start_BS = starts(is_start_BS),
                                             .grad_hidden_BHK = data<T>(out.grad_initial.hidden_BHK),
                                             .grad_cell_BHK = data<T>(out.grad_initial.cell_BHK),
                                             .grad_normalizer_BHK = data<T>(out.grad_initial.normalizer_BHK),
                                             .grad_wx_BSHGK = data<T>(out.grad_wx_BSHGK)};
    run_tasks<T>(H * divide_up(B, tile), cpu_kernels<T>().slstm_workspace(K, tile),
                 [&](int64_t begin, int64_t end, T* workspace) { cpu_kernels<T>().slstm_backward(args, begin, end, workspace); });
  });
  return out;
}

MlstmOutput mlstm_chunkwise_cpu(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial) {
  const Profiled profiled("distil_xlstm::mlstm_chunkwise");
  MlstmOutput out{at::empty_like(inputs.v_BSHV),
                  {at::empty_like(initial.cell_BHKV), at::empty_like(initial.normalizer_BHK), at::empty_like(initial.stabilizer_BH)}};
  with_type(inputs.q_BSHK, [&](auto zero) {
    using T = decltype(zero);
    const auto args = mlstm_arguments<T>(inputs, chunk_size, initial, out.state, out.h_BSHV);
    run_tasks<T>(args.B * args.H, cpu_kernels<T>().mlstm_forward_workspace(args),
                 [&](int64_t begin, int64_t end, T* workspace) { cpu_kernels<T>().mlstm_forward(args, begin, end, workspace); });
  });
  return out;
}

MlstmBackward mlstm_backward_cpu(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial, const Tensor& h_BSHV,
                                 const Tensor& grad_h_BSHV, const MlstmState& grad_state) {
  const Profiled profiled("distil_xlstm::mlstm_backward");
  MlstmBackward out{gradients_of(inputs),
                    {at::empty_like(initial.cell_BHKV), at::empty_like(initial.normalizer_BHK), at::empty_like(initial.stabilizer_BH)}};
  with_type(inputs.q_BSHK, [&](auto zero) {
    using T = decltype(zero);
    kernels::MlstmBackwardArgs<T> args{.forward = mlstm_arguments<T>(inputs, chunk_size, initial, {}, h_BSHV),
                                       .grad_h_BSHV = data<T>(grad_h_BSHV),
                                       .grad_final_cell_BHKV = data<T>(grad_state.cell_BHKV),
                                       .grad_final_normalizer_BHK = data<T>(grad_state.normalizer_BHK)};
    set_gradients<T>(args, out.grad_inputs, out.grad_initial.cell_BHKV);
    args.grad_normalizer_BHK = data<T>(out.grad_initial.normalizer_BHK);
    args.grad_stabilizer_BH = data<T>(out.grad_initial.stabilizer_BH);
    run_tasks<T>(args.forward.B * args.forward.H, cpu_kernels<T>().mlstm_backward_workspace(args.forward),
                 [&](int64_t begin, int64_t end, T* workspace) { cpu_kernels<T>().mlstm_backward(args, begin, end, workspace); });
  });
  return out;
}

MlstmOutput mlstm_recurrent_cpu(const MlstmInputs& inputs, const MlstmState& initial) {
  const Profiled profiled("distil_xlstm::mlstm_recurrent");
  MlstmOutput out{at::empty_like(inputs.v_BSHV),
                  {initial.cell_BHKV.clone(), initial.normalizer_BHK.clone(), initial.stabilizer_BH.clone()}};
  with_type(inputs.q_BSHK, [&](auto zero) {
    using T = decltype(zero);
    const auto args = mlstm_arguments<T>(inputs, 1, initial, out.state, out.h_BSHV);
    at::parallel_for(0, args.B * args.H, 1, [&](int64_t begin, int64_t end) { cpu_kernels<T>().mlstm_recurrent(args, begin, end); });
  });
  return out;
}

DeltaRuleOutput delta_rule_chunkwise_cpu(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial) {
  const Profiled profiled("distil_xlstm::delta_rule_chunkwise");
  DeltaRuleOutput out{at::empty_like(inputs.v_BSHV), {at::empty_like(initial.cell_BHKV)}};
  with_type(inputs.q_BSHK, [&](auto zero) {
    using T = decltype(zero);
    const auto args = delta_rule_arguments<T>(inputs, chunk_size, initial, out.state, out.h_BSHV);
    run_tasks<T>(args.B * args.H, cpu_kernels<T>().delta_rule_forward_workspace(args),
                 [&](int64_t begin, int64_t end, T* workspace) { cpu_kernels<T>().delta_rule_forward(args, begin, end, workspace); });
  });
  return out;
}

DeltaRuleBackward delta_rule_backward_cpu(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial,
                                          const Tensor& grad_h_BSHV, const DeltaRuleState& grad_final) {
  const Profiled profiled("distil_xlstm::delta_rule_backward");
  DeltaRuleBackward out{gradients_of(inputs), {at::empty_like(initial.cell_BHKV)}};
  with_type(inputs.q_BSHK, [&](auto zero) {
    using T = decltype(zero);
    kernels::DeltaRuleBackwardArgs<T> args{.forward = delta_rule_arguments<T>(inputs, chunk_size, initial, {}, {}),
                                           .grad_h_BSHV = data<T>(grad_h_BSHV),
                                           .grad_final_cell_BHKV = data<T>(grad_final.cell_BHKV)};
    set_gradients<T>(args, out.grad_inputs, out.grad_initial.cell_BHKV);
    run_tasks<T>(args.forward.B * args.forward.H, cpu_kernels<T>().delta_rule_backward_workspace(args.forward),
                 [&](int64_t begin, int64_t end, T* workspace) { cpu_kernels<T>().delta_rule_backward(args, begin, end, workspace); });
  });
  return out;
}

DeltaRuleOutput delta_rule_recurrent_cpu(const DeltaRuleInputs& inputs, const DeltaRuleState& initial) {
  const Profiled profiled("distil_xlstm::delta_rule_recurrent");
  DeltaRuleOutput out{at::empty_like(inputs.v_BSHV), {initial.cell_BHKV.clone()}};
  with_type(inputs.q_BSHK, [&](auto zero) {
    using T = decltype(zero);
    const auto args = delta_rule_arguments<T>(inputs, 1, initial, out.state, out.h_BSHV);
    at::parallel_for(0, args.B * args.H, 1, [&](int64_t begin, int64_t end) { cpu_kernels<T>().delta_rule_recurrent(args, begin, end); });
  });
  return out;
}

}  // namespace distil_xlstm::ops
