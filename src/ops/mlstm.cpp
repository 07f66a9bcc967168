#include "ops/mlstm.h"

#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

#include "ops/cuda_backend.h"
#include "ops/internal.h"
#include "ops/mlstm_forms.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Tensor cores take 2-byte operands; float32 keeps its digits in the tensor operations.
bool uses_kernels(const MlstmInputs& in) {
  const at::ScalarType type = in.q_BSHK.scalar_type();
  return has_cuda_kernels(in.q_BSHK) && (type == at::kBFloat16 || type == at::kHalf) && in.k_BSHK.scalar_type() == type &&
         in.v_BSHV.scalar_type() == type;
}

// Contiguous, q, k, v as `type`, the rest in the type to compute in; a missing state becomes zeros, as the package starts (C = n = m = 0).
MlstmInputs prepared(const MlstmInputs& in, at::ScalarType type) {
  const auto ready = [&](const Tensor& x, at::ScalarType as) { return x.to(as).contiguous(); };
  const at::ScalarType gates = compute_type(in.q_BSHK);
  const Tensor is_start = in.is_start_BS.defined() ? in.is_start_BS.to(in.q_BSHK.device(), at::kByte).contiguous() : Tensor();
  return {ready(in.q_BSHK, type),     ready(in.k_BSHK, type),     ready(in.v_BSHV, type),
          ready(in.igate_BSH, gates), ready(in.fgate_BSH, gates), is_start};
}

at::ScalarType chunkwise_type(const MlstmInputs& in) {
  return uses_kernels(in) ? in.q_BSHK.scalar_type() : compute_type(in.q_BSHK);
}

bool is_given(const MlstmState& state) {
  return state.cell_BHKV.defined() || state.normalizer_BHK.defined() || state.stabilizer_BH.defined();
}

// Undefined where none is given and the kernels, which take that as zeros, read it: C has K V values a head.
MlstmState prepared(const MlstmState& state, const MlstmInputs& in) {
  if (!is_given(state) && uses_kernels(in)) return {};
  const int64_t B = in.q_BSHK.size(0), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  const auto options = in.q_BSHK.options().dtype(compute_type(in.q_BSHK));
  return {or_zeros(state.cell_BHKV, {B, H, K, V}, options), or_zeros(state.normalizer_BHK, {B, H, K}, options),
          or_zeros(state.stabilizer_BH, {B, H}, options)};
}

void check_inputs(const char* name, const MlstmInputs& in, const MlstmState& state) {
  check_gated_inputs(name, in, state.cell_BHKV, {state.normalizer_BHK, state.stabilizer_BH});
  const int64_t B = in.q_BSHK.size(0), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3);
  if (state.normalizer_BHK.defined()) check_shape(fmt::format("{}: initial normalizer_BHK", name), state.normalizer_BHK, {B, H, K});
  if (state.stabilizer_BH.defined()) check_shape(fmt::format("{}: initial stabilizer_BH", name), state.stabilizer_BH, {B, H});
}

MlstmOutput run_chunkwise(const MlstmInputs& in, int64_t chunk_size, const MlstmState& initial, bool returns_state) {
  if (uses_kernels(in)) return cuda_backend().mlstm_chunkwise(in, initial, returns_state);
  MlstmOutput out = (in.q_BSHK.is_cpu() ? mlstm_chunkwise_cpu : mlstm_chunkwise_aten)(in, chunk_size, initial);
  if (!returns_state) out.state = {};
  return out;
}

struct MlstmFunction : torch::autograd::Function<MlstmFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& igate,
                               const Tensor& fgate, const std::optional<Tensor>& cell, const std::optional<Tensor>& normalizer,
                               const std::optional<Tensor>& stabilizer, const std::optional<Tensor>& is_start, int64_t chunk_size,
                               bool returns_state) {
    const MlstmInputs given{q, k, v, igate, fgate, is_start.value_or(Tensor())}, in = prepared(given, chunkwise_type(given));
    const MlstmState initial =
        prepared(MlstmState{cell.value_or(Tensor()), normalizer.value_or(Tensor()), stabilizer.value_or(Tensor())}, in);
    const MlstmOutput out = run_chunkwise(in, chunk_size, initial, returns_state);
    ctx->save_for_backward({in.q_BSHK, in.k_BSHK, in.v_BSHV, in.igate_BSH, in.fgate_BSH, in.is_start_BS, initial.cell_BHKV,
                            initial.normalizer_BHK, initial.stabilizer_BH, out.h_BSHV});
    ctx->saved_data["chunk_size"] = chunk_size;
    std::vector<int64_t> types;
    for (const Tensor* x : {&q, &k, &v, &igate, &fgate}) types.push_back(int64_t(x->scalar_type()));
    ctx->saved_data["types"] = types;
    ctx->set_materialize_grads(false);
    if (!returns_state) return {out.h_BSHV.to(v.scalar_type())};
    ctx->mark_non_differentiable({out.state.stabilizer_BH});
    return {out.h_BSHV.to(v.scalar_type()), out.state.cell_BHKV, out.state.normalizer_BHK, out.state.stabilizer_BH};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const MlstmInputs in{s[0], s[1], s[2], s[3], s[4], s[5]};
    const MlstmState initial{s[6], s[7], s[8]};
    const Tensor& h = s[9];
    const int64_t chunk_size = ctx->saved_data["chunk_size"].toInt();
    const auto types = ctx->saved_data["types"].toIntVector();
    const Tensor grad_h = or_zeros(grads[0], h.sizes(), h.options());
    const MlstmState given{grads.size() > 1 ? grads[1] : Tensor(), grads.size() > 1 ? grads[2] : Tensor(), {}};
    const MlstmState grad_state = prepared(given, in);
    const auto run = in.q_BSHK.is_cpu() ? mlstm_backward_cpu : uses_kernels(in) ? cuda_backend().mlstm_backward : mlstm_backward_aten;
    const MlstmBackward out = run(in, chunk_size, initial, h, grad_h, grad_state);
    const MlstmInputs& g = out.grad_inputs;
    variable_list result;
    for (const Tensor* x : {&g.q_BSHK, &g.k_BSHK, &g.v_BSHV, &g.igate_BSH, &g.fgate_BSH}) {
      result.push_back(x->to(static_cast<at::ScalarType>(types[result.size()])));
    }
    result.insert(result.end(), {out.grad_initial.cell_BHKV, out.grad_initial.normalizer_BHK, out.grad_initial.stabilizer_BH, Tensor(),
                                 Tensor(), Tensor()});
    return result;
  }
};

}  // namespace

