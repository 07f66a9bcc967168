// What a run that fails says: what happened, what is left, how to go on.
#pragma once

#include <string>

#include "base/file.h"
#include "config/run_config.h"
#include "ops/tensor.h"
#include "train/step.h"

namespace distil_xlstm::train {

// Why a step was skipped.
std::string why_skipped(const StepResult& result);

// What is left after a write that failed, such as on a full disk.
std::string what_is_kept(const fs::path& run);

// After steps that could not be taken: what there is, and the settings that may then be others.
std::string how_to_go_on(const fs::path& run, const config::RunConfig& config, const distill::Stage& stage, at::ScalarType compute_dtype,
                         bool is_teachers_problem = false);

}  // namespace distil_xlstm::train
