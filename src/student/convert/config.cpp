#include "student/convert/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "config/names.h"
#include "student/convert/large_form.h"

namespace distil_xlstm::student {

nn::RopeConfig ConvertConfig::rope() const {
  nn::RopeConfig rope = decoder.rope;
  rope.max_wavelength = rope_max_wavelength;
  return rope;
}

json ConvertConfig::to_json() const {
  return {{"model_type", "xlstm"},
          {"vocab_size", decoder.vocab_size},
          {"hidden_size", decoder.hidden_size},
          {"num_hidden_layers", decoder.num_layers},
          {"tie_word_embeddings", decoder.is_tied},
          {"distil_xlstm",
           {{"format_version", 1},
            {"kind", "convert"},
            {"context_length", context_length},
            {"conv1d_kernel_size", conv1d_kernel_size},
            {"feature_factor", feature_factor},
            {"rope", has_rope},
            {"rope_max_wavelength", rope_max_wavelength},
            {"mixers", mixers},
            {"attention_window", attention_window},
            {"attention_sinks", attention_sinks},
            {"o_bias", decoder.has_o_bias},
            {"normalizer", config::name_of(normalizer)},
            {"head_norm", has_head_norm},
            {"chunk_size", chunk_size},
            {"teacher_config", teacher_config}}}};
}

ConvertConfig ConvertConfig::from_json(const json& config, const std::string& where) {
  const std::string place = where + ": distil_xlstm";
  const json own = require<json>(config, "distil_xlstm", where);
  for (const auto& [key, value] : own.items()) {
    constexpr std::array kKeys = {"format_version",
                                  "kind",
                                  "context_length",
                                  "conv1d_kernel_size",
                                  "feature_factor",
                                  "rope",
                                  "mixers",
                                  "attention_window",
                                  "rope_max_wavelength",
                                  "attention_sinks",
                                  "normalizer",
                                  "head_norm",
                                  "chunk_size",
                                  "o_bias",
                                  "teacher_config",
                                  "layout"};
    if (std::ranges::find(kKeys, key) == kKeys.end()) throw ConfigError("{}: '{}' is not known to this version", place, key);
  }
  ConvertConfig result;
  result.teacher_config = require<json>(own, "teacher_config", place);
  result.decoder = teacher::teacher_shape(result.teacher_config);
  // As the teacher's tensors were, and its biases. The layout of transformers has a head of its own always.
  result.decoder.is_tied = !own.contains("layout") && require<bool>(config, "tie_word_embeddings", where);
  result.decoder.has_o_bias = get_or<bool>(own, "o_bias", result.decoder.has_o_bias, place);
  result.context_length = require<int64_t>(own, "context_length", place);
  result.conv1d_kernel_size = require<int64_t>(own, "conv1d_kernel_size", place);
  result.feature_factor = require<int64_t>(own, "feature_factor", place);
  result.has_rope = require<bool>(own, "rope", place);
  result.rope_max_wavelength = get_or<double>(own, "rope_max_wavelength", 0.0, place);
  result.mixers = require<std::vector<std::string>>(own, "mixers", place);
  result.attention_window = get_or<int64_t>(own, "attention_window", 0, place);
  result.attention_sinks = get_or<int64_t>(own, "attention_sinks", 0, place);
  result.normalizer = config::parse_name<config::Normalizer>(get_or<std::string>(own, "normalizer", "sum", place), place + ".normalizer");
  result.has_head_norm = get_or<bool>(own, "head_norm", false, place);
  result.chunk_size = require<int64_t>(own, "chunk_size", place);
  try {
    result.check();
  } catch (const ConfigError& error) {
    throw ConfigError("{}: {}", where, error.what());
  }
  return result;
}

int64_t ConvertConfig::num_attention_layers() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < decoder.num_layers; ++layer) count += mixer_of(layer) == kKeptAttention ? 1 : 0;
  return count;
}

void ConvertConfig::check() const {
  if (conv1d_kernel_size < 0 || conv1d_kernel_size > 64)
    throw ConfigError("student.conv1d_kernel_size = {}: must lie in 0 to 64", conv1d_kernel_size);
  if (feature_factor < 2 || feature_factor % 2 != 0)
    throw ConfigError("student.feature_factor = {}: must be an even number, the maps of both signs share it", feature_factor);
  if (rope_max_wavelength < 0.0) throw ConfigError("student.rope_max_wavelength = {}: must not be negative", rope_max_wavelength);
  if (mixers.empty()) throw ConfigError("student.mixers: names no mixer");
  const auto known = convert_mixer_names();
  for (const auto& name : mixers) {
    if (std::ranges::find(known, name) == known.end()) throw config::unknown_name(name, known, "student.mixers");
  }
  if (attention_window < 0) throw ConfigError("student.attention_window = {}: must not be negative; 0: no window", attention_window);
  if (attention_sinks < 0) throw ConfigError("student.attention_sinks = {}: must not be negative", attention_sinks);
  if (attention_window > 0 && num_attention_layers() == 0) {
    throw ConfigError(
        "student.attention_window = {}: no layer keeps its attention: name \"attention\" in student.mixers ({}), or set it to 0",
        attention_window, fmt::join(mixers, ", "));
  }
  if (attention_sinks > 0 && attention_window == 0) {
    throw ConfigError(
        "student.attention_sinks = {}: without a window every token of the document is seen: set student.attention_window too",
        attention_sinks);
  }
  const auto has_mixer = [&](const char* name) {
    for (int64_t layer = 0; layer < decoder.num_layers; ++layer) {
      if (mixer_of(layer) == name) return true;
    }
    return false;
  };
  if (normalizer == config::Normalizer::bounded && !has_mixer("mlstm"))
    throw ConfigError("student.normalizer = \"bounded\": only mixer \"mlstm\" has a bound, and the layers have others: {}",
                      fmt::join(mixers, ", "));
  if (has_head_norm && !has_mixer("mlstm") && !has_mixer("gated-delta")) {
    throw ConfigError("student.head_norm = true: mixers \"mlstm\" and \"gated-delta\" have one to choose, and the layers have others: {}",
                      fmt::join(mixers, ", "));
  }
  if (chunk_size < 1) throw ConfigError("student.chunk_size = {}: must be at least 1", chunk_size);
}

ConvertConfig derive_convert(const config::StudentSettings& settings, const teacher::TeacherShape& teacher, int64_t context_length) {
  ConvertConfig config;
  config.teacher_config = teacher.config;
  config.decoder = teacher;
  config.context_length = context_length;
  config.conv1d_kernel_size = settings.conv1d_kernel_size;
  config.feature_factor = settings.feature_factor;
  config.has_rope = settings.rope;
  config.mixers = settings.mixers;
  config.rope_max_wavelength = settings.rope_max_wavelength;
  config.attention_window = settings.attention_window;
  config.attention_sinks = settings.attention_sinks;
  config.normalizer = settings.normalizer;
  config.has_head_norm = settings.head_norm;
  config.gate_init = settings.gate_init;
  config.value_init = settings.value_init;
  config.chunk_size = settings.chunk_size;
  if (config.rope_max_wavelength > 0.0 && !config.has_rope) {
    throw ConfigError("student.rope_max_wavelength = {}: there are no rotary positions with student.rope = false: leave one of the two out",
                      config.rope_max_wavelength);
  }
  if (config.value_init == config::ValueInit::least_squares && config.has_head_norm) {
    throw ConfigError(
        "student.value_init = \"least-squares\": the size of values has no effect with student.head_norm = true: leave one of the two out");
  }
  config.check();
  check_large(config);
  return config;
}

}  // namespace distil_xlstm::student
