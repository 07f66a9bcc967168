// The mixers on CPU tensors: views of memory for the kernels of kernels/cpu, their tasks spread over LibTorch's threads.
#include <ATen/Parallel.h>

#include <algorithm>

#include "kernels/cpu/kernels.h"
#include "ops/causal_conv_forms.h"
#include "ops/delta_rule_forms.h"
#include "ops/feature_map_forms.h"
#include "ops/mlstm_forms.h"
#include "ops/norm_forms.h"
#include "ops/profiled.h"
#include "ops/slstm_forms.h"

namespace distil_xlstm::ops {
namespace {

using kernels::cpu_kernels;
static_assert(kNumSaved == kernels::kSlstmSaved);

// Calls f(T{}) with the tensor's type to compute in.
template <typename F>
void with_type(const Tensor& x, const F& f) {
  x.scalar_type() == at::kDouble ? f(double{}) : f(float{});
}

template <typename T>
T* data(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<T>() : nullptr;
}
const uint8_t* starts(const Tensor& is_start_BS) {
  return is_start_BS.defined() ? is_start_BS.const_data_ptr<uint8_t>() : nullptr;
}

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Runs kernel(begin, end, workspace) over all tasks, each call with memory of its own.
template <typename T, typename F>
void run_tasks(int64_t tasks, int64_t workspace_elements, const F& kernel) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const Tensor workspace = at::empty({workspace_elements}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
    kernel(begin, end, workspace.mutable_data_ptr<T>());
  });
}

// Rows of the batch per task of the sLSTM: whole register tiles, and tasks enough for all threads.
int64_t slstm_tile_rows(int64_t B, int64_t H) {
  int64_t tile = B;
  while (tile > 6 && H * divide_up(B, tile) < 3 * at::get_num_threads()) tile = divide_up(divide_up(tile, 2), 6) * 6;
  return tile;
}

// The chunk that costs least: products inside a chunk grow with its length, the work on states shrinks. The output does not depend on it.
int64_t mlstm_chunk(int64_t S, int64_t chunk_size, int64_t K, int64_t V) {
  const int64_t best = K * V <= 32 * 32 ? 32 : 64;
  return std::min({S, chunk_size, best});
}

template <typename T>
kernels::MlstmForwardArgs<T> mlstm_arguments(const MlstmInputs& in, int64_t chunk_size, const MlstmState& initial,
                                             const MlstmState& final_state, const Tensor& h) {
  const int64_t B = in.q_BSHK.size(0), S = in.q_BSHK.size(1), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  return {.B = B,
          .S = S,
          .H = H,
          .K = K,
          .V = V,
          .L = mlstm_chunk(S, chunk_size, K, V),
          .q_BSHK = data<T>(in.q_BSHK),
          .k_BSHK = data<T>(in.k_BSHK),
          .v_BSHV = data<T>(in.v_BSHV),
          .igate_BSH = data<T>(in.igate_BSH),
          .fgate_BSH = data<T>(in.fgate_BSH),
          .is_start_BS = starts(in.is_start_BS),
          .initial_cell_BHKV = data<T>(initial.cell_BHKV),
          .initial_normalizer_BHK = data<T>(initial.normalizer_BHK),
          .initial_stabilizer_BH = data<T>(initial.stabilizer_BH),
          .cell_BHKV = data<T>(final_state.cell_BHKV),
          .normalizer_BHK = data<T>(final_state.normalizer_BHK),
          .stabilizer_BH = data<T>(final_state.stabilizer_BH),
          .h_BSHV = data<T>(h)};
}

// Likewise.
int64_t delta_rule_chunk(int64_t S, int64_t chunk_size, int64_t K, int64_t V) {
  const int64_t best = K * V <= 32 * 32 ? 16 : 32;
  return std::min({S, chunk_size, best});
}

