// The recurrent cells that may stand in a converted layer's place of attention, by name (docs/convert.md). Letters: B batch, S sequence, H
// heads of K channels, F features.
#pragma once

#include <string>
#include <vector>

#include "ops/mlstm.h"
#include "student/convert/config.h"
#include "student/mixer.h"
#include "student/shape.h"

namespace distil_xlstm::student {

// Heads as attention would see them, and pre-activations of the gates.
struct CellInputs {
  Tensor q_BSHK, k_BSHK, v_BSHK;
  Tensor feature_q_HKM, feature_k_HKM;
  Tensor input_gate_BSH, forget_gate_BSH;
  Tensor is_start_BS;
  config::Normalizer normalizer;
  at::ScalarType type;  // of what enters the cell
  ops::MlstmForm form;
  int64_t chunk_size;
};

class ConvertCell {
 public:
  virtual ~ConvertCell() = default;
  // h [B, S, H, K]. `state`, unless null, is where the rows start from, and holds where they ended afterwards.
  [[nodiscard]] virtual Tensor run(const CellInputs& in, std::vector<Tensor>* state) const = 0;
  // Whether values are mixed by a matrix that is known without them, and its error (ops::mixing_error_sum). Throws ValueError for others.
  [[nodiscard]] virtual bool has_mixing_matrix() const { return false; }
  [[nodiscard]] virtual Tensor mixing_error_sum(const CellInputs& in, const AttentionMatrix& attention) const;
  // Rows of the batch first; float32 (`options`).
  [[nodiscard]] virtual std::vector<Tensor> zero_state(int64_t batch, const ConvertConfig& config,
                                                       const at::TensorOptions& options) const = 0;
  // Beside what every converted layer keeps.
  [[nodiscard]] virtual KeptValues kept_values(const ConvertConfig& config) const = 0;
  // Pre-activation of a forget gate whose memory halves in so many tokens [H].
  [[nodiscard]] virtual Tensor forget_gate_of(const Tensor& half_life_H) const;
};

// Throws ValueError.
const ConvertCell& find_convert_cell(const std::string& name);

}  // namespace distil_xlstm::student
