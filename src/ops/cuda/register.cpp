// Glue between CUDA tensors and the kernels of kernels/cuda. Uses nothing of the program that opens this library but headers.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <string_view>

#include "base/error.h"
#include "kernels/cuda/blockdiag.h"
#include "kernels/cuda/causal_conv.h"
#include "kernels/cuda/fp8_rows.h"
#include "kernels/cuda/gate_parts.h"
#include "kernels/cuda/gated.h"
#include "kernels/cuda/head_loss.h"
#include "kernels/cuda/layer_norm.h"
#include "kernels/cuda/mlstm_chunkwise.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rotary.h"
#include "kernels/cuda/slstm_scan.h"
#include "kernels/cuda/state_sum.h"
#include "kernels/cuda/swiglu_product.h"
#include "ops/cuda/slstm_steps.h"
#include "ops/cuda_backend.h"

namespace distil_xlstm::ops {
namespace {

namespace gpu = kernels::cuda;

gpu::Type type_of(at::ScalarType type) {
  switch (type) {
    case at::kBFloat16:
      return gpu::Type::bfloat16;
    case at::kHalf:
      return gpu::Type::float16;
    case at::kFloat:
      return gpu::Type::float32;
    default:
      throw ValueError("CUDA kernels: {} is none of float32, bfloat16 and float16", at::toString(type));
  }
}
gpu::Type type_of(const Tensor& x) {
  return type_of(x.scalar_type());
}

void check(cudaError_t error, const char* what, const Tensor& x) {
  if (error == cudaSuccess) return;
  throw DeviceError("{} [{}]: {}", what, fmt::join(x.sizes(), ", "), cudaGetErrorString(error));
}

float* floats(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<float>() : nullptr;
}
void* pointer(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr() : nullptr;
}
const uint8_t* starts(const Tensor& is_start_BS) {
  return is_start_BS.defined() ? is_start_BS.const_data_ptr<uint8_t>() : nullptr;
}

// Kernels that load several values at once need a tensor that starts at a multiple of 16 bytes; views of others may not.
Tensor aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 ? x : x.clone();
}

SlstmForward slstm_forward(const Tensor& wx_BSHGK, const Tensor& r_HKGK, const Tensor& bias_HGK, const SlstmState& initial,
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
  const gpu::SlstmForward args{type_of(wx_BSHGK),
                               int(B),
                               int(S),
                               int(H),
                               int(K),
                               pointer(wx),
                               pointer(r),
                               floats(bias_HGK),
                               starts(is_start_BS),
                               floats(initial.hidden_BHK),
                               floats(out.state.hidden_BHK),
                               floats(out.state.cell_BHK),
                               floats(out.state.normalizer_BHK),
                               floats(out.state.stabilizer_BHK),
                               pointer(out.y_BSHK),
                               pointer(out.saved_BSHXK)};
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
  check(gpu::slstm_hidden_before({type_of(y_BSHK), int(B), int(S), int(H), int(K), pointer(y_BSHK), floats(initial_hidden_BHK),
                                  starts(is_start_BS), pointer(before_BSHK)},
                                 c10::cuda::getCurrentCUDAStream()),
        "slstm_scan backward, y_BSHK", y_BSHK);
  const Tensor before_HKN = before_BSHK.view({B * S, H, K}).permute({1, 2, 0});
  const Tensor grad_HNJ = grad_wx_BSHGK.view({B * S, H, 4 * K}).transpose(0, 1);
  return at::bmm(before_HKN, grad_HNJ, at::kFloat).view({H, K, 4, K});
}

SlstmBackward slstm_backward(const Tensor& grad_y_BSHK, const SlstmState& grad_state, const Tensor& y_BSHK, const Tensor& saved_BSHXK,
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
  const gpu::SlstmBackward args{type,
                                int(B),
                                int(S),
                                int(H),
                                int(K),
                                pointer(grad_y),
                                pointer(y_BSHK),
                                pointer(saved_BSHXK),
                                pointer(r),
                                pointer(transposed),
                                floats(initial.cell_BHK),
                                floats(initial.normalizer_BHK),
                                starts(is_start_BS),
                                floats(out.grad_initial.hidden_BHK),
                                floats(out.grad_initial.cell_BHK),
                                floats(out.grad_initial.normalizer_BHK),
                                pointer(out.grad_wx_BSHGK),
                                floats(grad_bias_PHGK)};
  const cudaError_t error = takes_steps ? slstm_backward_by_steps(args, r.contiguous(), out.grad_initial.hidden_BHK, is_start_BS)
                                        : gpu::slstm_backward(args, c10::cuda::getCurrentCUDAStream());
  check(error, "slstm_scan backward, y_BSHK", y_BSHK);
  if (uses_tensor_cores) out.grad_bias_HGK = grad_bias_PHGK.sum(0);
  if (type != gpu::Type::float32) out.grad_r_HKGK = recurrent_gradient(y_BSHK, out.grad_wx_BSHGK, initial.hidden_BHK, is_start_BS);
  return out;
}

gpu::CausalConv conv_arguments(const Tensor& x, const Tensor& weight_FK, const Tensor& bias, const Tensor& initial,
                               const Tensor& is_start) {
  return {type_of(x),
          int(x.size(0)),
          int(x.size(1)),
          int(x.size(2)),
          int(weight_FK.size(1)),
          pointer(x),
          floats(weight_FK),
          floats(bias),
          pointer(initial),
          starts(is_start),
          nullptr,
          nullptr};
}

CausalConvOutput causal_conv_forward(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                     const Tensor& is_start_BS) {
  const c10::cuda::CUDAGuard guard(x_BSF.device());
  CausalConvOutput out{at::empty_like(x_BSF), at::empty({x_BSF.size(0), weight_FK.size(1) - 1, x_BSF.size(2)}, x_BSF.options())};
  gpu::CausalConv args = conv_arguments(x_BSF, weight_FK, bias_F, initial_BJF, is_start_BS);
  args.y_BSF = pointer(out.y_BSF);
  args.state_BJF = pointer(out.state_BJF);
  check(gpu::causal_conv_forward(args, c10::cuda::getCurrentCUDAStream()), "causal_conv_silu forward, x_BSF", x_BSF);
  return out;
}

CausalConvBackward causal_conv_backward(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& grad_residual_BSF,
                                        const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                        const Tensor& is_start_BS) {
  const c10::cuda::CUDAGuard guard(x_BSF.device());
  const int64_t B = x_BSF.size(0), S = x_BSF.size(1), F = x_BSF.size(2), K = weight_FK.size(1);
  const int64_t partial_sums = B * ((S + gpu::kConvChunk - 1) / gpu::kConvChunk);
  const auto wide = x_BSF.options().dtype(at::kFloat);
  const auto ready = [](const Tensor& x) { return x.defined() ? aligned(x) : x; };
  const Tensor grad_y = aligned(grad_y_BSF), grad_state = ready(grad_state_BJF), grad_residual = ready(grad_residual_BSF);
  const Tensor grad_x = at::empty_like(x_BSF), grad_initial = initial_BJF.defined() ? at::empty_like(initial_BJF) : Tensor();
  const gpu::CausalConv forward = conv_arguments(x_BSF, weight_FK, bias_F, initial_BJF, is_start_BS);
  const Tensor grad_pre = gpu::causal_conv_holds_window(forward) ? Tensor() : at::empty({B, S, F}, wide);
  const Tensor grad_weight_PKF = at::empty({partial_sums, K, F}, wide), grad_bias_PF = at::empty({partial_sums, F}, wide);
  const gpu::CausalConvBackward args{
      forward,         pointer(grad_y),       pointer(grad_state),     pointer(grad_residual), floats(grad_pre),
      pointer(grad_x), pointer(grad_initial), floats(grad_weight_PKF), floats(grad_bias_PF)};
  check(gpu::causal_conv_backward(args, c10::cuda::getCurrentCUDAStream()), "causal_conv_silu backward, x_BSF", x_BSF);
  return {grad_x, grad_weight_PKF.sum(0).t(), grad_bias_PF.sum(0), grad_initial};
}

void split_gates_cuda(const Tensor& input_NR, const Tensor& forget_NR, const Tensor& parts_NPGR) {
  const c10::cuda::CUDAGuard guard(input_NR.device());
  const Tensor input = input_NR.contiguous(), forget = forget_NR.contiguous();
  const gpu::GateSplit args{input.size(0), input.size(1), floats(input), floats(forget), pointer(parts_NPGR)};
  check(gpu::split_gates(args, c10::cuda::getCurrentCUDAStream()), "mlstm_gate_projection, input_NR", input_NR);
}

std::pair<Tensor, Tensor> sum_gate_parts_cuda(const Tensor& sums_NPGH, const Tensor& input_bias_H, const Tensor& forget_bias_H) {
  const c10::cuda::CUDAGuard guard(sums_NPGH.device());
  const int64_t N = sums_NPGH.size(0), H = input_bias_H.size(0);
  const Tensor input_bias = input_bias_H.contiguous(), forget_bias = forget_bias_H.contiguous();
  std::pair out{at::empty({N, H}, sums_NPGH.options()), at::empty({N, H}, sums_NPGH.options())};
  const gpu::GateSums args{N, int(H), floats(sums_NPGH), floats(input_bias), floats(forget_bias), floats(out.first), floats(out.second)};
  check(gpu::sum_gate_parts(args, c10::cuda::getCurrentCUDAStream()), "mlstm_gate_projection, sums_NPGH", sums_NPGH);
  return out;
}

gpu::MlstmInputs mlstm_arguments(const MlstmInputs& in, const MlstmState& initial) {
  const Tensor& q = in.q_BSHK;
  return {type_of(q),
          gpu::MlstmNormalizer::bounded,
          int(q.size(0)),
          int(q.size(1)),
          int(q.size(2)),
          int(q.size(3)),
          int(in.v_BSHV.size(3)),
          pointer(q),
          pointer(in.k_BSHK),
          pointer(in.v_BSHV),
          floats(in.igate_BSH),
          floats(in.fgate_BSH),
          starts(in.is_start_BS),
          floats(initial.cell_BHKV),
          floats(initial.normalizer_BHK),
          floats(initial.stabilizer_BH),
          0};
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
  gpu::MlstmForward args{mlstm_arguments(in, initial),    pointer(out.h_BSHV),
                         floats(out.state.cell_BHKV),     floats(out.state.normalizer_BHK),
                         floats(out.state.stabilizer_BH), nullptr};
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
  gpu::MlstmBackward args{mlstm_arguments(in, initial),
                          pointer(h_BSHV),
                          pointer(grad_h_BSHV),
                          floats(grad_state.cell_BHKV),
                          floats(grad_state.normalizer_BHK),
                          pointer(out.grad_inputs.q_BSHK),
                          pointer(out.grad_inputs.k_BSHK),
                          pointer(out.grad_inputs.v_BSHV),
                          floats(out.grad_inputs.igate_BSH),
                          floats(out.grad_inputs.fgate_BSH),
                          floats(out.grad_initial.cell_BHKV),
                          floats(out.grad_initial.normalizer_BHK),
                          floats(out.grad_initial.stabilizer_BH),
                          nullptr};
  const Tensor memory = workspace(gpu::mlstm_backward_workspace(args), in.q_BSHK);
  args.workspace = pointer(memory);
  check(gpu::mlstm_backward(args, c10::cuda::getCurrentCUDAStream()), "mlstm_chunkwise backward, q_BSHK", in.q_BSHK);
  return out;
}

gpu::LayerNorm norm_arguments(const Tensor& x_NGK, const Tensor& weight_GK, at::ScalarType y_type) {
  gpu::LayerNorm args{};
  args.type = type_of(x_NGK);
  args.y_type = type_of(y_type);
  args.N = x_NGK.size(0);
  args.G = int(x_NGK.size(1));
  args.K = int(x_NGK.size(2));
  args.x_NGK = pointer(x_NGK);
  args.weight_GK = floats(weight_GK);
  return args;
}

LayerNormForward layer_norm_forward(const Tensor& x_NGK, const Tensor& added_NGK, const Tensor& weight_GK, double eps,
                                    at::ScalarType y_type) {
  const c10::cuda::CUDAGuard guard(x_NGK.device());
  const auto wide = x_NGK.options().dtype(at::kFloat);
  LayerNormForward out{at::empty(x_NGK.sizes(), x_NGK.options().dtype(y_type)), at::empty({x_NGK.size(0), x_NGK.size(1)}, wide),
                       at::empty({x_NGK.size(0), x_NGK.size(1)}, wide), added_NGK.defined() ? at::empty_like(x_NGK) : Tensor()};
  gpu::LayerNorm args = norm_arguments(x_NGK, weight_GK, y_type);
  args.added_NGK = pointer(added_NGK);
  args.sum_NGK = pointer(out.sum_NGK);
  args.eps = float(eps);
  args.y_NGK = pointer(out.y_NGK);
  args.mean_NG = floats(out.mean_NG);
  args.rstd_NG = floats(out.rstd_NG);
  check(gpu::layer_norm_forward(args, c10::cuda::getCurrentCUDAStream()), "residual_layer_norm forward, x_NGK", x_NGK);
  return out;
}

LayerNormBackward layer_norm_backward(const Tensor& grad_y_NGK, const Tensor& grad_residual_NGK, const Tensor& x_NGK,
                                      const Tensor& weight_GK, const Tensor& mean_NG, const Tensor& rstd_NG) {
  const c10::cuda::CUDAGuard guard(x_NGK.device());
  const int64_t N = x_NGK.size(0), rows = gpu::norm_block_rows(N), partial_sums = (N + rows - 1) / rows;
  const Tensor grad_x = at::empty_like(x_NGK),
               grad_weight = at::empty({partial_sums, x_NGK.size(1), x_NGK.size(2)}, x_NGK.options().dtype(at::kFloat));
  gpu::LayerNorm args = norm_arguments(x_NGK, weight_GK, grad_y_NGK.scalar_type());
  args.mean_NG = floats(mean_NG);
  args.rstd_NG = floats(rstd_NG);
  args.grad_y_NGK = pointer(grad_y_NGK);
  args.grad_residual_NGK = pointer(grad_residual_NGK);
  args.grad_x_NGK = pointer(grad_x);
  args.grad_weight_PGK = floats(grad_weight);
  check(gpu::layer_norm_backward(args, c10::cuda::getCurrentCUDAStream()), "residual_layer_norm backward, x_NGK", x_NGK);
  return {grad_x, grad_weight.sum(0)};
}

std::pair<Tensor, Tensor> rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps, bool copies) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor in = aligned(x), factor = aligned(weight), y = at::empty_like(in), copy = copies ? at::empty_like(in) : Tensor();
  const int64_t D = in.size(-1);
  const gpu::RmsNorm args{type_of(in), in.numel() / D, int(D), float(eps), pointer(in), pointer(factor), pointer(y), pointer(copy)};
  check(gpu::rms_norm_forward(args, c10::cuda::getCurrentCUDAStream()), "rms_norm, x", x);
  return {y, copy};
}

