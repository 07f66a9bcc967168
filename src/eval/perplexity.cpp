#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "ops/head_loss.h"

namespace distil_xlstm::eval {
namespace {

struct WindowBatch {
  Tensor tokens_BS, targets_BS, mask_BS;
};

// Windows side by side, padded on the right with the first token of each (masked, and after everything that counts).
WindowBatch make_batch(const std::vector<EvalDocument>& documents, std::span<const EvalWindow> windows, at::Device device) {
  int64_t length = 0;
  for (const auto& window : windows) length = std::max(length, window.end - window.begin);
  const auto rows = static_cast<int64_t>(windows.size());
  WindowBatch batch{at::zeros({rows, length}, at::kLong), at::zeros({rows, length}, at::kLong), at::zeros({rows, length}, at::kByte)};
  for (int64_t row = 0; row < rows; ++row) {
    const auto& window = windows[static_cast<size_t>(row)];
    const auto& tokens = documents[window.document].tokens;
    auto* input = batch.tokens_BS.mutable_data_ptr<int64_t>() + row * length;
    auto* target = batch.targets_BS.mutable_data_ptr<int64_t>() + row * length;
    auto* mask = batch.mask_BS.mutable_data_ptr<uint8_t>() + row * length;
    for (int64_t at = window.begin; at < window.end; ++at) {
      input[at - window.begin] = tokens[static_cast<size_t>(at)];
      target[at - window.begin] = tokens[static_cast<size_t>(at) + 1];
      mask[at - window.begin] = at + 1 >= window.first_scored ? 1 : 0;
    }
  }
  return {batch.tokens_BS.to(device), batch.targets_BS.to(device), batch.mask_BS.to(device)};
}

void add_sums(PerplexityResult& result, const Tensor& sums, bool has_teacher) {
  const Tensor host = sums.to(at::kCPU, at::kDouble);
  const auto* values = host.const_data_ptr<double>();
  result.nats += values[ops::kCe];
  if (!has_teacher) return;
  result.teacher_nats += values[ops::kTeacherNll];
  result.kl += values[ops::kKlAt1];
  result.agreements += std::llround(values[ops::kAgreement]);
}

void check_vocabulary(const nn::LanguageModel& model, const std::vector<EvalDocument>& documents) {
  for (const auto& document : documents) {
    for (const int32_t id : document.tokens) {
      if (id < 0 || id >= model.vocab_size()) {
        throw ValueError("eval: token {} lies outside the model's vocabulary of {}: tokenizer and model do not belong together", id,
                         model.vocab_size());
      }
    }
  }
}

}  // namespace

std::vector<EvalWindow> eval_windows(size_t document, int64_t num_tokens, int64_t context_length, int64_t stride) {
  std::vector<EvalWindow> windows;
  int64_t scored = 1;  // the next target to score
  for (int64_t begin = 0; scored < num_tokens; begin += stride) {
    const int64_t end = std::min(begin + context_length, num_tokens - 1);
    windows.push_back({document, begin, end, scored});
    scored = end + 1;
  }
  return windows;
}

PerplexityResult perplexity(nn::LanguageModel& model, nn::LanguageModel* teacher, const std::vector<EvalDocument>& documents,
                            const PerplexityOptions& options, const std::function<void(int64_t, int64_t)>& progress) {
  const int64_t stride = options.stride == 0 ? options.context_length : options.stride;
  if (options.context_length < 1) throw ValueError("context_length = {}: must be at least 1", options.context_length);
  if (stride < 1 || stride > options.context_length) {
    throw ValueError("stride = {}: must be in 1..context_length ({}), or targets would be left out", stride, options.context_length);
  }
  if (options.carry_state && stride != options.context_length)
    throw ValueError("carry_state: needs stride = context_length, got stride = {}", stride);
  if (options.batch_size < 1) throw ValueError("batch_size = {}: must be at least 1", options.batch_size);
  check_vocabulary(model, documents);
  if (teacher != nullptr && teacher->vocab_size() != model.vocab_size()) {
    throw ShapeError("eval: the model has {} tokens, the teacher {}: the vocabularies differ", model.vocab_size(), teacher->vocab_size());
  }

  const at::NoGradGuard no_grad;
  std::vector<EvalWindow> windows;
  PerplexityResult result;
  for (size_t index = 0; index < documents.size(); ++index) {
    const auto size = static_cast<int64_t>(documents[index].tokens.size());
    result.size_bytes += documents[index].size_bytes;
    result.target_tokens += std::max<int64_t>(size - 1, 0);
    for (const auto& window : eval_windows(index, size, options.context_length, stride)) windows.push_back(window);
  }
  if (result.target_tokens == 0) throw ValueError("eval: no document has two tokens: there is nothing to predict");

  const ops::HeadLossOptions loss_options{.with_gradient = false};
  const double begin = monotonic_seconds();
  int64_t done = 0;
  std::unique_ptr<nn::DecodeState> state, teacher_state;
  const int64_t batch_size = options.carry_state ? 1 : options.batch_size;
  for (size_t at = 0; at < windows.size();) {
    throw_if_interrupted();
    const size_t end = std::min(windows.size(), at + static_cast<size_t>(batch_size));
    const auto group = std::span(windows).subspan(at, end - at);
    const WindowBatch batch = make_batch(documents, group, model.device());
    Tensor hidden, teacher_hidden;
    if (options.carry_state) {
      if (group[0].begin == 0) {
        const auto length = static_cast<int64_t>(documents[group[0].document].tokens.size());
        state = model.new_state(1, length);
        if (teacher != nullptr) teacher_state = teacher->new_state(1, length);
      }
      hidden = model.forward_step(batch.tokens_BS, *state);
      if (teacher != nullptr) teacher_hidden = teacher->forward_step(batch.tokens_BS, *teacher_state);
    } else {
      hidden = model.forward_hidden(batch.tokens_BS);
      if (teacher != nullptr) teacher_hidden = teacher->forward_hidden(batch.tokens_BS);
    }
    const auto losses =
        ops::head_losses(hidden, model.head_weight(), teacher_hidden, teacher != nullptr ? teacher->head_weight() : Tensor(),
                         batch.targets_BS, batch.mask_BS, loss_options, 1.0);
    add_sums(result, losses.sums, teacher != nullptr);
    for (const auto& window : group) done += window.end + 1 - window.first_scored;
    if (progress) progress(done, result.target_tokens);
    at = end;
  }
  result.seconds = monotonic_seconds() - begin;
  return result;
}

json PerplexityResult::to_json(bool has_teacher) const {
  const auto targets = static_cast<double>(target_tokens);
  json object = {{"nats_per_token", nats / targets}, {"perplexity", std::exp(nats / targets)}};
  object["bits_per_byte"] = size_bytes > 0 ? json(nats / std::numbers::ln2 / static_cast<double>(size_bytes)) : json(nullptr);
  object["target_tokens"] = target_tokens;
  if (has_teacher) {
    object["teacher_nats_per_token"] = teacher_nats / targets;
    object["teacher_perplexity"] = std::exp(teacher_nats / targets);
    object["perplexity_ratio"] = std::exp((nats - teacher_nats) / targets);
    object["top1_agreement"] = static_cast<double>(agreements) / targets;
    object["mean_kl"] = kl / targets;
  }
  return object;
}

}  // namespace distil_xlstm::eval
