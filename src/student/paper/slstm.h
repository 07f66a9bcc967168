// The xLSTM v1 block around an sLSTM (docs/mathematics.md 2): norm, convolution, gates, cell, group norm, and a gated feed-forward.
#pragma once

#include <memory>

#include "ops/slstm.h"
#include "student/mixer.h"
#include "student/paper/config.h"

namespace distil_xlstm::student {

struct SlstmMixerState final : MixerState {
  Tensor conv_tail_BJF;  // the last kernel size - 1 inputs, in the type of the convolution's input; undefined without one
  ops::SlstmState cell;

  void for_each(const std::function<void(Tensor&)>& visit) override;
  [[nodiscard]] std::unique_ptr<MixerState> clone() const override { return std::make_unique<SlstmMixerState>(*this); }
};

std::unique_ptr<const Mixer> make_slstm(const StudentConfig& config, int64_t block);

}  // namespace distil_xlstm::student
