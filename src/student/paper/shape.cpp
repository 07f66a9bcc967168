#include "student/paper/shape.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "student/paper/mixers.h"
#include "student/paper/student.h"

namespace distil_xlstm::student {

int64_t PaperShape::num_trainable_parameters() const {
  return student::num_trainable_parameters(config_);
}

std::vector<KeptValues> PaperShape::kept_values() const {
  std::vector<KeptValues> values;
  for (const auto& mixer : make_mixers(config_)) values.push_back(mixer->kept_values());
  return values;
}

int64_t PaperShape::state_bytes(int64_t num_tokens, at::ScalarType compute_dtype) const {
  int64_t sum = 0;
  for (const auto& mixer : make_mixers(config_)) sum += mixer->state_bytes(num_tokens, compute_dtype);
  return sum;
}

std::vector<ParameterInfo> PaperShape::parameters() const {
  return parameter_infos(parameter_specs(config_));
}

std::string PaperShape::description() const {
  int64_t num_slstm = 0, num_mlstm = 0;
  for (int64_t block = 0; block < config_.num_blocks; ++block) {
    num_slstm += config_.mixer_at(block) == "slstm" ? 1 : 0;
    num_mlstm += config_.mixer_at(block) == "mlstm" ? 1 : 0;
  }
  const int64_t num_others = config_.num_blocks - num_slstm - num_mlstm;
  return fmt::format("{} {} ({} sLSTM, {} mLSTM{}), {} {}, inner width {}, feed-forward {}", config_.num_blocks,
                     config_.num_blocks == 1 ? "block" : "blocks", num_slstm, num_mlstm,
                     num_others > 0 ? fmt::format(", {} of other mixers", num_others) : "", config_.mlstm_num_heads,
                     config_.mlstm_num_heads == 1 ? "head" : "heads", config_.mlstm_inner_dim(), config_.ffn_dim());
}

json PaperShape::to_json(std::string_view layout) const {
  return config_.to_json(layout.empty() ? "cuda" : std::string(layout));
}

// How long rows are, how they are cut into chunks and how fresh weights are drawn does not matter.
std::vector<std::string> PaperShape::differences(const StudentShape& found) const {
  if (found.kind() != kind()) return {fmt::format("  kind: [student] says {}, there it is {}", kind(), found.kind())};
  StudentConfig same = paper_config(found);
  same.context_length = config_.context_length;
  same.chunk_size = config_.chunk_size;
  same.bias_init = config_.bias_init;
  same.recurrent_weight_init = config_.recurrent_weight_init;
  const json here = config_.to_json(), there = same.to_json();
  std::vector<std::string> lines;
  for (const auto& change : json::diff(here, there)) {
    const json::json_pointer at(change["path"].get<std::string>());
    const auto shown = [&](const json& config) { return config.contains(at) ? config[at].dump() : "nothing"; };
    lines.push_back(
        fmt::format("  {}: [student] and the teacher give {}, there it is {}", at.to_string().substr(1), shown(here), shown(there)));
  }
  return lines;
}

std::unique_ptr<Student> PaperShape::fresh(const StudentPlace& place, uint64_t seed) const {
  return PaperStudent::create(config_, place.embedding_VD, place.head_VD, seed, place.device, place.parameter_dtype);
}

const StudentConfig& paper_config(const StudentShape& shape) {
  const auto* paper = dynamic_cast<const PaperShape*>(&shape);
  if (paper == nullptr) throw ConfigError("student.kind = \"{}\": only the kind \"paper\" can do this", shape.kind());
  return paper->config();
}

StudentKind paper_kind() {
  return {.derive = [](const config::StudentSettings& settings, const teacher::TeacherShape& teacher,
                       int64_t context_length) { return std::make_unique<PaperShape>(derive_student(settings, teacher, context_length)); },
          .read = [](const json& config,
                     const std::string& where) { return std::make_unique<PaperShape>(StudentConfig::from_json(config, where)); },
          .load =
              [](const io::ModelFiles& files, const StudentPlace& place) {
                return PaperStudent::load(files, place.device, place.parameter_dtype, place.embedding_VD, place.head_VD);
              },
          .ignored_keys = {"feature_factor", "rope", "mixers", "attention_window", "attention_sinks", "gate_init", "rope_max_wavelength",
                           "value_init", "normalizer", "head_norm"},
          .python_form =
              [](const StudentShape&) {
                return PythonForm{.files = {"load_student.py"},
                                  .library = "xlstm",
                                  .opening = "python {}/load_student.py",
                                  .example =
                                      "from load_student import load_student  # of this directory; needs the package xlstm\n"
                                      "model, tokenizer = load_student(\".\")\n"
                                      "logits = model(token_ids)  # (batch, sequence) -> (batch, sequence, vocabulary)\n"};
              }};
}

}  // namespace distil_xlstm::student
