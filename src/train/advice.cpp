#include "train/advice.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "config/settings.h"
#include "train/checkpoint.h"

namespace distil_xlstm::train {
namespace {

std::string shortened(const std::vector<std::string>& names) {
  constexpr size_t kShown = 3;
  std::vector<std::string> shown(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(std::min(names.size(), kShown)));
  return join(shown, ", ") + (names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "");
}

}  // namespace

std::string why_skipped(const StepResult& r) {
  if (!r.model_problem.empty()) return r.model_problem;
  if (!r.bad_parameters.empty()) return "gradient is not finite in " + shortened(r.bad_parameters);
  if (std::isinf(r.grad_norm)) return fmt::format("the gradient's norm overflows at loss_scale {}", r.loss_scale);
  const std::string parts = r.is_measured("ce_loss") ? fmt::format(" (ce {:.4g}, kd {:.4g})", r.mean("ce_loss"), r.mean("kd_loss")) : "";
  return fmt::format("loss is {}{}, grad_norm {}", r.loss, parts, r.grad_norm);
}

std::string what_is_kept(const fs::path& run) {
  const auto last = follow_pointer(run, "last");
  if (!last) return ". No checkpoint was made yet";
  return fmt::format(". The last checkpoint, {}, is whole: when the cause is gone, go on with: distil-xlstm distill --resume --output {}",
                     last->string(), run.string());
}

std::string how_to_go_on(const fs::path& run, const config::RunConfig& config, const distill::Stage& stage, at::ScalarType compute_dtype,
                         bool is_teachers_problem) {
  std::string advice = "Lower " + stage.learning_rate_key;
  if (compute_dtype == at::kHalf) advice += ", or set train.precision to bf16 or fp32";
  if (compute_dtype == at::kBFloat16) advice += ", or set train.precision to fp32";
  const double rate = stage.learning_rate > 0.0 ? stage.learning_rate : config.optimizer.learning_rate;
  std::string option = fmt::format("{} {:g}", config::find_setting(stage.learning_rate_key)->option, rate / 4);
  if (is_teachers_problem) {
    advice = "The teacher needs another precision";
    option = "--teacher-precision fp32";
  }
  const auto last = follow_pointer(run, "last");
  if (!last) return fmt::format("No checkpoint was made yet. {}: distil-xlstm distill ... {} --overwrite", advice, option);
  return fmt::format("The last checkpoint, {}, is intact. {}: distil-xlstm distill --resume --output {} {}", last->string(), advice,
                     run.string(), option);
}

}  // namespace distil_xlstm::train
