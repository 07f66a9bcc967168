// Checks of [distill] that need nothing loaded.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.h"

namespace distil_xlstm::distill {

// Throws ConfigError "distill.KEY = "x": allowed are a, b (did you mean 'a'?)" unless `name` is allowed.
void check_name(const std::string& name, const std::vector<std::string>& allowed, const std::string& key);

// Names and ranges of all keys, whether the method uses them or not. Throws ConfigError.
void check_settings(const config::DistillSettings& settings);

// The names of [distill.alignment]; depths are the Alignment's to check. Throws ConfigError.
void check_alignment_settings(const config::AlignmentSettings& settings);

}  // namespace distil_xlstm::distill
