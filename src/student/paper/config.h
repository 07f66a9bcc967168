// Shape of a `paper` student: xLSTM v1 blocks (docs/mathematics.md 1 to 5), derived from the teacher by the paper's heuristics.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
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
  config::Activation ffn_act_fn = config::Activation::gelu;
  config::BiasInit bias_init = config::BiasInit::powerlaw_blockdependent;
  config::RecurrentWeightInit recurrent_weight_init = config::RecurrentWeightInit::zeros;
  bool has_ffn = true, bias = false, ffn_bias = false, add_post_blocks_norm = true, tie_weights = false, group_norm_weight = true;
  int64_t chunk_size = 64;
  std::vector<std::string> mixers;  // the kind of each block's mixer (student/mixer.h); empty: "slstm" at slstm_at, "mlstm" elsewhere

  [[nodiscard]] std::string mixer_at(int64_t block) const;
  [[nodiscard]] bool has_mixer(std::string_view kind) const;
  [[nodiscard]] int64_t mlstm_inner_dim() const;  // I
  [[nodiscard]] int64_t ffn_dim() const;          // P
  // config.json: the nested keys of xLSTMLMModelConfig, plus ours under "distil_xlstm". `slstm_backend` is "cuda" or "vanilla": the
  // layout in which the weights beside it store R and b.
  [[nodiscard]] json to_json(const std::string& slstm_backend = "cuda") const;
  // Reads that form, the bare form that the package dumps, and the authors' (nested in "xlstm_config" or "xlstm_cfg", docs/mathematics.md
  // 5). Keys that are unknown or that change the result in a way this program does not offer are ConfigErrors that name them.
  static StudentConfig from_json(const json& config, const std::string& where);
  void check() const;  // throws ConfigError that names key, value, nearest that fit
};

// The student's shape from the user's settings and the teacher (docs/mathematics.md 5): width and vocabulary are the teacher's, the depth
// is half of its layers ("half") or the same, heads are ceil4: ceil(H/4)*4, or ceil4_div4: ceil(H/4), for both kinds of block. Checked.
StudentConfig derive_student(const StudentSettings& settings, const teacher::TeacherShape& teacher, int64_t context_length);

}  // namespace distil_xlstm::student