template <typename T>
kernels::DeltaRuleForwardArgs<T> delta_rule_arguments(const DeltaRuleInputs& in, int64_t chunk_size, const DeltaRuleState& initial,
                                                      const DeltaRuleState& final_state, const Tensor& h) {
  const int64_t B = in.q_BSHK.size(0), S = in.q_BSHK.size(1), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  return {.B = B,
          .S = S,
          .H = H,
          .K = K,
          .V = V,
          .L = delta_rule_chunk(S, chunk_size, K, V),
          .q_BSHK = data<T>(in.q_BSHK),
          .k_BSHK = data<T>(in.k_BSHK),
          .v_BSHV = data<T>(in.v_BSHV),
          .igate_BSH = data<T>(in.igate_BSH),
          .fgate_BSH = data<T>(in.fgate_BSH),
          .is_start_BS = starts(in.is_start_BS),
          .initial_cell_BHKV = data<T>(initial.cell_BHKV),
          .cell_BHKV = data<T>(final_state.cell_BHKV),
          .h_BSHV = data<T>(h)};
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
  MlstmBackward out{{at::empty_like(inputs.q_BSHK),
                     at::empty_like(inputs.k_BSHK),
                     at::empty_like(inputs.v_BSHV),
                     at::empty_like(inputs.igate_BSH),
                     at::empty_like(inputs.fgate_BSH),
                     {}},
                    {at::empty_like(initial.cell_BHKV), at::empty_like(initial.normalizer_BHK), at::empty_like(initial.stabilizer_BH)}};
  with_type(inputs.q_BSHK, [&](auto zero) {
    using T = decltype(zero);
    const MlstmInputs& g = out.grad_inputs;
    const kernels::MlstmBackwardArgs<T> args{.forward = mlstm_arguments<T>(inputs, chunk_size, initial, {}, h_BSHV),
                                             .grad_h_BSHV = data<T>(grad_h_BSHV),
                                             .grad_final_cell_BHKV = data<T>(grad_state.cell_BHKV),
                                             .grad_final_normalizer_BHK = data<T>(grad_state.normalizer_BHK),
                                             .grad_q_BSHK = data<T>(g.q_BSHK),
                                             .grad_k_BSHK = data<T>(g.k_BSHK),
                                             .grad_v_BSHV = data<T>(g.v_BSHV),
                                             .grad_igate_BSH = data<T>(g.igate_BSH),
                                             .grad_fgate_BSH = data<T>(g.fgate_BSH),
                                             .grad_cell_BHKV = data<T>(out.grad_initial.cell_BHKV),
                                             .grad_normalizer_BHK = data<T>(out.grad_initial.normalizer_BHK),
                                             .grad_stabilizer_BH = data<T>(out.grad_initial.stabilizer_BH)};
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
  DeltaRuleBackward out{{at::empty_like(inputs.q_BSHK),
                         at::empty_like(inputs.k_BSHK),
                         at::empty_like(inputs.v_BSHV),
                         at::empty_like(inputs.igate_BSH),
                         at::empty_like(inputs.fgate_BSH),
                         {}},
                        {at::empty_like(initial.cell_BHKV)}};
  with_type(inputs.q_BSHK, [&](auto zero) {
    using T = decltype(zero);
    const DeltaRuleInputs& g = out.grad_inputs;
    const kernels::DeltaRuleBackwardArgs<T> args{.forward = delta_rule_arguments<T>(inputs, chunk_size, initial, {}, {}),
                                                 .grad_h_BSHV = data<T>(grad_h_BSHV),
                                                 .grad_final_cell_BHKV = data<T>(grad_final.cell_BHKV),
                                                 .grad_q_BSHK = data<T>(g.q_BSHK),
                                                 .grad_k_BSHK = data<T>(g.k_BSHK),
                                                 .grad_v_BSHV = data<T>(g.v_BSHV),
                                                 .grad_igate_BSH = data<T>(g.igate_BSH),
                                                 .grad_fgate_BSH = data<T>(g.fgate_BSH),
                                                 .grad_cell_BHKV = data<T>(out.grad_initial.cell_BHKV)};
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

CausalConvOutput causal_conv_forward_cpu(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                         const Tensor& is_start_BS, bool has_silu) {
  const Profiled profiled("distil_xlstm::causal_conv");
  CausalConvOutput out{at::empty_like(x_BSF), at::empty_like(initial_BJF)};
  const Tensor weight_KF = weight_FK.t().contiguous();
  with_type(x_BSF, [&](auto zero) {
    using T = decltype(zero);
    kernels::ConvArgs<T> args{.B = x_BSF.size(0),
                              .S = x_BSF.size(1),
                              .F = x_BSF.size(2),
                              .K = weight_FK.size(1),
                              .x_BSF = data<T>(x_BSF),
                              .weight_KF = data<T>(weight_KF),
                              .bias_F = data<T>(bias_F),
                              .initial_BJF = data<T>(initial_BJF),
                              .is_start_BS = starts(is_start_BS),
                              .y_BSF = data<T>(out.y_BSF),
                              .state_BJF = data<T>(out.state_BJF),
                              .has_silu = has_silu};
    at::parallel_for(0, args.B * divide_up(args.F, kernels::kConvFeatures), 1,
                     [&](int64_t begin, int64_t end) { cpu_kernels<T>().conv_forward(args, begin, end); });
  });
  return out;
}

CausalConvBackward causal_conv_backward_cpu(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& x_BSF,
                                            const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                            const Tensor& is_start_BS, bool has_silu) {
  const Profiled profiled("distil_xlstm::causal_conv_backward");
  const int64_t B = x_BSF.size(0), F = x_BSF.size(2), K = weight_FK.size(1);
  const Tensor weight_KF = weight_FK.t().contiguous();
  const Tensor grad_x = at::empty_like(x_BSF), grad_initial = at::empty_like(initial_BJF);
  const Tensor grad_weight_BKF = at::empty({B, K, F}, x_BSF.options()), grad_bias_BF = at::empty({B, F}, x_BSF.options());
  with_type(x_BSF, [&](auto zero) {
    using T = decltype(zero);
    const kernels::ConvArgs<T> args{.B = B,
                                    .S = x_BSF.size(1),
                                    .F = F,
                                    .K = K,
                                    .x_BSF = data<T>(x_BSF),
                                    .weight_KF = data<T>(weight_KF),
                                    .bias_F = data<T>(bias_F),
                                    .initial_BJF = data<T>(initial_BJF),
                                    .is_start_BS = starts(is_start_BS),
                                    .grad_y_BSF = data<T>(grad_y_BSF),
                                    .grad_state_BJF = data<T>(grad_state_BJF),
                                    .grad_x_BSF = data<T>(grad_x),
                                    .grad_initial_BJF = data<T>(grad_initial),
                                    .grad_weight_BKF = data<T>(grad_weight_BKF),
                                    .grad_bias_BF = data<T>(grad_bias_BF),
                                    .has_silu = has_silu};
    run_tasks<T>(B * divide_up(F, kernels::kConvFeatures), cpu_kernels<T>().conv_workspace(args),
                 [&](int64_t begin, int64_t end, T* workspace) { cpu_kernels<T>().conv_backward(args, begin, end, workspace); });
  });
  return {grad_x, grad_weight_BKF.sum(0).t(), grad_bias_BF.sum(0), grad_initial};
}

namespace {

// Blocks of rows whose number does not depend on the threads, so that sums are the same on every machine.
constexpr int64_t kNormBlocks = 32;

template <typename T>
kernels::LayerNormArgs<T> norm_arguments(const Tensor& x_NGK, const Tensor& weight_GK) {
  kernels::LayerNormArgs<T> args{.N = x_NGK.size(0),
                                 .G = x_NGK.size(1),
                                 .K = x_NGK.size(2),
                                 .block_rows = divide_up(x_NGK.size(0), kNormBlocks),
                                 .eps = 0.0,
                                 .x_NGK = data<T>(x_NGK),
                                 .weight_GK = data<T>(weight_GK)};
  return args;
}

}  // namespace

LayerNormForward layer_norm_forward_cpu(const Tensor& x_NGK, const Tensor& weight_GK, double eps) {
  const Profiled profiled("distil_xlstm::layer_norm");
  const int64_t N = x_NGK.size(0), G = x_NGK.size(1);
  LayerNormForward out{at::empty_like(x_NGK), at::empty({N, G}, x_NGK.options()), at::empty({N, G}, x_NGK.options())};
  with_type(x_NGK, [&](auto zero) {
    using T = decltype(zero);
    auto args = norm_arguments<T>(x_NGK, weight_GK);
    args.eps = eps;
    args.y_NGK = data<T>(out.y_NGK);
    args.mean_NG = data<T>(out.mean_NG);
    args.rstd_NG = data<T>(out.rstd_NG);
    at::parallel_for(0, divide_up(N, args.block_rows), 1,
                     [&](int64_t begin, int64_t end) { cpu_kernels<T>().layer_norm_forward(args, begin, end); });
  });
  return out;
}

LayerNormBackward layer_norm_backward_cpu(const Tensor& grad_y_NGK, const Tensor& x_NGK, const Tensor& weight_GK, const Tensor& mean_NG,
                                          const Tensor& rstd_NG) {
  const Profiled profiled("distil_xlstm::layer_norm_backward");
  const Tensor grad_x = at::empty_like(x_NGK);
  Tensor grad_weight_PGK;
  with_type(x_NGK, [&](auto zero) {
    using T = decltype(zero);
    auto args = norm_arguments<T>(x_NGK, weight_GK);
    const int64_t blocks = divide_up(args.N, args.block_rows);
    grad_weight_PGK = at::empty({blocks, args.G, args.K}, x_NGK.options());
    args.mean_NG = data<T>(mean_NG);
    args.rstd_NG = data<T>(rstd_NG);
    args.grad_y_NGK = data<T>(grad_y_NGK);
    args.grad_x_NGK = data<T>(grad_x);
    args.grad_weight_PGK = data<T>(grad_weight_PGK);
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) { cpu_kernels<T>().layer_norm_backward(args, begin, end); });
  });
  return {grad_x, grad_weight_PGK.sum(0)};
}

Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps) {
  const Profiled profiled("distil_xlstm::rms_norm");
  const Tensor y = at::empty_like(x);
  const int64_t width = x.size(-1), rows = x.numel() / width;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().rms_norm(width, eps, data<T>(x), data<T>(weight), data<T>(y), begin, end);
    });
  });
  return y;
}

