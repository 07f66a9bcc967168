#include "load/model.h"

#include "base/error.h"
#include "base/log.h"
#include "ops/device.h"
#include "student/registry.h"
#include "teacher/teacher.h"

namespace distil_xlstm::load {

const Tokenizer& LoadedModel::require_tokenizer() const {
  if (!tokenizer) throw DataError("{}: no tokenizer.json beside the model: copy the one it was trained with there", files.path.string());
  return *tokenizer;
}

LoadedModel load_model(const std::string& name_or_path, const std::string& device_name, const std::string& precision) {
  const at::Device device = ops::parse_device(device_name);
  const at::ScalarType dtype = ops::parse_precision(precision, device);
  LoadedModel loaded{.files = io::open_model(name_or_path), .model = nullptr, .tokenizer = std::nullopt};
  if (loaded.files.kind == io::ModelKind::student) {
    auto student =
        student::load_student(loaded.files, {.device = device, .parameter_dtype = dtype == at::kDouble ? at::kDouble : at::kFloat});
    student->set_compute_dtype(dtype);
    if (!student->shape().has_constant_state()) spdlog::info("{}: {}", name_or_path, student->description());
    loaded.model = std::move(student);
  } else {
    loaded.model = teacher::load_teacher(loaded.files, device, dtype);
  }
  if (loaded.files.tokenizer) loaded.tokenizer.emplace(*loaded.files.tokenizer);
  return loaded;
}

std::optional<int64_t> num_positions(const LoadedModel& loaded) {
  if (loaded.files.kind == io::ModelKind::student) return std::nullopt;
  return teacher::teacher_shape(loaded.files.config).max_position_embeddings;
}

bool warn_beyond_positions(const LoadedModel& loaded, int64_t num_tokens, std::string_view what) {
  const auto positions = num_positions(loaded);
  if (!positions || num_tokens <= *positions) return false;
  spdlog::warn("{}: {} tokens are more than the {} positions that {} was made for", what, num_tokens, *positions, loaded.files.name);
  return true;
}

}  // namespace distil_xlstm::load
