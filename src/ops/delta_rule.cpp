#include "ops/delta_rule.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_backend.h"
#include "ops/delta_rule_forms.h"
#include "ops/internal.h"
#include "ops/tf32.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Tensor cores take 2-byte operands. A state that is given back keeps the digits of float32: the tensor operations make it.
bool uses_kernels(const DeltaRuleInputs& in, bool returns_state) {
  if (returns_state || !has_cuda_kernels(in.q_BSHK)) return false;
  const at::ScalarType type = in.q_BSHK.scalar_type();
  return (type == at::kBFloat16 || type == at::kHalf) && in.k_BSHK.scalar_type() == type && in.v_BSHV.scalar_type() == type &&
         cuda_backend().delta_rule_serves(in.q_BSHK, in.v_BSHV);
}

// Contiguous, q, k, v as `type`, the rest in the type to compute in.
DeltaRuleInputs prepared(const DeltaRuleInputs& in, at::ScalarType type) {
  const at::ScalarType gates = compute_type(in.q_BSHK);
  const auto ready = [&](const Tensor& x, at::ScalarType as) { return x.to(as).contiguous(); };
  const Tensor is_start = in.is_start_BS.defined() ? in.is_start_BS.to(in.q_BSHK.device(), at::kByte).contiguous() : Tensor();
  return {ready(in.q_BSHK, type),     ready(in.k_BSHK, type),     ready(in.v_BSHV, type),
          ready(in.igate_BSH, gates), ready(in.fgate_BSH, gates), is_start};
}

DeltaRuleState prepared(const DeltaRuleState& state, const DeltaRuleInputs& in) {
  const int64_t B = in.q_BSHK.size(0), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  return {or_zeros(state.cell_BHKV, {B, H, K, V}, in.q_BSHK.options().dtype(compute_type(in.q_BSHK)))};
}

// The kernels take what is undefined as zeros.
DeltaRuleState as_given(const DeltaRuleState& state, const DeltaRuleInputs& in) {
  return state.cell_BHKV.defined() ? prepared(state, in) : DeltaRuleState{};
}

// Where nothing but h comes out, in the 2-byte type `given` that q came in. States keep the digits of float32.
bool may_take_tf32(const DeltaRuleInputs& in, at::ScalarType given, bool has_states) {
  return in.q_BSHK.is_cuda() && c10::elementSize(given) == 2 && !has_states;
}

struct Ran {
  DeltaRuleOutput out;
  DeltaRuleInputs in;  // as it was computed from
  Tensor kept;         // by the kernels, where they ran
};

Ran run_chunkwise(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial, bool returns_state) {
  const at::ScalarType type = inputs.q_BSHK.scalar_type();
  Ran ran;
  if (uses_kernels(inputs, returns_state)) {
    ran.in = prepared(inputs, type);
    ran.out.h_BSHV = cuda_backend().delta_rule_chunkwise(ran.in, as_given(initial, ran.in), ran.kept);
    return ran;
  }
  ran.in = prepared(inputs, compute_type(inputs.q_BSHK));
  const Tf32Products tf32(may_take_tf32(ran.in, type, returns_state || initial.cell_BHKV.defined()));
  ran.out = (ran.in.q_BSHK.is_cpu() ? delta_rule_chunkwise_cpu : delta_rule_chunkwise_aten)(ran.in, chunk_size, prepared(initial, ran.in));
  if (!returns_state) ran.out.state = {};
  return ran;
}

struct DeltaRuleFunction : torch::autograd::Function<DeltaRuleFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& igate,
                               const Tensor& fgate, const std::optional<Tensor>& cell, const std::optional<Tensor>& is_start,
                               int64_t chunk_size, bool returns_state) {
    const DeltaRuleState initial{cell.value_or(Tensor())};
    const auto [out, in, kept] = run_chunkwise({q, k, v, igate, fgate, is_start.value_or(Tensor())}, chunk_size, initial, returns_state);
    // Zeros need no memory until the backward pass.
    ctx->save_for_backward(
        {in.q_BSHK, in.k_BSHK, in.v_BSHV, in.igate_BSH, in.fgate_BSH, in.is_start_BS, as_given(initial, in).cell_BHKV, kept});
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
    const DeltaRuleState initial{s[6]}, grad_final{grads.size() > 1 ? grads[1] : Tensor()};
    const Tensor& kept = s[7];
    const auto types = ctx->saved_data["types"].toIntVector();
    const Tensor grad_h = or_zeros(grads[0], in.v_BSHV.sizes(), in.v_BSHV.options());
    const DeltaRuleBackward out = [&] {
      if (kept.defined()) return cuda_backend().delta_rule_backward(in, initial, kept, grad_h);
      const Tf32Products tf32(may_take_tf32(in, static_cast<at::ScalarType>(types[0]), grads.size() > 1 || initial.cell_BHKV.defined()));
      const auto run = in.q_BSHK.is_cpu() ? delta_rule_backward_cpu : delta_rule_backward_aten;
      return run(in, ctx->saved_data["chunk_size"].toInt(), prepared(initial, in), grad_h, prepared(grad_final, in));
    }();
    const DeltaRuleInputs& g = out.grad_inputs;
    variable_list result;
    for (const Tensor* x : {&g.q_BSHK, &g.k_BSHK, &g.v_BSHV, &g.igate_BSH, &g.fgate_BSH}) {
      result.push_back(x->to(static_cast<at::ScalarType>(types[result.size()])));
    }
    result.insert(result.end(), {initial.cell_BHKV.defined() ? out.grad_initial.cell_BHKV : Tensor(), Tensor(), Tensor(), Tensor()});
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
    const Tensor cell = as_given(initial, inputs).cell_BHKV;
    const variable_list out =
        DeltaRuleFunction::apply(q, k, v, igate, fgate, as_optional(cell), as_optional(is_start), chunk_size, returns_state);
    return {out[0], {returns_state ? out[1] : Tensor()}};
  }
  at::NoGradGuard no_grad;
  DeltaRuleOutput out = run_chunkwise(inputs, chunk_size, initial, returns_state).out;
  out.h_BSHV = out.h_BSHV.to(v.scalar_type());
  return out;
}

DeltaRuleOutput delta_rule_recurrent(const DeltaRuleInputs& inputs, const DeltaRuleState& initial) {
  check_gated_inputs("delta_rule_recurrent", inputs, initial.cell_BHKV);
  at::NoGradGuard no_grad;
  const DeltaRuleInputs in = prepared(inputs, compute_type(inputs.q_BSHK));
  DeltaRuleOutput out = (in.q_BSHK.is_cpu() ? delta_rule_recurrent_cpu : delta_rule_recurrent_aten)(in, prepared(initial, in));
  out.h_BSHV = out.h_BSHV.to(inputs.v_BSHV.scalar_type());
  return out;
}

}  // namespace distil_xlstm::ops
