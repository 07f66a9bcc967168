#include "ops/delta_rule.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/delta_rule_forms.h"
#include "ops/internal.h"
#include "ops/tf32.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Contiguous, in the type to compute in.
DeltaRuleInputs prepared(const DeltaRuleInputs& in) {
  const at::ScalarType type = compute_type(in.q_BSHK);
  const auto ready = [&](const Tensor& x) { return x.to(type).contiguous(); };
  const Tensor is_start = in.is_start_BS.defined() ? in.is_start_BS.to(in.q_BSHK.device(), at::kByte).contiguous() : Tensor();
  return {ready(in.q_BSHK), ready(in.k_BSHK), ready(in.v_BSHV), ready(in.igate_BSH), ready(in.fgate_BSH), is_start};
}

DeltaRuleState prepared(const DeltaRuleState& state, const DeltaRuleInputs& in) {
  const int64_t B = in.q_BSHK.size(0), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  return {or_zeros(state.cell_BHKV, {B, H, K, V}, in.q_BSHK.options().dtype(compute_type(in.q_BSHK)))};
}

// Where nothing but h comes out, in the 2-byte type `given` that q came in. States keep the digits of float32.
bool may_take_tf32(const DeltaRuleInputs& in, at::ScalarType given, bool has_states) {
  return in.q_BSHK.is_cuda() && c10::elementSize(given) == 2 && !has_states;
}

DeltaRuleOutput run_chunkwise(const DeltaRuleInputs& in, bool takes_tf32, int64_t chunk_size, const DeltaRuleState& initial,
                              bool returns_state) {
  const Tf32Products tf32(takes_tf32);
  DeltaRuleOutput out = (in.q_BSHK.is_cpu() ? delta_rule_chunkwise_cpu : delta_rule_chunkwise_aten)(in, chunk_size, initial);
  if (!returns_state) out.state = {};
  return out;
}

struct DeltaRuleFunction : torch::autograd::Function<DeltaRuleFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& igate,
                               const Tensor& fgate, const std::optional<Tensor>& cell, const std::optional<Tensor>& is_start,
                               int64_t chunk_size, bool returns_state) {
    const DeltaRuleInputs in = prepared(DeltaRuleInputs{q, k, v, igate, fgate, is_start.value_or(Tensor())});
    const DeltaRuleState given{cell.value_or(Tensor())}, initial = prepared(given, in);
    const bool takes_tf32 = may_take_tf32(in, q.scalar_type(), returns_state || cell.has_value());
    const DeltaRuleOutput out = run_chunkwise(in, takes_tf32, chunk_size, initial, returns_state);
    // Zeros need no memory until the backward pass.
    ctx->save_for_backward({in.q_BSHK, in.k_BSHK, in.v_BSHV, in.igate_BSH, in.fgate_BSH, in.is_start_BS,
                            given.cell_BHKV.defined() ? initial.cell_BHKV : Tensor()});
    ctx->saved_data["chunk_size"] = chunk_size;
    std::vector<int64_t> types;
    for (const Tensor* x : {&q, &k, &v, &igate, &fgate}) types.push_back(int64_t(x->scalar_type()));
    ctx->saved_data["types"] = types;
    ctx->set_materialize_grads(false);
    if (!returns_state) return {out.h_BSHV.to(v.scalar_type())};
    return {out.h_BSHV.to(v.scalar_type()), out.state.cell_BHKV};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const DeltaRuleInputs in{s[0], s[1], s[2], s[3], s[4], s[5]};
    const DeltaRuleState given{s[6]}, given_final{grads.size() > 1 ? grads[1] : Tensor()};
    const auto types = ctx->saved_data["types"].toIntVector();
    const Tensor grad_h = or_zeros(grads[0], in.v_BSHV.sizes(), in.v_BSHV.options());
    const Tf32Products tf32(may_take_tf32(in, static_cast<at::ScalarType>(types[0]), grads.size() > 1 || given.cell_BHKV.defined()));
    const auto run = in.q_BSHK.is_cpu() ? delta_rule_backward_cpu : delta_rule_backward_aten;
    const DeltaRuleBackward out = run(in, ctx->saved_data["chunk_size"].toInt(), prepared(given, in), grad_h, prepared(given_final, in));
    const DeltaRuleInputs& g = out.grad_inputs;
    variable_list result;
    for (const Tensor* x : {&g.q_BSHK, &g.k_BSHK, &g.v_BSHV, &g.igate_BSH, &g.fgate_BSH}) {
      result.push_back(x->to(static_cast<at::ScalarType>(types[result.size()])));
    }
    result.insert(result.end(), {given.cell_BHKV.defined() ? out.grad_initial.cell_BHKV : Tensor(), Tensor(), Tensor(), Tensor()});
    return result;
  }
};

}  // namespace

DeltaRuleOutput delta_rule_chunkwise(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial, bool returns_state) {
  check_gated_inputs("delta_rule_chunkwise", inputs, initial.cell_BHKV);
  if (chunk_size < 1) throw ValueError("delta_rule_chunkwise: chunk_size = {}: at least 1 is needed", chunk_size);
  const auto& [q, k, v, igate, fgate, is_start] = inputs;
  if (any_requires_grad({q, k, v, igate, fgate, initial.cell_BHKV})) {
    // In the type to compute in, so that autograd brings its gradient back to the type given.
    const Tensor cell = initial.cell_BHKV.defined() ? prepared(initial, inputs).cell_BHKV : Tensor();
    const variable_list out =
        DeltaRuleFunction::apply(q, k, v, igate, fgate, as_optional(cell), as_optional(is_start), chunk_size, returns_state);
    return {out[0], {returns_state ? out[1] : Tensor()}};
  }
  at::NoGradGuard no_grad;
  const DeltaRuleInputs in = prepared(inputs);
  const bool takes_tf32 = may_take_tf32(in, q.scalar_type(), returns_state || initial.cell_BHKV.defined());
  DeltaRuleOutput out = run_chunkwise(in, takes_tf32, chunk_size, prepared(initial, in), returns_state);
  out.h_BSHV = out.h_BSHV.to(v.scalar_type());
  return out;
}

DeltaRuleOutput delta_rule_recurrent(const DeltaRuleInputs& inputs, const DeltaRuleState& initial) {
  check_gated_inputs("delta_rule_recurrent", inputs, initial.cell_BHKV);
  at::NoGradGuard no_grad;
  const DeltaRuleInputs in = prepared(inputs);
  DeltaRuleOutput out = (in.q_BSHK.is_cpu() ? delta_rule_recurrent_cpu : delta_rule_recurrent_aten)(in, prepared(initial, in));
  out.h_BSHV = out.h_BSHV.to(inputs.v_BSHV.scalar_type());
  return out;
}

}  // namespace distil_xlstm::ops
