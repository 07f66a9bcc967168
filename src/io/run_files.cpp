#include "io/run_files.h"

#include <algorithm>

#include "base/error.h"
#include "io/checksums.h"
#include "io/safetensors.h"

namespace distil_xlstm::io {
namespace {

constexpr const char* kCheckpointFormat = "distil-xlstm checkpoint 1";
constexpr std::string_view kStepPrefix = "step-";

// Another program may have a file of this name.
bool is_trainer_json(const fs::path& path) {
  try {
    const json trainer = read_json(path);
    return trainer.is_object() && trainer.contains("format") && trainer.contains("checksum");
  } catch (const DataError&) {
    return true;  // cut or garbled: read_trainer_json says so
  }
}

}  // namespace

bool is_checkpoint_name(const std::string& name) {
  return name.size() == kStepPrefix.size() + 8 && name.starts_with(kStepPrefix) &&
         name.find_first_not_of("0123456789", kStepPrefix.size()) == std::string::npos;
}

std::vector<fs::path> list_checkpoints(const fs::path& run) {
  std::vector<fs::path> found;
  if (!fs::is_directory(run / "checkpoints")) return found;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
    if (entry.is_directory() && is_checkpoint_name(entry.path().filename().string())) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

json read_trainer_json(const fs::path& checkpoint, const std::vector<std::string>& files) {
  const fs::path path = checkpoint / "trainer.json";
  const std::string where = path.string();
  if (!fs::is_regular_file(path))
    throw DataError("{}: missing: {} is no checkpoint that training can go on from", where, checkpoint.string());
  const json trainer = read_json(path);
  if (!trainer.is_object() || get_or<std::string>(trainer, "format", "", where) != kCheckpointFormat) {
    throw DataError("{}: its format is not \"{}\": another version of the program wrote it", where, kCheckpointFormat);
  }
  if (require<std::string>(trainer, "checksum", where) != own_checksum(trainer))
    throw DataError("{}: its checksum does not fit: the content is damaged", where);
  const auto records = require<json>(trainer, "files", where);
  for (const std::string& name : files) check_file(checkpoint / name, require<json>(records, name, where), "trainer.json");
  return trainer;
}

const std::vector<std::string>& student_files() {
  static const std::vector<std::string> names = {"model.safetensors", "config.json"};
  return names;
}

std::optional<fs::path> newest_whole_checkpoint(const fs::path& damaged, const std::vector<std::string>& files) {
  auto all = list_checkpoints(fs::absolute(damaged).lexically_normal().parent_path().parent_path());
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    if (it->filename() == damaged.filename()) continue;
    try {
      read_trainer_json(*it, files);
      return damaged.parent_path() / it->filename();
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch): this one is no better
    }
  }
  return std::nullopt;
}

void check_student_files(const fs::path& directory) {
  if (!fs::exists(directory / "trainer.json") || !is_trainer_json(directory / "trainer.json")) return;
  try {
    read_trainer_json(directory, student_files());
  } catch (const Error& error) {
    if (const auto whole = newest_whole_checkpoint(directory, student_files()))
      throw DataError("{}; the newest checkpoint that is whole is {}: name that one", error.what(), whole->string());
    throw;
  }
}

void check_run_files(const fs::path& run, const std::vector<std::string>& names) {
  const fs::path path = run / "run.json";
  if (!fs::is_regular_file(path)) return;
  const json description = read_json(path);
  if (!description.is_object() || !description.contains("files") || !description["files"].is_object()) return;
  for (const std::string& name : names) {
    const auto record = description["files"].find(name);
    if (record == description["files"].end()) continue;
    try {
      check_file(run / name, *record, "run.json");
    } catch (const DataError& error) {
      throw DataError("{}; `distil-xlstm distill --resume --output {}` writes it again from the teacher", error.what(), run.string());
    }
  }
}

ModelFiles open_checkpoint(const fs::path& checkpoint) {
  ModelFiles model{.kind = ModelKind::student, .path = checkpoint, .name = checkpoint.string()};
  model.config = read_json(checkpoint / "config.json");
  model.weights = open_safetensors_files({checkpoint / "model.safetensors"}, checkpoint.string());
  return model;
}

}  // namespace distil_xlstm::io
