#include "teacher/rope_config.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace distil_xlstm::teacher {
namespace {

// The rotary parameters, wherever they stand.
struct RopeKeys {
  json values = json::object();
  std::string name;  // of the object, for messages

  [[nodiscard]] double number(const ConfigReader& reader, std::string_view key, std::optional<double> fallback) const {
    const auto it = values.find(key);
    if (it == values.end() || it->is_null()) {
      if (fallback) return *fallback;
      throw ConfigError("{}: {}.{} is missing, and its scaling type needs it", reader.where(), name, key);
    }
    const double value = it->is_number() ? it->get<double>() : std::numeric_limits<double>::quiet_NaN();
    if (!(value > 0) || !std::isfinite(value)) {
      throw ConfigError("{}: {}.{} = {} must be a positive number", reader.where(), name, key, it->dump());
    }
    return value;
  }
};

// A parameter that may stand among the others or at the top level, as older checkpoints have it.
double number_anywhere(ConfigReader& reader, const RopeKeys& keys, std::string_view key, double fallback) {
  const double outer = reader.positive_or(key, fallback);
  const double inner = keys.number(reader, key, outer);
  if (reader.find(key) && inner != outer) {
    throw ConfigError("{}: {} = {} and {}.{} = {} contradict each other: keep one", reader.where(), key, outer, keys.name, key, inner);
  }
  return inner;
}

RopeKeys find_rope_keys(ConfigReader& reader) {
  RopeKeys keys;
  const json* scaling = reader.find("rope_scaling");
  const json* parameters = reader.find("rope_parameters");
  if (scaling && parameters && *scaling != *parameters) {
    throw ConfigError("{}: rope_scaling = {} and rope_parameters = {} contradict each other: keep one", reader.where(), scaling->dump(),
                      parameters->dump());
  }
  keys.name = scaling ? "rope_scaling" : "rope_parameters";
  const json* chosen = scaling ? scaling : parameters;
  if (!chosen) return keys;
  if (!chosen->is_object()) reader.refuse(keys.name, "it must be an object or null");
  keys.values = *chosen;
  for (const auto& [key, value] : keys.values.items()) {
    if (value.is_object()) reader.refuse(keys.name, "parameters that differ by layer type are not supported");
  }
  return keys;
}

void check_rope_key_names(const ConfigReader& reader, const RopeKeys& keys, const std::vector<std::string_view>& known) {
  for (const auto& [key, value] : keys.values.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end() && !value.is_null()) {
      throw ConfigError("{}: {}.{} = {} is not supported for this scaling type: known are {}", reader.where(), keys.name, key, value.dump(),
                        fmt::join(known, ", "));
    }
  }
}

double yarn_attention_factor(const ConfigReader& reader, const RopeKeys& keys, double factor) {
  auto magnitude = [](double scale, double weight) { return scale <= 1 ? 1.0 : 0.1 * weight * std::log(scale) + 1.0; };
  const double mscale = keys.number(reader, "mscale", 0.0), mscale_all_dim = keys.number(reader, "mscale_all_dim", 0.0);
  const bool has_both = mscale > 0 && mscale_all_dim > 0;
  return keys.number(reader, "attention_factor",
                     has_both ? magnitude(factor, mscale) / magnitude(factor, mscale_all_dim) : magnitude(factor, 1.0));
}

}  // namespace

nn::RopeConfig read_rope(ConfigReader& reader, int64_t max_position_embeddings) {
  const RopeKeys keys = find_rope_keys(reader);
  nn::RopeConfig rope;
  rope.theta = number_anywhere(reader, keys, "rope_theta", 10000.0);
  if (number_anywhere(reader, keys, "partial_rotary_factor", 1.0) != 1.0) {
    throw ConfigError("{}: partial_rotary_factor must be 1: rotating a part of each head is not supported", reader.where());
  }
  const json type = keys.values.contains("rope_type") ? keys.values["rope_type"] : keys.values.value("type", json("default"));
  const double original = number_anywhere(reader, keys, "original_max_position_embeddings", static_cast<double>(max_position_embeddings));
  std::vector<std::string_view> known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"};
  auto also = [&](std::initializer_list<std::string_view> more) { known.insert(known.end(), more); };
  if (type == "default") {
    also({"factor", "original_max_position_embeddings"});  // without meaning there, but some checkpoints leave them
  } else if (type == "linear") {
    also({"factor", "original_max_position_embeddings"});
    rope.scaling = nn::RopeScaling::linear;
    rope.factor = keys.number(reader, "factor", std::nullopt);
  } else if (type == "llama3") {
    also({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"});
    rope.scaling = nn::RopeScaling::llama3;
    rope.factor = keys.number(reader, "factor", std::nullopt);
    rope.low_freq_factor = keys.number(reader, "low_freq_factor", std::nullopt);
    rope.high_freq_factor = keys.number(reader, "high_freq_factor", std::nullopt);
    rope.original_context = original;
    if (rope.high_freq_factor <= rope.low_freq_factor) reader.refuse(keys.name, "high_freq_factor must be above low_freq_factor");
  } else if (type == "yarn") {
    also({"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim",
          "truncate"});
    rope.scaling = nn::RopeScaling::yarn;
    rope.original_context = original;
    rope.factor = keys.number(reader, "factor", static_cast<double>(max_position_embeddings) / original);
    rope.beta_fast = keys.number(reader, "beta_fast", 32.0);
    rope.beta_slow = keys.number(reader, "beta_slow", 1.0);
    const auto truncate = keys.values.find("truncate");
    if (truncate != keys.values.end() && !truncate->is_boolean()) {
      throw ConfigError("{}: {}.truncate = {} must be true or false", reader.where(), keys.name, truncate->dump());
    }
    rope.truncate = truncate == keys.values.end() || truncate->get<bool>();
    rope.attention_factor = yarn_attention_factor(reader, keys, rope.factor);
  } else {
    reader.refuse(keys.name, "the supported types are default, linear, llama3 and yarn");
  }
  check_rope_key_names(reader, keys, known);
  return rope;
}

}  // namespace distil_xlstm::teacher
