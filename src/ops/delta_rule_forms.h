// The implementations behind delta_rule_chunkwise and delta_rule_recurrent: all take and give the same tensors.
#pragma once

#include "ops/delta_rule.h"

namespace distil_xlstm::ops {

struct DeltaRuleBackward {
  DeltaRuleInputs grad_inputs;
  DeltaRuleState grad_initial;
};

// Everything in the type to compute in and contiguous; states defined; is_start_BS uint8 or undefined.
DeltaRuleOutput delta_rule_chunkwise_cpu(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial);
DeltaRuleOutput delta_rule_chunkwise_aten(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial);

// grad_final: the gradient of the final state.
DeltaRuleBackward delta_rule_backward_cpu(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial,
                                          const Tensor& grad_h_BSHV, const DeltaRuleState& grad_final);
DeltaRuleBackward delta_rule_backward_aten(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial,
                                           const Tensor& grad_h_BSHV, const DeltaRuleState& grad_final);

DeltaRuleOutput delta_rule_recurrent_cpu(const DeltaRuleInputs& inputs, const DeltaRuleState& initial);
DeltaRuleOutput delta_rule_recurrent_aten(const DeltaRuleInputs& inputs, const DeltaRuleState& initial);

}  // namespace distil_xlstm::ops
