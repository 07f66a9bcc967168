// The xLSTM v1 block around an mLSTM (docs/mathematics.md 3): norm, up projection, convolution, q, k, v and gates, cell, norm, skip, output
// gate, down projection.
#pragma once

#include <memory>

#include "student/mixer.h"
#include "student/paper/config.h"

namespace distil_xlstm::student {

struct MlstmMixerState final : MixerState {
  Tensor conv_tail_BJF;  // the last kernel size - 1 inputs, in the type of the convolution's input
  ops::MlstmState cell;

  void for_each(const std::function<void(Tensor&)>& visit) override;
  [[nodiscard]] std::unique_ptr<MixerState> clone() const override { return std::make_unique<MlstmMixerState>(*this); }
};

std::unique_ptr<const Mixer> make_mlstm(const StudentConfig& config, int64_t block);

}  // namespace distil_xlstm::student
