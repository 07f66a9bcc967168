// Validation inside a run: student and teacher on the same targets, by the same losses as training but without gradients.
#pragma once

#include "base/json.h"
#include "data/loader.h"
#include "nn/language_model.h"
#include "ops/head_rows.h"
#include "teacher/source.h"

namespace distil_xlstm::eval {

// Means over targets, in nats.
struct ValidationResult {
  int64_t target_tokens = 0;
  double ce_loss = 0.0;  // the student's negative log-likelihood: the metric that "best" means
  double teacher_nll = 0.0;
  double mean_kl = 0.0;    // KL(teacher || student) at T = 1
  double agreement = 0.0;  // share of targets where both have the same most likely token
  // Why a model's figures are not finite (nn/finite.h), empty where they are. Not part of the JSON.
  std::string teacher_problem, student_problem;

  // Also perplexity, teacher_perplexity and perplexity_ratio.
  [[nodiscard]] json to_json() const;
  static ValidationResult from_json(const json& value, const std::string& where);
};

struct ValidationOptions {
  int64_t max_tokens = 0;                                                  // targets at most, 0: all
  ops::HeadRows head_rows;                                                 // that the distributions run over
  std::string student_name = "the student", teacher_name = "the teacher";  // for messages
};

// Reads `loader` from the start of its epoch 0 in its order. Throws DataError when it has no targets, Interrupted after a signal that a
// SignalGuard caught.
ValidationResult validate(nn::LanguageModel& student, teacher::TeacherSource& teacher, data::Loader& loader,
                          const ValidationOptions& options = {});

}  // namespace distil_xlstm::eval
