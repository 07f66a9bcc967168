#include "student/convert/cells.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "ops/delta_rule.h"
#include "ops/feature_map.h"
#include "ops/mixing_matrix.h"
#include "student/convert/look_back.h"
#include "student/mlstm_cell.h"

namespace distil_xlstm::student {
namespace {

// y_i = sum_j phi(q_i) phi(k_j) e^D_ij v_j / sum_j phi(q_i) phi(k_j) e^D_ij.
class Mlstm final : public ConvertCell {
 public:
  [[nodiscard]] Tensor run(const CellInputs& in, std::vector<Tensor>* state) const override {
    // The cell divides by at least e^-m, which a large factor on q keeps out of the way: what is left is the plain sum.
    const double above_bound = in.normalizer == config::Normalizer::sum ? 0x1p24 : 1.0;
    const double scale = std::sqrt(static_cast<double>(in.q_BSHK.size(3)));
    ops::MlstmState cell;
    if (state) cell = {state->at(0), state->at(1), state->at(2)};
    const Tensor h_BSHK = run_mlstm_cell({.q_BSHK = ops::feature_map(in.q_BSHK, in.feature_q_HKM, scale * above_bound, in.type),
                                          .k_BSHK = ops::feature_map(in.k_BSHK, in.feature_k_HKM, scale, in.type),
                                          .v_BSHV = in.v_BSHK.to(in.type).contiguous(),
                                          .igate_BSH = in.input_gate_BSH,
                                          .fgate_BSH = in.forget_gate_BSH,
                                          .is_start_BS = in.is_start_BS},
                                         in.form, in.chunk_size, state ? &cell : nullptr);
    if (state) *state = {cell.cell_BHKV, cell.normalizer_BHK, cell.stabilizer_BH};
    return h_BSHK;
  }

  [[nodiscard]] bool has_mixing_matrix() const override { return true; }
  [[nodiscard]] Tensor mixing_error_sum(const CellInputs& in, const AttentionMatrix& attention) const override {
    const at::ScalarType type = in.q_BSHK.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return ops::mixing_error_sum({.q_BSHF = ops::feature_map(in.q_BSHK, in.feature_q_HKM, 1.0, type),
                                  .k_BSHF = ops::feature_map(in.k_BSHK, in.feature_k_HKM, 1.0, type),
                                  .igate_BSH = in.input_gate_BSH,
                                  .fgate_BSH = in.forget_gate_BSH,
                                  .attention_q_BSHK = attention.q_BSHK,
                                  .attention_k_BSGK = attention.k_BSGK,
                                  .is_start_BS = in.is_start_BS,
                                  .mask_BS = attention.mask_BS});
  }

  [[nodiscard]] std::vector<Tensor> zero_state(int64_t batch, const ConvertConfig& config,
                                               const at::TensorOptions& options) const override {
    const int64_t H = config.decoder.num_heads, K = config.decoder.head_dim, F = config.feature_size();
    return {at::zeros({batch, H, F, K}, options), at::zeros({batch, H, F}, options), at::zeros({batch, H}, options)};
  }

  [[nodiscard]] KeptValues kept_values(const ConvertConfig& config) const override {
    const int64_t H = config.decoder.num_heads, F = config.feature_size();
    return {.compute = 2 * H * F, .full = H * F * config.decoder.head_dim / config.chunk_size + 4 * H};
  }
};

// C <- g (I - beta k k^T) C + beta k v^T, read by q: features of unit length, no normaliser (docs/mathematics.md 11).
class GatedDelta final : public ConvertCell {
 public:
  [[nodiscard]] Tensor run(const CellInputs& in, std::vector<Tensor>* state) const override {
    const ops::DeltaRuleInputs inputs{.q_BSHK = unit_features(in.q_BSHK, in.feature_q_HKM, in.type),
                                      .k_BSHK = unit_features(in.k_BSHK, in.feature_k_HKM, in.type),
                                      .v_BSHV = in.v_BSHK.to(in.type).contiguous(),
                                      .igate_BSH = in.input_gate_BSH,
                                      .fgate_BSH = in.forget_gate_BSH,
                                      .is_start_BS = in.is_start_BS};
    const ops::DeltaRuleState initial{state ? state->at(0) : Tensor()};
    if (in.form == ops::MlstmForm::recurrent && in.v_BSHK.requires_grad())
      throw ValueError("student: the recurrent form of the gated delta rule has no gradient: use form = chunkwise");
    ops::DeltaRuleOutput out = in.form == ops::MlstmForm::recurrent
                                   ? ops::delta_rule_recurrent(inputs, initial)
                                   : ops::delta_rule_chunkwise(inputs, in.chunk_size, initial, /*returns_state=*/state != nullptr);
    if (state) *state = {out.state.cell_BHKV};
    return std::move(out.h_BSHV);
  }

  [[nodiscard]] std::vector<Tensor> zero_state(int64_t batch, const ConvertConfig& config,
                                               const at::TensorOptions& options) const override {
    return {at::zeros({batch, config.decoder.num_heads, config.feature_size(), config.decoder.head_dim}, options)};
  }

  [[nodiscard]] KeptValues kept_values(const ConvertConfig& config) const override {
    // On a GPU's tensor cores, in chunks of 64: beside the features both matrices of a chunk, u and the states at its border.
    constexpr int64_t kChunk = 64;
    const int64_t H = config.decoder.num_heads, F = config.feature_size(), K = config.decoder.head_dim;
    return {.compute = 2 * H * F + H * (2 * kChunk + K + F * K / kChunk), .full = 8 * H};
  }

 private:
  static Tensor unit_features(const Tensor& x_BSHK, const Tensor& map_HKM, at::ScalarType type) {
    return ops::feature_map(x_BSHK, map_HKM, 1.0, type, ops::FeatureScale::length);
  }
};

const std::vector<std::pair<std::string, const ConvertCell*>>& cells() {
  static const Mlstm mlstm;
  static const GatedDelta gated_delta;
  static const std::vector<std::pair<std::string, const ConvertCell*>> all = {{"mlstm", &mlstm}, {"gated-delta", &gated_delta}};
  return all;
}

}  // namespace

Tensor ConvertCell::mixing_error_sum(const CellInputs& /*in*/, const AttentionMatrix& /*attention*/) const {
  throw ValueError("student: this cell mixes tokens by no matrix that is known without them");
}

Tensor ConvertCell::forget_gate_of(const Tensor& half_life_H) const {
  return student::forget_gate_of(half_life_H);
}

const ConvertCell& find_convert_cell(const std::string& name) {
  for (const auto& [known, cell] : cells()) {
    if (known == name) return *cell;
  }
  throw ValueError("student: no cell is called '{}'", name);
}

}  // namespace distil_xlstm::student
