#include "eval/validation.h"

#include <cmath>

#include "base/error.h"
#include "base/signals.h"
#include "nn/finite.h"
#include "ops/head_loss.h"

namespace distil_xlstm::eval {

DeviceBatch to_device(const data::Batch& batch, at::Device device) {
  const std::vector<int64_t> shape = {batch.num_rows, batch.context_length};
  // From pinned memory the copy waits for nothing that a GPU still has to do.
  const auto moved = [&](const auto& values, at::ScalarType stored, at::ScalarType wanted) {
    const auto view = at::from_blob(const_cast<void*>(static_cast<const void*>(values.data())), shape, at::TensorOptions(stored));
    const Tensor host = at::empty(shape, at::TensorOptions(wanted).pinned_memory(!device.is_cpu())).copy_(view);
    return device.is_cpu() ? host : host.to(device, /*non_blocking=*/true);
  };
  bool has_inner_starts = false;
  for (size_t i = 0; i < batch.is_start.size(); ++i)
    has_inner_starts = has_inner_starts || (batch.is_start[i] != 0 && i % static_cast<size_t>(batch.context_length) != 0);
  return {moved(batch.tokens, at::kInt, at::kLong), moved(batch.targets, at::kInt, at::kLong), moved(batch.mask, at::kByte, at::kByte),
          has_inner_starts ? moved(batch.is_start, at::kByte, at::kByte) : Tensor()};
}

namespace {

// Student and teacher on the same targets, whose sums stay on the device.
class Comparison {
 public:
  Comparison(nn::LanguageModel& student, nn::LanguageModel& teacher, const ops::HeadRows& rows)
      : student_(student), teacher_(teacher), rows_(rows), teacher_head_VD_(ops::product_head(rows.of_head(teacher.head_weight()))) {
    // The same tensor for both where they share it.
    student_head_VD_ = student.head_weight().is_alias_of(teacher.head_weight()) ? teacher_head_VD_
                                                                                : ops::product_head(rows.of_head(student.head_weight()));
  }

  Tensor sums(const DeviceBatch& batch) const {
    ops::HeadLossOptions options;
    options.with_gradient = false;
    const auto student_hidden_BSD = student_.forward_hidden(batch.tokens_BS, batch.is_start_BS);
    const auto teacher_hidden_BSD = teacher_.forward_hidden(batch.tokens_BS, batch.is_start_BS);
    return ops::head_losses(student_hidden_BSD, student_head_VD_, teacher_hidden_BSD, teacher_head_VD_, rows_.of_ids(batch.targets_BS),
                            batch.mask_BS, options, 1.0)
        .sums;
  }

 private:
  nn::LanguageModel &student_, &teacher_;
  const ops::HeadRows& rows_;
  Tensor teacher_head_VD_, student_head_VD_;
};

// Looks for the batch whose sums are not finite, and says why.
void explain(ValidationResult& result, nn::LanguageModel& student, nn::LanguageModel& teacher, data::Loader& loader,
             const ValidationOptions& options, const Comparison& comparison) {
  data::Batch batch;
  loader.begin_epoch(0);
  while (loader.next(batch)) {
    const auto on_device = to_device(batch, student.device());
    const Tensor sums = comparison.sums(on_device).to(at::kCPU);
    const auto is_finite = [&](int index) { return std::isfinite(sums[index].item<double>()); };
    const auto why = [&](nn::LanguageModel& model, const std::string& name, const char* key) {
      return nn::why_not_finite(model, name, key, on_device.tokens_BS, on_device.is_start_BS);
    };
    if (!is_finite(ops::kTeacherNll)) result.teacher_problem = why(teacher, options.teacher_name, "teacher.precision");
    if (!is_finite(ops::kCe)) result.student_problem = why(student, options.student_name, "train.precision");
    if (!result.teacher_problem.empty() || !result.student_problem.empty()) return;
  }
}

}  // namespace

ValidationResult validate(nn::LanguageModel& student, nn::LanguageModel& teacher, data::Loader& loader, const ValidationOptions& options) {
  const at::NoGradGuard no_grad;
  const Comparison comparison(student, teacher, options.head_rows);
  ValidationResult result;
  Tensor sums;
  data::Batch batch;
  loader.begin_epoch(0);
  while ((options.max_tokens == 0 || result.target_tokens < options.max_tokens) && loader.next(batch)) {
    throw_if_interrupted();
    const Tensor more = comparison.sums(to_device(batch, student.device()));
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