void add_states_cuda(Tensor& sum, const std::vector<Tensor>& states) {
  const Tensor& first = states.front();
  const c10::cuda::CUDAGuard guard(first.device());
  gpu::StateSum args{.type = type_of(first), .count = first.numel(), .num_states = int(states.size()), .accumulates = sum.defined()};
  if (!sum.defined()) sum = at::empty(first.sizes(), first.options().dtype(at::kFloat));
  for (size_t i = 0; i < states.size(); ++i) args.states[i] = pointer(states[i]);
  args.sum = floats(sum);
  check(gpu::state_sum(args, c10::cuda::getCurrentCUDAStream()), "add_states, states", first);
}

Tensor swiglu_cuda(const Tensor& gate_up) {
  const c10::cuda::CUDAGuard guard(gate_up.device());
  const int64_t P = gate_up.size(-1) / 2;
  std::vector<int64_t> sizes = gate_up.sizes().vec();
  sizes.back() = P;
  const Tensor in = aligned(gate_up), out = at::empty(sizes, in.options());
  gpu::GatedActivation args{};
  args.type = type_of(in);
  args.act = gpu::Activation::swish;
  args.N = out.numel() / P;
  args.P = int(P);
  args.stride = 2 * P;
  args.gate_NP = pointer(in);
  args.value_NP = static_cast<const char*>(pointer(in)) + P * in.element_size();
  args.out_NP = pointer(out);
  check(gpu::gated_activation_forward(args, c10::cuda::getCurrentCUDAStream()), "swiglu, gate_up", gate_up);
  return out;
}

