#include "train/run_record.h"

#include "base/error.h"
#include "base/log.h"
#include "config/toml.h"

namespace distil_xlstm::train {

void RunRecord::begin(const config::RunConfig& config, const SharedSources& sources) {
  description_["status"] = "starting";
  write_json(run_ / "run.json", description_);
  write_settings(config);
  description_["files"] = write_shared_files(run_, sources);
}

void RunRecord::resume(const SharedSources& sources) {
  const auto path = run_ / "run.json";
  const json records = get_or<json>(read_json(path), "files", json::object(), path.string());
  description_["files"] = restore_shared_files(run_, records, sources);
}

void RunRecord::write_settings(const config::RunConfig& config) const {
  write_file_atomic(run_ / "settings.toml", config::to_toml(config));
}

void RunRecord::write_status(const std::string& status, const json& progress) {
  if (!fs::exists(run_ / "run.json")) throw IoError("{}: the run's directory was removed or renamed while it was trained", run_.string());
  description_["status"] = status;
  description_["progress"] = progress;
  write_json(run_ / "run.json", description_);
}

void RunRecord::write_failure(const json& progress) {
  try {
    if (fs::exists(run_ / "run.json")) write_status("failed", progress);
  } catch (const std::exception& error) {
    spdlog::warn("{}", error.what());
  }
}

}  // namespace distil_xlstm::train
