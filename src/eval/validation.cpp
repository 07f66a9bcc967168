#include "eval/validation.h"

#include <cmath>

#include "base/error.h"
#include "base/signals.h"
#include "nn/finite.h"
#include "ops/head_loss.h"

namespace distil_xlstm::eval {

namespace {

// Student and teacher on the same targets, whose sums stay on the device.
class Comparison {
 public:
  Comparison(nn::LanguageModel& student, teacher::TeacherSource& teacher, const ops::HeadRows& rows)
      : student_(student), teacher_(teacher), rows_(rows), teacher_head_VD_(ops::product_head(rows.of_head(teacher.head()))) {
    // The same tensor for both where they share it.
    student_head_VD_ =
        student.head_weight().is_alias_of(teacher.head()) ? teacher_head_VD_ : ops::product_head(rows.of_head(student.head_weight()));
  }

  Tensor sums(const nn::DeviceBatch& batch) const {
    const auto student_hidden_BSD = student_.forward_hidden(batch.tokens_BS, batch.is_start_BS);
    const auto teacher_hidden_BSD = teacher_.signals(batch, {}).last_hidden_BSD;
    return ops::head_losses(student_hidden_BSD, student_head_VD_, teacher_hidden_BSD, teacher_head_VD_, rows_.of_ids(batch.targets_BS),
                            batch.mask_BS, {}, 1.0, {.with_gradient = false})
        .sums;
  }

 private:
  nn::LanguageModel& student_;
  teacher::TeacherSource& teacher_;
  const ops::HeadRows& rows_;
  Tensor teacher_head_VD_, student_head_VD_;
};

// Looks for the batch whose sums are not finite, and says why.
void explain(ValidationResult& result, nn::LanguageModel& student, teacher::TeacherSource& teacher, data::Loader& loader,
             const ValidationOptions& options, const Comparison& comparison) {
  data::Batch batch;
  loader.begin_epoch(0);
  while (loader.next(batch)) {
    const auto on_device = nn::to_device(batch, student.device());
    const Tensor sums = comparison.sums(on_device).to(at::kCPU);
    const auto is_finite = [&](int index) { return std::isfinite(sums[index].item<double>()); };
    const auto why = [&](nn::LanguageModel& model, const std::string& name, const char* key) {
      return nn::why_not_finite(model, name, key, on_device.tokens_BS, on_device.is_start_BS);
    };
    if (!is_finite(ops::kTeacherNll)) {
      result.teacher_problem = teacher.model() != nullptr ? why(*teacher.model(), options.teacher_name, "teacher.precision")
                                                          : options.teacher_name + ": its signals are not finite";
    }
    if (!is_finite(ops::kCe)) result.student_problem = why(student, options.student_name, "train.precision");
    if (!result.teacher_problem.empty() || !result.student_problem.empty()) return;
  }
}

}  // namespace

ValidationResult validate(nn::LanguageModel& student, teacher::TeacherSource& teacher, data::Loader& loader,
                          const ValidationOptions& options) {
  const at::NoGradGuard no_grad;
  const Comparison comparison(student, teacher, options.head_rows);
  ValidationResult result;
  Tensor sums;
  data::Batch batch;
  loader.begin_epoch(0);
  while ((options.max_tokens == 0 || result.target_tokens < options.max_tokens) && loader.next(batch)) {
    throw_if_interrupted();
    const Tensor more = comparison.sums(nn::to_device(batch, student.device()));
    sums = sums.defined() ? sums + more : more;
    result.target_tokens += batch.num_targets;
  }
  if (result.target_tokens == 0) throw DataError("validation data has no target tokens: give other text in data.validation");
  const auto host = sums.to(at::kCPU);
  const double* values = host.const_data_ptr<double>();
  const auto count = static_cast<double>(result.target_tokens);
  result.ce_loss = values[ops::kCe] / count;
  result.teacher_nll = values[ops::kTeacherNll] / count;
  result.mean_kl = values[ops::kKlAt1] / count;
  result.agreement = values[ops::kAgreement] / count;
  if (!std::isfinite(result.ce_loss) || !std::isfinite(result.teacher_nll)) explain(result, student, teacher, loader, options, comparison);
  return result;
}

json ValidationResult::to_json() const {
  return {{"target_tokens", target_tokens},
          {"ce_loss", ce_loss},
          {"perplexity", std::exp(ce_loss)},
          {"teacher_nll", teacher_nll},
          {"teacher_perplexity", std::exp(teacher_nll)},
          {"perplexity_ratio", std::exp(ce_loss - teacher_nll)},
          {"mean_kl", mean_kl},
          {"agreement", agreement}};
}

ValidationResult ValidationResult::from_json(const json& value, const std::string& where) {
  // A number that was not finite is null in JSON.
  const auto number = [&](const char* key) { return get_or<double>(value, key, std::nan(""), where); };
  return {require<int64_t>(value, "target_tokens", where),
          number("ce_loss"),
          number("teacher_nll"),
          number("mean_kl"),
          number("agreement"),
          "",
          ""};
}

}  // namespace distil_xlstm::eval
