#include "ops/gated_inputs.h"

#include "ops/internal.h"

namespace distil_xlstm::ops {

void check_gated_inputs(const char* name, const GatedInputs& in, const Tensor& cell_BHKV, std::initializer_list<Tensor> other_state) {
  const auto what = [&](const std::string& argument) { return fmt::format("{}: {}", name, argument); };
  check_rank(what("q_BSHK"), in.q_BSHK, 4);
  check_rank(what("v_BSHV"), in.v_BSHV, 4);
  const int64_t B = in.q_BSHK.size(0), S = in.q_BSHK.size(1), H = in.q_BSHK.size(2), K = in.q_BSHK.size(3), V = in.v_BSHV.size(3);
  if (in.q_BSHK.numel() == 0 || V == 0) throw ShapeError("{}: no dimension may be 0", what("q_BSHK " + shape_text(in.q_BSHK.sizes())));
  check_shape(what("k_BSHK"), in.k_BSHK, {B, S, H, K});
  check_shape(what("v_BSHV"), in.v_BSHV, {B, S, H, V});
  check_shape(what("igate_BSH"), in.igate_BSH, {B, S, H});
  check_shape(what("fgate_BSH"), in.fgate_BSH, {B, S, H});
  if (in.is_start_BS.defined()) check_shape(what("is_start_BS"), in.is_start_BS, {B, S});
  if (cell_BHKV.defined()) check_shape(what("initial cell_BHKV"), cell_BHKV, {B, H, K, V});
  check_device(what("q_BSHK"), in.q_BSHK, {in.k_BSHK, in.v_BSHV, in.igate_BSH, in.fgate_BSH, cell_BHKV});
  check_device(what("q_BSHK"), in.q_BSHK, other_state);
}

}  // namespace distil_xlstm::ops
