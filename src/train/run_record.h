// What a run's directory says of it beside its checkpoints: run.json, settings.toml and the files that all checkpoints share.
#pragma once

#include <string>

#include "base/file.h"
#include "base/json.h"
#include "config/run_config.h"
#include "train/shared_files.h"

namespace distil_xlstm::train {

class RunRecord {
 public:
  // `description` is run.json without status, progress and files.
  RunRecord(fs::path run, json description) : run_(std::move(run)), description_(std::move(description)) {}

  // Of a new run. run.json comes first: it makes the directory a run.
  void begin(const config::RunConfig& config, const SharedSources& sources);
  // Of a run that goes on: files that are missing or damaged are written again.
  void resume(const SharedSources& sources);
  // The settings that a resumed run goes on with, once its checkpoint was taken with them.
  void write_settings(const config::RunConfig& config) const;

  // Throws IoError where the run's directory is gone: writing would make the directory of a run that is no more.
  void write_status(const std::string& status, const json& progress);
  // The same of a run that fails for another reason: what goes wrong here is a warning.
  void write_failure(const json& progress);

 private:
  fs::path run_;
  json description_;
};

}  // namespace distil_xlstm::train
