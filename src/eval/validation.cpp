#include "eval/validation.h"

#include <cmath>

#include "base/error.h"
#include "base/signals.h"
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

ValidationResult validate(nn::LanguageModel& student, nn::LanguageModel& teacher, data::Loader& loader, int64_t max_tokens) {
  const at::NoGradGuard no_grad;
  ops::HeadLossOptions options;
  options.with_gradient = false;
  ValidationResult result;
  Tensor sums;
  data::Batch batch;
  loader.begin_epoch(0);
  // The same tensor for both where they share it.
  const Tensor teacher_head_VD = ops::product_head(teacher.head_weight());
  const Tensor student_head_VD =
      student.head_weight().is_alias_of(teacher.head_weight()) ? teacher_head_VD : ops::product_head(student.head_weight());
  while ((max_tokens == 0 || result.target_tokens < max_tokens) && loader.next(batch)) {
    throw_if_interrupted();
    const auto on_device = to_device(batch, student.device());
    const auto student_hidden_BSD = student.forward_hidden(on_device.tokens_BS, on_device.is_start_BS);
    const auto teacher_hidden_BSD = teacher.forward_hidden(on_device.tokens_BS, on_device.is_start_BS);
    const auto losses = ops::head_losses(student_hidden_BSD, student_head_VD, teacher_hidden_BSD, teacher_head_VD, on_device.targets_BS,
                                         on_device.mask_BS, options, 1.0);
    sums = sums.defined() ? sums + losses.sums : losses.sums;
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
  return {require<int64_t>(value, "target_tokens", where), number("ce_loss"), number("teacher_nll"), number("mean_kl"),
          number("agreement")};
}

}  // namespace distil_xlstm::eval