Tensor swiglu_product_cuda(const Tensor& x, const Tensor& weight_2IK) {
  if (x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kHalf) return {};
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t K = x.size(-1), I = weight_2IK.size(0) / 2;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = I;
  const Tensor out = at::empty(sizes, x.options());
  const gpu::SwigluProduct args{type_of(x), x.numel() / K, int(I), int(K), pointer(x), pointer(weight_2IK), pointer(out)};
  const cudaError_t error = gpu::swiglu_product(args, c10::cuda::getCurrentCUDAStream());
  if (error == cudaErrorNotSupported) return {};
  check(error, "swiglu_product, x", x);
  return out;
}

gpu::Fp8Source source_of(Fp8Source source) {
  switch (source) {
    case Fp8Source::swiglu:
      return gpu::Fp8Source::swiglu;
    case Fp8Source::rms_norm:
      return gpu::Fp8Source::rms_norm;
    default:
      return gpu::Fp8Source::values;
  }
}

Fp8Rows fp8_rows_cuda(Fp8Source source, const Tensor& x, const Tensor& weight, double eps) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t K = x.size(-1) / (source == Fp8Source::swiglu ? 2 : 1), N = x.numel() / x.size(-1);
  const Tensor in = aligned(x), factor = weight.defined() ? aligned(weight) : weight;
  Fp8Rows out{at::empty({N, K}, x.options().dtype(at::kFloat8_e4m3fn)), at::empty({N, 1}, x.options().dtype(at::kFloat))};
  const gpu::Fp8Rows args{
      type_of(in), source_of(source), N, int(K), pointer(in), pointer(factor), float(eps), pointer(out.values_NK), floats(out.scale_N1)};
  check(gpu::fp8_rows(args, c10::cuda::getCurrentCUDAStream()), "fp8_rows, x", x);
  return out;
}

