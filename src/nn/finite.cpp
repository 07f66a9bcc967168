#include "nn/finite.h"

#include <fmt/format.h>

namespace distil_xlstm::nn {
namespace {

constexpr std::string_view kHead = "lm_head";

bool has_non_finite(const Tensor& tensor) {
  return !tensor.isfinite().all().item<bool>();
}

// The first part whose output is not finite; "" where all are.
std::string first_part(LanguageModel& model, const Tensor& tokens_BS, const Tensor& is_start_BS) {
  std::string found;
  const auto look = [&](const std::string& part, const Tensor& output) {
    if (found.empty() && has_non_finite(output)) found = part;
  };
  const Tensor hidden_BSD = model.forward_shown(tokens_BS, is_start_BS, look);
  constexpr int64_t kPositions = 16;  // a part of the logits at a time
  for (const Tensor& part_BSD : hidden_BSD.split(kPositions, 1)) {
    if (found.empty()) look(std::string(kHead), model.logits(part_BSD));
  }
  return found;
}

// The first weight of a part that is not finite; "" where all are.
std::string broken_weight(const LanguageModel& model, const std::string& part) {
  std::string found;
  const auto look = [&](const std::string& name, const Tensor& weight) {
    if (found.empty() && has_non_finite(weight)) found = name;
  };
  if (part == kHead) {
    look("lm_head.weight", model.head_weight());  // the embedding where they are tied
  } else {
    model.for_each_weight(look, part + ".");
  }
  return found;
}

}  // namespace

NonFinite find_non_finite(LanguageModel& model, const Tensor& tokens_BS, const Tensor& is_start_BS) {
  const at::NoGradGuard no_grad;
  NonFinite found{.part = first_part(model, tokens_BS, is_start_BS), .weight = "", .precision = model.precision()};
  if (!found.part.empty()) found.weight = broken_weight(model, found.part);
  return found;
}

std::string description(const NonFinite& found, std::string_view name) {
  const std::string where = fmt::format("{} in {}", name, found.precision);
  if (found.part.empty()) return fmt::format("{}: its figures are not finite, though every layer's output is on these tokens alone", where);
  if (found.weight.empty()) return fmt::format("{}: the output of {} is not finite", where, found.part);
  return fmt::format("{}: '{}' holds values that are not finite", where, found.weight);
}

std::string remedy(const NonFinite& found, std::string_view key) {
  const bool is_fp16 = found.precision == "fp16";
  const std::string other = fmt::format("set {} to {}", key, is_fp16 ? "bf16 or fp32" : "fp32");
  if (!found.weight.empty() && !is_fp16) return "the model is damaged: get it, or train it, again";
  if (is_fp16) return (found.weight.empty() ? "its values outgrow fp16: " : "they outgrow fp16, or the model is damaged: ") + other;
  return found.precision == "fp32" ? "the model's weights are too large, or damaged" : other;
}

std::string why_not_finite(LanguageModel& model, std::string_view name, std::string_view key, const Tensor& tokens_BS,
                           const Tensor& is_start_BS) {
  const NonFinite found = find_non_finite(model, tokens_BS, is_start_BS);
  return fmt::format("{}: {}", description(found, name), remedy(found, key));
}

}  // namespace distil_xlstm::nn