MlstmOutput mlstm_chunkwise(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial, bool returns_state) {
  check_inputs("mlstm_chunkwise", inputs, initial);
  if (chunk_size < 1) throw ValueError("mlstm_chunkwise: chunk_size = {}: at least 1 is needed", chunk_size);
  const auto& [q, k, v, igate, fgate, is_start] = inputs;
  if (any_requires_grad({q, k, v, igate, fgate, initial.cell_BHKV, initial.normalizer_BHK, initial.stabilizer_BH})) {
    const MlstmState start = prepared(initial, inputs);
    const variable_list out = MlstmFunction::apply(q, k, v, igate, fgate, as_optional(start.cell_BHKV), as_optional(start.normalizer_BHK),
                                                   as_optional(start.stabilizer_BH), as_optional(is_start), chunk_size, returns_state);
    return {out[0], returns_state ? MlstmState{out[1], out[2], out[3]} : MlstmState{}};
  }
  at::NoGradGuard no_grad;
  const MlstmInputs in = prepared(inputs, chunkwise_type(inputs));
  MlstmOutput out = run_chunkwise(in, chunk_size, prepared(initial, in), returns_state);
  out.h_BSHV = out.h_BSHV.to(v.scalar_type());
  return out;
}

MlstmOutput mlstm_recurrent(const MlstmInputs& inputs, const MlstmState& initial) {
  check_inputs("mlstm_recurrent", inputs, initial);
  at::NoGradGuard no_grad;
  const MlstmInputs in = prepared(inputs, compute_type(inputs.q_BSHK));
  const auto run = in.q_BSHK.is_cpu() ? mlstm_recurrent_cpu : mlstm_recurrent_aten;
  MlstmOutput out = run(in, prepared(initial, in));
  out.h_BSHV = out.h_BSHV.to(inputs.v_BSHV.scalar_type());
  return out;
}

Tensor mlstm_parallel(const MlstmInputs& inputs) {
  check_inputs("mlstm_parallel", inputs, {});
  const at::ScalarType type = compute_type(inputs.q_BSHK);
  const auto by_head = [&](const Tensor& x) { return x.to(type).transpose(1, 2); };
  const int64_t S = inputs.q_BSHK.size(1);
  const Tensor q = by_head(inputs.q_BSHK), k = by_head(inputs.k_BSHK) / std::sqrt(double(inputs.q_BSHK.size(3))),
               v = by_head(inputs.v_BSHV);
  const Tensor igate = by_head(inputs.igate_BSH), log_forget = at::log_sigmoid(by_head(inputs.fgate_BSH));
  Tensor valid = at::ones({S, S}, q.options().dtype(at::kBool)).tril();
  if (inputs.is_start_BS.defined()) {
    const Tensor document = inputs.is_start_BS.to(at::kLong).cumsum(1).unsqueeze(1);
    valid = valid & (document.unsqueeze(-1) == document.unsqueeze(-2));
  }
  const Tensor between = log_forget.unsqueeze(-1).expand({-1, -1, S, S}).tril(-1).cumsum(-2);
  const Tensor weights = (between + igate.unsqueeze(-2)).masked_fill(valid.logical_not(), -std::numeric_limits<double>::infinity());
  const Tensor m = weights.amax(-1, /*keepdim=*/true);
  const Tensor scores = at::matmul(q, k.transpose(-1, -2)) * (weights - m).exp();
  const Tensor divisor = at::maximum(scores.sum(-1, /*keepdim=*/true).abs(), (-m).exp()) + kMlstmEps;
  return (at::matmul(scores, v) / divisor).transpose(1, 2).to(inputs.v_BSHV.scalar_type());
}

}  // namespace distil_xlstm::ops