void rotate_cuda(const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position) {
  const c10::cuda::CUDAGuard guard(x_BSHK.device());
  const gpu::Rotary args{type_of(x_BSHK),  x_BSHK.size(0),   x_BSHK.size(1),  int(x_BSHK.size(2)), int(x_BSHK.size(3)), x_BSHK.stride(0),
                         x_BSHK.stride(1), x_BSHK.stride(2), pointer(x_BSHK), floats(cos_TI),      floats(sin_TI),      first_position};
  check(gpu::rotate_heads(args, c10::cuda::getCurrentCUDAStream()), "rotary positions, x_BSHK", x_BSHK);
}

// Copies where the kernels' accesses need them: the arguments point into these.
struct QkvTensors {
  Tensor c_NF, x_NF;
  QkvMaps maps;
};
QkvTensors qkv_tensors(const Tensor& c_NF, const Tensor& x_NF, const QkvMaps& maps) {
  QkvTensors out{aligned(c_NF), aligned(x_NF), maps};
  for (Tensor& weight : out.maps.weight_GOI) weight = aligned(weight);
  return out;
}

gpu::Blockdiag4 qkv_arguments(const QkvTensors& tensors, at::ScalarType out_dtype) {
  gpu::Blockdiag4 args{};
  args.type = type_of(tensors.c_NF);
  args.out_type = type_of(out_dtype);
  args.N = tensors.c_NF.size(0);
  args.G = int(tensors.maps.weight_GOI[0].size(0));
  args.c_NF = pointer(tensors.c_NF);
  args.x_NF = pointer(tensors.x_NF);
  for (size_t i = 0; i < 3; ++i) {
    args.weight_GOI[i] = floats(tensors.maps.weight_GOI[i]);
    args.bias_F[i] = floats(tensors.maps.bias_F[i]);
  }
  return args;
}

