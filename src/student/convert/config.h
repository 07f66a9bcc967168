// Shape of a `convert` student: its teacher's decoder layers, in each another mixer in place of attention (docs/convert.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "config/run_config.h"
#include "nn/transformer_config.h"
#include "teacher/teacher.h"

namespace distil_xlstm::student {

struct ConvertConfig {
  json teacher_config;            // the teacher's config.json
  nn::TransformerConfig decoder;  // what that says, and the stored tensors of the head
  int64_t context_length = 0;
  int64_t conv1d_kernel_size = 4;  // taps of the convolutions on q, k, v; 0: none
  int64_t feature_factor = 2;      // width of phi(q), phi(k) / head width; even
  bool has_rope = true;
  double rope_max_wavelength = 0.0;             // of RopeConfig::max_wavelength
  std::vector<std::string> mixers = {"mlstm"};  // names of convert_mixer_names(): layer i has mixers[i % size]
  int64_t attention_window = 0;                 // of layers that keep attention: tokens that one sees, itself among them; 0: all
  int64_t attention_sinks = 0;                  // and of a document's first, beside a window
  config::Normalizer normalizer = config::Normalizer::sum;  // of mixer "mlstm"
  bool has_head_norm = false;                               // behind the cells of "mlstm" and "gated-delta"
  int64_t chunk_size = 64;
  config::GateInit gate_init = config::GateInit::spread;     // of a fresh one; not stored
  config::ValueInit value_init = config::ValueInit::copied;  // likewise

  [[nodiscard]] int64_t feature_size() const { return feature_factor * decoder.head_dim; }
  [[nodiscard]] int64_t inner_size() const { return decoder.num_heads * decoder.head_dim; }

  [[nodiscard]] nn::RopeConfig rope() const;  // of q and k, where they have positions

  [[nodiscard]] const std::string& mixer_of(int64_t layer) const { return mixers[static_cast<size_t>(layer) % mixers.size()]; }

  // Layers that keep their attention.
  [[nodiscard]] int64_t num_attention_layers() const;

  [[nodiscard]] json to_json() const;
  // Throws ConfigError that names unknown keys.
  static ConvertConfig from_json(const json& config, const std::string& where);
  void check() const;  // throws ConfigError that names key and value
};

// The teacher's attention itself, among them.
inline constexpr const char* kKeptAttention = "attention";

// What may stand in attention's place.
std::vector<std::string> convert_mixer_names();

// Throws ConfigError.
ConvertConfig derive_convert(const config::StudentSettings& settings, const teacher::TeacherShape& teacher, int64_t context_length);

}  // namespace distil_xlstm::student
