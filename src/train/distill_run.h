// A whole distillation run, from its settings: data, teacher, student, trainer, and the run's directory around them.
#pragma once

#include "config/toml.h"
#include "train/trainer.h"

namespace distil_xlstm::train {

struct DistillRequest {
  config::LoadedConfig config;
  bool resume = false;           // go on from the last checkpoint in config.output
  bool overwrite = false;        // replace a run that lies there
  int64_t stop_after_steps = 0;  // 0: to the end
};

// Throws ConfigError before the teacher's weights load when settings are wrong or the output is taken; Interrupted after a signal, with a
// checkpoint. A run that `overwrite` replaces stays as it is until training of the new one can begin.
TrainStatus run_distillation(const DistillRequest& request);

// Settings of the run in `directory`, with `overrides` on top. Throws DataError when there is no run.
config::LoadedConfig saved_settings(const fs::path& directory, const std::vector<config::Override>& overrides);

// The settings that must be as they were for a resumed run to be the same run: "key: was A, is B", one each. Which may
// be others, and which only after a failure, says config/settings.h.
std::vector<std::string> changed_settings(const config::RunConfig& saved, const config::RunConfig& now, bool has_failed = false);

}  // namespace distil_xlstm::train