std::array<Tensor, 3> qkv_forward_cuda(const Tensor& c_NF, const Tensor& x_NF, const QkvMaps& maps, at::ScalarType out_dtype) {
  const c10::cuda::CUDAGuard guard(c_NF.device());
  const QkvTensors tensors = qkv_tensors(c_NF, x_NF, maps);
  gpu::Blockdiag4 args = qkv_arguments(tensors, out_dtype);
  std::array<Tensor, 3> out;
  for (size_t i = 0; i < 3; ++i) {
    out[i] = at::empty(c_NF.sizes(), c_NF.options().dtype(out_dtype));
    args.out_NF[i] = pointer(out[i]);
  }
  check(gpu::blockdiag4_forward(args, c10::cuda::getCurrentCUDAStream()), "qkv_projection forward, c_NF", c_NF);
  return out;
}

QkvBackward qkv_backward_cuda(const std::array<Tensor, 3>& grad_NF, const Tensor& grad_residual_NF, const Tensor& c_NF, const Tensor& x_NF,
                              const QkvMaps& maps) {
  const c10::cuda::CUDAGuard guard(c_NF.device());
  const int64_t partial_sums = (c_NF.size(0) + gpu::kBlockdiagRows - 1) / gpu::kBlockdiagRows, G = maps.weight_GOI[0].size(0);
  const auto wide = c_NF.options().dtype(at::kFloat);
  const bool has_bias = maps.bias_F[0].defined();
  const QkvTensors tensors = qkv_tensors(c_NF, x_NF, maps);
  gpu::Blockdiag4 args = qkv_arguments(tensors, grad_NF[0].scalar_type());
  std::array<Tensor, 3> grads;
  for (size_t i = 0; i < 3; ++i) {
    grads[i] = aligned(grad_NF[i].contiguous());
    args.grad_out_NF[i] = pointer(grads[i]);
  }
  const Tensor grad_weight_R3GOI = at::empty({partial_sums, 3, G, 4, 4}, wide);
  const Tensor grad_bias_R3F = has_bias ? at::empty({partial_sums, 3, 4 * G}, wide) : Tensor();
  QkvBackward out{at::empty(c_NF.sizes(), c_NF.options()), at::empty(x_NF.sizes(), x_NF.options()), {}};
  const Tensor residual = grad_residual_NF.defined() ? aligned(grad_residual_NF) : Tensor();
  args.grad_residual_NF = pointer(residual);
  args.grad_c_NF = pointer(out.c_NF);
  args.grad_x_NF = pointer(out.x_NF);
  args.grad_weight_R3GOI = floats(grad_weight_R3GOI);
  args.grad_bias_R3F = floats(grad_bias_R3F);
  check(gpu::blockdiag4_backward(args, c10::cuda::getCurrentCUDAStream()), "qkv_projection backward, c_NF", c_NF);
  const Tensor grad_weight_3GOI = grad_weight_R3GOI.sum(0), grad_bias_3F = has_bias ? grad_bias_R3F.sum(0) : Tensor();
  for (size_t i = 0; i < 3; ++i) {
    out.maps.weight_GOI[i] = grad_weight_3GOI[int64_t(i)];
    if (has_bias) out.maps.bias_F[i] = grad_bias_3F[int64_t(i)];
  }
  return out;
}