// Blocks of rows, each with a sum for the weight of its own, so that the bits do not depend on the number of threads.
std::pair<Tensor, Tensor> rms_norm_backward_cpu(const Tensor& grad_y, const Tensor& x, const Tensor& weight, double eps) {
  const Profiled profiled("distil_xlstm::rms_norm_backward");
  constexpr int64_t kBlockRows = 256;
  const int64_t width = x.size(-1), rows = x.numel() / width, blocks = divide_up(rows, kBlockRows);
  const Tensor grad_x = at::empty_like(x), sums = at::zeros({blocks, width}, x.options());
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        cpu_kernels<T>().rms_norm_backward(width, eps, data<T>(x), data<T>(weight), data<T>(grad_y), data<T>(grad_x),
                                           data<T>(sums) + block * width, block * kBlockRows, std::min((block + 1) * kBlockRows, rows));
      }
    });
  });
  return {grad_x, sums.sum(0)};
}

Tensor softmax_pair_cpu(const Tensor& logits_RM, double scale, at::ScalarType dtype) {
  const Profiled profiled("distil_xlstm::softmax_pair");
  const int64_t M = logits_RM.size(1);
  const Tensor features_RF = at::empty({logits_RM.size(0), 2 * M}, logits_RM.options());
  with_type(logits_RM, [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, logits_RM.size(0), 64, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().softmax_pair(M, scale, data<T>(logits_RM), data<T>(features_RF), begin, end);
    });
  });
  return features_RF.to(dtype);
}

Tensor softmax_pair_backward_cpu(const Tensor& grad_RF, const Tensor& features_RF, double scale, at::ScalarType dtype) {
  const Profiled profiled("distil_xlstm::softmax_pair_backward");
  const int64_t M = grad_RF.size(1) / 2;
  const Tensor grad_RM = at::empty({grad_RF.size(0), M}, grad_RF.options());
  with_type(grad_RF, [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, grad_RF.size(0), 64, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().softmax_pair_backward(M, scale, data<T>(grad_RF), data<T>(features_RF), data<T>(grad_RM), begin, end);
    });
  });
  return grad_RM.to(dtype);
}

}  // namespace distil_xlstm::ops
