// A teacher's configuration without its weights: what `plan` and `bench` need.
#pragma once

#include <string>

#include "base/json.h"

namespace distil_xlstm::commands {

// Of a config.json, a directory with one, or any model of `--model`. Throws ConfigError for a student or what is no model.
json read_teacher_config(const std::string& model);

}  // namespace distil_xlstm::commands