static_assert(int(gpu::Activation::gelu) == int(Activation::gelu) && int(gpu::Activation::relu) == int(Activation::relu) &&
              int(gpu::Activation::relu_squared) == int(Activation::relu_squared) &&
              int(gpu::Activation::sigmoid) == int(Activation::sigmoid) && int(gpu::Activation::swish) == int(Activation::swish) &&
              int(gpu::Activation::selu) == int(Activation::selu));

gpu::GatedActivation activation_arguments(const Tensor& gate_NP, const Tensor& value_NP, Activation act) {
  gpu::GatedActivation args{};
  args.type = type_of(gate_NP);
  args.act = static_cast<gpu::Activation>(act);
  args.N = gate_NP.numel() / gate_NP.size(-1);
  args.P = int(gate_NP.size(-1));
  args.stride = args.grad_stride = args.P;
  args.gate_NP = pointer(gate_NP);
  args.value_NP = pointer(value_NP);
  return args;
}

Tensor gated_activation_cuda(const Tensor& gate_NP, const Tensor& value_NP, Activation act) {
  const c10::cuda::CUDAGuard guard(gate_NP.device());
  const Tensor out_NP = at::empty_like(gate_NP);
  gpu::GatedActivation args = activation_arguments(gate_NP, value_NP, act);
  args.out_NP = pointer(out_NP);
  check(gpu::gated_activation_forward(args, c10::cuda::getCurrentCUDAStream()), "gated_activation forward, gate_NP", gate_NP);
  return out_NP;
}

