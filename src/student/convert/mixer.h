// What a converted layer has in attention's place (docs/convert.md).
#pragma once

#include <memory>
#include <vector>

#include "nn/rotary.h"
#include "nn/token_mixer.h"
#include "student/convert/cells.h"
#include "student/convert/weights.h"
#include "student/mixer.h"

namespace distil_xlstm::student {

struct ConvertState final : MixerState {
  Tensor tail_BJT;           // the convolution's last J - 1 inputs; undefined without one
  std::vector<Tensor> cell;  // ConvertCell::zero_state
  int64_t num_tokens = 0;    // seen, by every row: the position of the next one

  void for_each(const std::function<void(Tensor&)>& visit) override;
  [[nodiscard]] std::unique_ptr<MixerState> clone() const override { return std::make_unique<ConvertState>(*this); }
};

// A cell on queries, keys and values of the teacher's, and its output gate.
class ConvertMixer final : public nn::TokenMixer {
 public:
  // All must outlive the mixer. `products`: the weights as products take them (MixerCall::products), undefined where they are converted
  // where they are used; `rotary` and `state`, or null.
  ConvertMixer(const ConvertConfig& config, const ConvertCell& cell, const CellWeights& weights, const CellWeights& products,
               const MixerCall& call, const nn::Rotary* rotary, ConvertState* state)
      : config_(config), cell_(cell), w_(weights), products_(products), call_(call), rotary_(rotary), state_(state) {}

  [[nodiscard]] Tensor mix(const nn::MatrixInput& u_BSD) override;
  // ConvertCell::mixing_error_sum, from the zero state.
  [[nodiscard]] Tensor mixing_error_sum(const nn::MatrixInput& u_BSD, const AttentionMatrix& attention) const;

 private:
  // Heads [B, S, H, K], before features.
  struct Heads {
    Tensor q_BSHK, k_BSHK, v_BSHK;
  };
  [[nodiscard]] Heads heads(const nn::MatrixInput& u_BSD, Tensor* tail_BJT) const;
  [[nodiscard]] Tensor normed(const Tensor& h_BSHK) const;
  [[nodiscard]] Tensor placed(const Tensor& x_BSHK, const Tensor& norm_K) const;
  [[nodiscard]] CellInputs cell_inputs(const nn::MatrixInput& u_BSD, const Heads& heads) const;

  const ConvertConfig& config_;
  const ConvertCell& cell_;
  const CellWeights &w_, &products_;
  const MixerCall& call_;
  const nn::Rotary* rotary_;
  ConvertState* state_;
};

}  // namespace distil_xlstm::student
