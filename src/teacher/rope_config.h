// The rotary embedding of a config.json: `rope_theta` with `rope_scaling`, or `rope_parameters`.
#pragma once

#include "teacher/config.h"

namespace distil_xlstm::teacher {

// Types default, linear, llama3 and yarn; another type, an unknown key in the object, a part of each head (`partial_rotary_factor`) or
// parameters by layer type are a ConfigError.
nn::RopeConfig read_rope(ConfigReader& reader, int64_t max_position_embeddings);

}  // namespace distil_xlstm::teacher