std::pair<Tensor, Tensor> gated_activation_backward_cuda(const Tensor& grad_NP, const Tensor& gate_NP, const Tensor& value_NP,
                                                         Activation act) {
  const c10::cuda::CUDAGuard guard(gate_NP.device());
  const Tensor grad_gate_NP = at::empty_like(gate_NP), grad_value_NP = at::empty_like(value_NP);
  gpu::GatedActivation args = activation_arguments(gate_NP, value_NP, act);
  args.grad_out_NP = pointer(grad_NP);
  args.grad_gate_NP = pointer(grad_gate_NP);
  args.grad_value_NP = pointer(grad_value_NP);
  check(gpu::gated_activation_backward(args, c10::cuda::getCurrentCUDAStream()), "gated_activation backward, gate_NP", gate_NP);
  return {grad_gate_NP, grad_value_NP};
}

gpu::SkipGate skip_arguments(const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF, const Tensor& z_NF) {
  gpu::SkipGate args{};
  args.type = type_of(z_NF);
  args.h_type = type_of(h_NF);
  args.N = z_NF.size(0);
  args.F = int(z_NF.size(1));
  args.h_NF = pointer(h_NF);
  args.skip_F = floats(skip_F);
  args.c_NF = pointer(c_NF);
  args.z_NF = pointer(z_NF);
  return args;
}

Tensor skip_gate_cuda(const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF, const Tensor& z_NF) {
  const c10::cuda::CUDAGuard guard(z_NF.device());
  const Tensor out_NF = at::empty_like(z_NF);
  gpu::SkipGate args = skip_arguments(h_NF, skip_F, c_NF, z_NF);
  args.out_NF = pointer(out_NF);
  check(gpu::skip_gate_forward(args, c10::cuda::getCurrentCUDAStream()), "skip_gate forward, z_NF", z_NF);
  return out_NF;
}

SkipGateGradients skip_gate_backward_cuda(const Tensor& grad_NF, const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF,
                                          const Tensor& z_NF) {
  const c10::cuda::CUDAGuard guard(z_NF.device());
  const int64_t partial_sums = (z_NF.size(0) + gpu::kSkipGateRows - 1) / gpu::kSkipGateRows;
  const Tensor grad_h = at::empty_like(h_NF), grad_c = at::empty_like(c_NF), grad_z = at::empty_like(z_NF),
               grad_skip_RF = at::empty({partial_sums, z_NF.size(1)}, skip_F.options());
  gpu::SkipGate args = skip_arguments(h_NF, skip_F, c_NF, z_NF);
  args.grad_out_NF = pointer(grad_NF);
  args.grad_h_NF = pointer(grad_h);
  args.grad_c_NF = pointer(grad_c);
  args.grad_z_NF = pointer(grad_z);
  args.grad_skip_RF = floats(grad_skip_RF);
  check(gpu::skip_gate_backward(args, c10::cuda::getCurrentCUDAStream()), "skip_gate backward, z_NF", z_NF);
  return {grad_h, grad_skip_RF.sum(0), grad_c, grad_z};
}

