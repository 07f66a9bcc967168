#include "student/blocks.h"

#include "ops/blockdiag.h"
#include "ops/causal_conv.h"
#include "ops/gated.h"
#include "ops/mlstm_gates.h"
#include "ops/norm.h"

namespace distil_xlstm::student {
namespace {

// The weight that multiplies by one, where the configuration has no norm weight.
Tensor norm_weight_or_zeros(const Tensor& weight, const Tensor& like, int64_t size) {
  return weight.defined() ? weight : at::zeros({size}, like.options());
}

// The same kind of block as `w`, in the products' types, where the caller has it.
template <typename Kind>
Kind products_of(const BlockCall& call) {
  return call.products != nullptr ? std::get<Kind>(call.products->kind) : Kind{};
}

// Of the residual stream plus what the mixer adds to it.
Tensor feed_forward(const SlstmWeights& w, const SlstmWeights& products, const Tensor& stream_ND, const Tensor& added_ND,
                    const BlockCall& call) {
  const auto [x_ND, u_ND] = ops::add_norm(stream_ND, added_ND, w.ffn_norm, call.compute_dtype);
  const auto [gate_NP, value_NP] = ops::split_linear(u_ND, {w.ffn_up, products.ffn_up}, w.ffn_up_bias, call.compute_dtype);
  const Tensor hidden_NP = ops::gated_activation(gate_NP, value_NP, call.config->ffn_act_fn);
  return ops::residual_linear(x_ND, hidden_NP, {w.ffn_down, products.ffn_down}, w.ffn_down_bias, call.compute_dtype);
}

Tensor forward_kind(const SlstmWeights& w, const Tensor& x_BSD, const BlockCall& call, BlockState* state) {
  const int64_t B = x_BSD.size(0), S = x_BSD.size(1), D = x_BSD.size(2);
  const int64_t H = call.config->slstm_num_heads, K = D / H;
  const auto products = products_of<SlstmWeights>(call);
  const auto [stream_BSD, u_BSD] = ops::add_norm(x_BSD, {}, w.norm, cell_dtype(call.compute_dtype));
  Tensor c_BSD = u_BSD, x_gates_BSD = u_BSD;
  if (w.conv_weight.defined()) {
    ops::CausalConvOutput conv =
        ops::causal_conv_silu(u_BSD, w.conv_weight, w.conv_bias, state ? state->conv_tail_BJF : Tensor(), call.is_start_BS);
    c_BSD = std::move(conv.y_BSF);
    x_gates_BSD = std::move(conv.x_BSF);
    if (state) state->conv_tail_BJF = std::move(conv.state_BJF);
  }
  const Tensor wx_NHGK = ops::slstm_gate_projection(c_BSD.view({B * S, D}), x_gates_BSD.view({B * S, D}), w.input_gate, w.forget_gate,
                                                    w.cell_gate, w.output_gate, cell_dtype(call.compute_dtype),
                                                    {products.input_gate, products.forget_gate, products.cell_gate, products.output_gate});
  ops::SlstmOutput cell =
      ops::slstm_scan(wx_NHGK.view({B, S, H, 4, K}), w.recurrent, w.bias, state ? state->slstm : ops::SlstmState{}, call.is_start_BS);
  if (state) state->slstm = std::move(cell.state);
  const Tensor y_ND = ops::residual_layer_norm(cell.y_BSHK.reshape({B * S, D}), norm_weight_or_zeros(w.group_norm, x_BSD, D), H);
  const Tensor stream_ND = stream_BSD.view({B * S, D});
  const Tensor out_ND = w.ffn_norm.defined() ? feed_forward(w, products, stream_ND, y_ND, call) : stream_ND + y_ND;
  return out_ND.view({B, S, D});
}

Tensor run_mlstm_cell(const ops::MlstmInputs& inputs, const BlockCall& call, BlockState* state) {
  const ops::MlstmState initial = state ? state->mlstm : ops::MlstmState{};
  if (call.mlstm_form == ops::MlstmForm::parallel) {
    if (state) throw ValueError("student: the parallel form of the mLSTM takes no state: use mlstm_form = chunkwise");
    return ops::mlstm_parallel(inputs);
  }
  ops::MlstmOutput out;
  if (call.mlstm_form == ops::MlstmForm::recurrent) {
    if (inputs.v_BSHV.requires_grad())
      throw ValueError("student: the recurrent form of the mLSTM has no gradient: use mlstm_form = chunkwise");
    out = ops::mlstm_recurrent(inputs, initial);
  } else {
    out = ops::mlstm_chunkwise(inputs, call.config->chunk_size, initial, /*returns_state=*/state != nullptr);
  }
  if (state) state->mlstm = std::move(out.state);
  return std::move(out.h_BSHV);
}

Tensor forward_kind(const MlstmWeights& w, const Tensor& x_BSD, const BlockCall& call, BlockState* state) {
  const int64_t B = x_BSD.size(0), S = x_BSD.size(1), D = x_BSD.size(2), N = B * S;
  const int64_t I = call.config->mlstm_inner_dim(), H = call.config->mlstm_num_heads, K = I / H;
  const auto products = products_of<MlstmWeights>(call);
  const auto [stream_ND, u_ND] = ops::add_norm(x_BSD.view({N, D}), {}, w.norm, call.compute_dtype);
  const auto [inner_NI, z_NI] = ops::split_linear(u_ND, {w.up, products.up}, w.up_bias, call.compute_dtype);
  ops::CausalConvOutput conv = ops::causal_conv_silu(inner_NI.view({B, S, I}), w.conv_weight, w.conv_bias,
                                                     state ? state->conv_tail_BJF : Tensor(), call.is_start_BS);
  if (state) state->conv_tail_BJF = std::move(conv.state_BJF);
  const auto [qkv_NI, c_NI] = ops::qkv_projection(conv.y_BSF.view({N, I}), conv.x_BSF.view({N, I}), {w.q, w.q_bias}, {w.k, w.k_bias},
                                                  {w.v, w.v_bias}, cell_dtype(call.compute_dtype));
  const ops::MlstmGates gates =
      ops::mlstm_gate_projection(qkv_NI, {w.input_gate, w.input_gate_bias, w.forget_gate, w.forget_gate_bias}, {B, S, H, K});
  const Tensor h_BSHK = run_mlstm_cell({.q_BSHK = gates.qkv[0],
                                        .k_BSHK = gates.qkv[1],
                                        .v_BSHV = gates.qkv[2],
                                        .igate_BSH = gates.input_NH.view({B, S, H}),
                                        .fgate_BSH = gates.forget_NH.view({B, S, H}),
                                        .is_start_BS = call.is_start_BS},
                                       call, state);
  const Tensor h_NI = ops::residual_layer_norm(h_BSHK.reshape({N, I}), w.out_norm, H);
  const Tensor gated_NI = ops::skip_gate(h_NI, w.skip, c_NI, z_NI);
  return ops::residual_linear(stream_ND, gated_NI, {w.down, products.down}, w.down_bias, call.compute_dtype).view({B, S, D});
}

}  // namespace

at::ScalarType cell_dtype(at::ScalarType compute_dtype) {
  return compute_dtype == at::kHalf ? at::kBFloat16 : compute_dtype;
}

BlockWeights BlockWeights::transformed(const std::function<Tensor(const Tensor&)>& change) const {
  BlockWeights copy = *this;
  copy.for_each([&](const char*, Tensor& tensor) {
    if (tensor.defined()) tensor = change(tensor);
  });
  return copy;
}

std::vector<Tensor> BlockWeights::tensors() const {
  std::vector<Tensor> out;
  BlockWeights handles = *this;
  handles.for_each([&](const char*, Tensor& tensor) {
    if (tensor.defined()) out.push_back(tensor);
  });
  return out;
}

Tensor forward_block(const BlockWeights& weights, const Tensor& x_BSD, const BlockCall& call, BlockState* state) {
  return std::visit([&](const auto& kind) { return forward_kind(kind, x_BSD, call, state); }, weights.kind);
}

BlockState zero_block_state(const StudentConfig& config, int64_t block, int64_t batch, at::ScalarType compute_dtype,
                            at::TensorOptions options) {
  BlockState state;
  const int64_t D = config.embedding_dim;
  if (config.is_slstm(block)) {
    const int64_t H = config.slstm_num_heads, K = D / H;
    const int64_t kernel_size = config.slstm_conv1d_kernel_size;
    if (kernel_size > 0) state.conv_tail_BJF = at::zeros({batch, kernel_size - 1, D}, options.dtype(cell_dtype(compute_dtype)));
    for (Tensor* tensor : {&state.slstm.hidden_BHK, &state.slstm.cell_BHK, &state.slstm.normalizer_BHK, &state.slstm.stabilizer_BHK})
      *tensor = at::zeros({batch, H, K}, options);
  } else {
    const int64_t I = config.mlstm_inner_dim(), H = config.mlstm_num_heads, K = I / H;
    state.conv_tail_BJF = at::zeros({batch, config.mlstm_conv1d_kernel_size - 1, I}, options.dtype(compute_dtype));
    state.mlstm = {at::zeros({batch, H, K, K}, options), at::zeros({batch, H, K}, options), at::zeros({batch, H}, options)};
  }
  return state;
}

}  // namespace distil_xlstm::student
