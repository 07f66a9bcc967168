// What can be said of settings before anything is opened.
#pragma once

#include "config/toml.h"
#include "student/shape.h"

namespace distil_xlstm::train {

// That the names which registries keep are known: kinds, sources, methods, schedules. Throws one ConfigError with all that are not, a line
// each, and where each was said: `run.toml:14: distill.method = "deta": allowed are ...`.
void check_names(const config::LoadedConfig& loaded);

// The same, that a run names its teacher and its text, and that [distill] does not contradict itself.
void check_settings(const config::LoadedConfig& loaded);

// Warns of what was said, other than its default, and has no effect with this method or this kind of student. Presets say more than each
// needs, and are left out.
void warn_of_ignored_keys(const config::LoadedConfig& loaded);

// That the student and its micro-batches have what the method's stages train, compare and start from. Throws ConfigError that names the
// method.
void check_stages(const config::RunConfig& config, const student::StudentShape& student);

}  // namespace distil_xlstm::train
