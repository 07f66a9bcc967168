// The paper's student as a kind: StudentConfig behind the interface of all students.
#pragma once

#include "student/paper/config.h"
#include "student/registry.h"
#include "student/shape.h"

namespace distil_xlstm::student {

class PaperShape final : public StudentShape {
 public:
  explicit PaperShape(StudentConfig config) : config_(std::move(config)) {}

  [[nodiscard]] const StudentConfig& config() const { return config_; }

  [[nodiscard]] std::string_view kind() const override { return "paper"; }
  [[nodiscard]] int64_t num_layers() const override { return config_.num_blocks; }
  [[nodiscard]] int64_t hidden_size() const override { return config_.embedding_dim; }
  [[nodiscard]] int64_t vocab_size() const override { return config_.vocab_size; }
  [[nodiscard]] int64_t num_trainable_parameters() const override;
  [[nodiscard]] std::vector<KeptValues> kept_values() const override;
  [[nodiscard]] int64_t state_bytes(int64_t num_tokens, at::ScalarType compute_dtype) const override;
  [[nodiscard]] std::vector<ParameterInfo> parameters() const override;
  [[nodiscard]] std::string description() const override;
  [[nodiscard]] json to_json(std::string_view layout) const override;
  [[nodiscard]] std::vector<std::string> differences(const StudentShape& found) const override;
  [[nodiscard]] std::unique_ptr<Student> fresh(const StudentPlace& place, uint64_t seed) const override;

 private:
  StudentConfig config_;
};

// Throws ConfigError where the shape is of another kind.
const StudentConfig& paper_config(const StudentShape& shape);

StudentKind paper_kind();

}  // namespace distil_xlstm::student
