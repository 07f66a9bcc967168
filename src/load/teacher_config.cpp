#include "load/teacher_config.h"

#include "base/error.h"
#include "base/file.h"
#include "io/model_files.h"

namespace distil_xlstm::load {
namespace {

json read_config(const std::string& model) {
  const fs::path path = model;
  if (fs::is_regular_file(path) && path.extension() == ".json") return read_json(path);
  if (fs::is_regular_file(path / "config.json")) return read_json(path / "config.json");
  try {
    const auto files = io::open_model(model);
    return files.kind == io::ModelKind::student ? json::object() : files.config;
  } catch (const ConfigError& error) {
    throw ConfigError("{}; for a plan its config.json is enough: --teacher path/to/config.json", error.what());
  }
}

}  // namespace

json read_teacher_config(const std::string& model) {
  if (model.empty()) throw ConfigError("teacher.model is not set: name a model, or its config.json, with --teacher");
  const json config = read_config(model);
  if (!config.contains("model_type") || config.contains("distil_xlstm"))
    throw ConfigError("teacher.model = \"{}\": is a student or no model's configuration, a transformer is needed", model);
  return config;
}

teacher::TeacherShape read_teacher_shape(const std::string& model) {
  const json config = read_teacher_config(model);
  std::optional<io::ModelFiles> files;
  try {
    files = io::open_model(model);
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): a configuration alone
  }
  return files && files->kind == io::ModelKind::transformer ? teacher::teacher_shape(*files) : teacher::teacher_shape(config);
}

}  // namespace distil_xlstm::load
