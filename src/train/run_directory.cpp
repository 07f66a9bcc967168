#include "train/run_directory.h"

#include <algorithm>
#include <array>
#include <system_error>

#include "base/error.h"
#include "base/output_directory.h"
#include "base/temporary_path.h"
#include "data/prepare_directory.h"
#include "train/checkpoint.h"

namespace distil_xlstm::train {
namespace {

// "settings.toml" or "run.json" alone say nothing: other programs have files of those names.
bool is_run(const fs::path& directory) {
  return !run_status(directory).empty();
}

// What a run leaves that ended while its text was prepared, before there was any: shards without a run are what a user prepared.
bool is_begun_text(const fs::path& entry) {
  const std::string name = entry.filename().string();
  const auto is_name = [&](const std::string& known) { return name == known || name == known + kNewSuffix; };
  if (!fs::is_directory(entry) || !(is_name(kData) || is_name(kValidationData))) return false;
  try {
    return check_output_directory(entry, name, data::prepared_text()) == OutputState::empty;
  } catch (const Error&) {
    return false;
  }
}

// The files of `prepare` and nothing else; the directory where it is then empty.
void remove_text(const fs::path& directory) {
  if (!fs::is_directory(directory)) return;
  data::remove_prepared(directory);
  std::vector<fs::path> temporary;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (is_temporary_name(entry.path().filename().string())) temporary.push_back(entry.path());
  }
  for (const auto& path : temporary) fs::remove_all(path);
  if (fs::is_empty(directory)) fs::remove(directory);
}

// Whether the run that lies there prepared its text into `name`: else these are a user's shards. (Earlier versions did not note it.)
bool prepared_it(const fs::path& run, const std::string& name) {
  const auto path = run / "run.json";
  if (run_status(run).empty()) return true;
  const json description = read_json(path);
  if (!description.contains("prepared")) return true;
  const auto names = require<std::vector<std::string>>(description, "prepared", path.string());
  return std::ranges::find(names, name) != names.end();
}

}  // namespace

std::string run_status(const fs::path& directory) {
  const auto path = directory / "run.json";
  if (!fs::is_regular_file(path)) return "";
  try {
    const json description = read_json(path);
    if (!description.is_object() || get_or<std::string>(description, "format", "", path.string()) != kRunFormat) return "";
    return get_or<std::string>(description, "status", "unknown", path.string());
  } catch (const DataError&) {
    return "";
  }
}

bool check_new_run(const fs::path& run, bool overwrite, const std::vector<fs::path>& inputs, const std::vector<fs::path>& models) {
  const std::string shown = fmt::format("output = \"{}\"", run.string());
  const OutputKind kind = {.name = "run", .is_result = is_run, .is_leftover = is_begun_text};
  if (check_output_directory(run, shown, kind, inputs, models) == OutputState::empty) return false;
  if (overwrite) return true;
  if (run_status(run) != "starting" || !list_checkpoints(run).empty()) {
    throw ConfigError("{}: holds a run already: --resume goes on with it, --overwrite replaces it, --output names another place", shown);
  }
  return true;
}

BegunRun::BegunRun(const fs::path& run) : run_(run) {
  write_json(run_ / "run.json", {{"format", kRunFormat}, {"program_version", DISTIL_XLSTM_VERSION}, {"status", "starting"}});
}

BegunRun::~BegunRun() {
  std::error_code ignored;
  for (const std::string name : {kData, kValidationData}) {
    if (fs::exists(run_ / name, ignored) || fs::exists(run_ / (name + kNewSuffix), ignored)) return;
  }
  fs::remove(run_ / "run.json", ignored);
}

void check_makes_way(const fs::path& directory) {
  if (!fs::is_directory(directory)) return;
  if (!prepared_it(directory.parent_path(), directory.filename().string())) {
    throw ConfigError(
        "{}: holds shards that the run there did not prepare, so other text cannot take their place: move them away, or choose "
        "another output",
        directory.string());
  }
  const std::string stranger = data::first_not_prepared(directory);
  if (!stranger.empty())
    throw ConfigError("{}: holds {}, which is not the run's, so other text cannot take its place: move it away, or choose another output",
                      directory.string(), stranger);
}

void make_run_directory(const fs::path& run, const std::vector<std::string>& prepared, bool replaces) {
  for (const char* name : {kData, kValidationData}) {
    const auto place = run / name, anew = run / (std::string(name) + kNewSuffix);
    const bool is_used = std::find(prepared.begin(), prepared.end(), name) != prepared.end();
    const bool is_new = std::find(prepared.begin(), prepared.end(), anew.filename()) != prepared.end();
    if (!is_used && (is_new || prepared_it(run, name))) remove_text(place);
    if (!is_new) remove_text(anew);
    if (is_new) fs::rename(anew, place);
  }
  if (!replaces) return;
  remove_checkpoints(run);
  constexpr std::array kFiles = {"settings.toml",          "metrics.jsonl",  "metrics.jsonl.damaged", "frozen.safetensors",
                                 "frozen.safetensors.tmp", "tokenizer.json", "tokenizer_config.json", "generation_config.json"};
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(run)) {
    const std::string name = entry.path().filename().string();
    const bool is_ours = std::find(kFiles.begin(), kFiles.end(), name) != kFiles.end() || name.starts_with("events.out.tfevents.");
    if (is_ours && entry.is_regular_file()) files.push_back(entry.path());
  }
  for (const auto& path : files) fs::remove(path);
}

}  // namespace distil_xlstm::train