static_assert(gpu::kNumHeadSums == kNumHeadSums);

void head_loss_tile(const HeadLossTile& tile) {
  const Tensor& student = tile.student_PV;
  const c10::cuda::CUDAGuard guard(student.device());
  const Tensor values_P7 = at::empty({student.size(0), kNumHeadSums}, tile.sums.options());
  if (tile.teacher_PV.defined() && tile.teacher_PV.stride(0) != student.stride(0)) {
    throw ShapeError("head_losses: rows of the teacher's logits {} elements apart, of the student's {}: they must be equal",
                     tile.teacher_PV.stride(0), student.stride(0));
  }
  gpu::HeadLoss x{};
  x.logits_type = x.gradient_type = type_of(student);
  x.P = student.size(0);
  x.V = student.size(1);
  x.stride = x.gradient_stride = student.stride(0);
  x.student_PV = pointer(student);
  x.teacher_PV = pointer(tile.teacher_PV);
  x.gradient_PV = tile.options.with_gradient ? pointer(student) : nullptr;
  x.targets_P = tile.targets_P.const_data_ptr<int64_t>();
  x.valid_P = tile.valid_P.defined() ? reinterpret_cast<const uint8_t*>(tile.valid_P.const_data_ptr<bool>()) : nullptr;
  x.objective = tile.objective;
  x.gradient_scale = tile.gradient_scale;
  x.values_P7 = values_P7.mutable_data_ptr<double>();
  x.sums_7 = tile.sums.mutable_data_ptr<double>();
  check(gpu::head_loss_tile(x, c10::cuda::getCurrentCUDAStream()), "head_losses, student_PV", student);
}

}  // namespace
}  // namespace distil_xlstm::ops

// The program finds both by name (kCudaTargetsSymbol, kCudaRegisterSymbol).
extern "C" __attribute__((visibility("default"))) const char distil_xlstm_cuda_targets[] = DX_CUDA_TARGETS;

extern "C" __attribute__((visibility("default"))) bool distil_xlstm_register_kernels(distil_xlstm::ops::CudaBackend* table,
                                                                                     const char* interface) {
  using namespace distil_xlstm::ops;
  if (std::string_view(interface) != DX_CUDA_INTERFACE) return false;
  namespace gpu = distil_xlstm::kernels::cuda;
  *table = {.slstm_forward = slstm_forward,
            .slstm_backward = slstm_backward,
            .causal_conv_forward = causal_conv_forward,
            .causal_conv_backward = causal_conv_backward,
            .layer_norm_forward = layer_norm_forward,
            .layer_norm_backward = layer_norm_backward,
            .rms_norm = rms_norm_cuda,
            .add_states = add_states_cuda,
            .swiglu = swiglu_cuda,
            .swiglu_product = swiglu_product_cuda,
            .fp8_rows = fp8_rows_cuda,
            .rotate = rotate_cuda,
            .qkv_forward = qkv_forward_cuda,
            .qkv_backward = qkv_backward_cuda,
            .gated_activation = gated_activation_cuda,
            .gated_activation_backward = gated_activation_backward_cuda,
            .skip_gate = skip_gate_cuda,
            .skip_gate_backward = skip_gate_backward_cuda,
            .head_loss_tile = head_loss_tile,
            .split_gates = split_gates_cuda,
            .sum_gate_parts = sum_gate_parts_cuda,
            .mlstm_chunkwise = mlstm_chunkwise_cuda,
            .mlstm_backward = mlstm_backward_cuda,
            .max_head_width = gpu::kSlstmMaxHeadWidth,
            .max_taps = gpu::kConvMaxTaps,
            .max_rms_norm_vectors = gpu::kRmsNormMaxVectors,
            .max_fp8_vectors = gpu::kFp8MaxVectors,
            .max_summed_states = gpu::kStateSumMax};
  return true;
}
