// Shape of a `paper` student: xLSTM v1 blocks (spec/xlstm.md sections 1 to 3), derived from the teacher by the paper's heuristics.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "config/run_config.h"
#include "teacher/teacher.h"

namespace distil_xlstm::student {

// What the user sets: [student] of a run file.
using StudentSettings = config::StudentSettings;

// The complete shape, as xLSTMLMModelConfig has it.
struct StudentConfig {
  int64_t vocab_size = 0, embedding_dim = 0, num_blocks = 0, context_length = 0;
  std::vector<int64_t> slstm_at;
  int64_t mlstm_num_heads = 4, slstm_num_heads = 4;
  int64_t mlstm_conv1d_kernel_size = 4, slstm_conv1d_kernel_size = 4;
  int64_t qkv_proj_blocksize = 4;
  double mlstm_proj_factor = 2.0, ffn_proj_factor = 1.7;
  int64_t round_proj_up_to_multiple_of = 64;
  bool round_proj_up_dim_up = true;
  std::string ffn_act_fn = "gelu", bias_init = "powerlaw_blockdependent", recurrent_weight_init = "zeros";
  bool has_ffn = true, bias = false, ffn_bias = false, add_post_blocks_norm = true, tie_weights = false, group_norm_weight = true;
  int64_t chunk_size = 64;

  [[nodiscard]] bool is_slstm(int64_t block) const;
  [[nodiscard]] int64_t mlstm_inner_dim() const;   // I
  [[nodiscard]] int64_t ffn_dim() const;           // P
  [[nodiscard]] int64_t num_trainable_parameters() const;           // blocks and post norm
  [[nodiscard]] json to_json() const;                                // config.json: xLSTMLMModelConfig's nested keys plus ours under "distil_xlstm"
  static StudentConfig from_json(const json& config, const std::string& where);   // both; unknown keys that change the result are errors
  void check() const;                                                // throws ConfigError that names key, value, nearest that fit
};

StudentConfig derive_student(const StudentSettings& settings, const teacher::TeacherShape& teacher, int64_t context_length);

}  // namespace distil_xlstm::student
