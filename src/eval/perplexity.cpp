#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "nn/finite.h"
#include "ops/head_loss.h"
#include "ops/head_rows.h"

namespace distil_xlstm::eval {
namespace {

struct WindowBatch {
  Tensor tokens_BS, targets_BS, mask_BS;
};

// Windows side by side, padded on the right with zeros (masked, and after everything that counts).
template <typename Window>
WindowBatch make_batch(std::span<const Window> windows, at::Device device) {
  size_t length = 0;
  for (const auto& window : windows) length = std::max(length, window.tokens.size() - 1);
  const std::vector<int64_t> shape = {static_cast<int64_t>(windows.size()), static_cast<int64_t>(length)};
  WindowBatch batch{at::zeros(shape, at::kLong), at::zeros(shape, at::kLong), at::zeros(shape, at::kByte)};
  for (size_t row = 0; row < windows.size(); ++row) {
    const auto& [tokens, first_scored, document_tokens] = windows[row];
    auto* input = batch.tokens_BS.mutable_data_ptr<int64_t>() + row * length;
    auto* target = batch.targets_BS.mutable_data_ptr<int64_t>() + row * length;
    auto* mask = batch.mask_BS.mutable_data_ptr<uint8_t>() + row * length;
    for (size_t at = 0; at + 1 < tokens.size(); ++at) {
      input[at] = tokens[at];
      target[at] = tokens[at + 1];
      mask[at] = at + 1 >= first_scored ? 1 : 0;
    }
  }
  return {batch.tokens_BS.to(device), batch.targets_BS.to(device), batch.mask_BS.to(device)};
}

TargetSums to_sums(const Tensor& sums, int64_t target_tokens, bool has_teacher) {
  const Tensor host = sums.to(at::kCPU, at::kDouble);
  const auto* values = host.const_data_ptr<double>();
  TargetSums result{.target_tokens = target_tokens, .nats = values[ops::kCe]};
  if (!has_teacher) return result;
  result.teacher_nats = values[ops::kTeacherNll];
  result.kl = values[ops::kKlAt1];
  result.agreements = std::llround(values[ops::kAgreement]);
  return result;
}

// Throws where the sums so far are not finite; `batch` is what was added last.
void check_finite(const TargetSums& result, const PerplexityOptions& options, nn::LanguageModel& model, nn::LanguageModel* teacher,
                  const WindowBatch& batch) {
  if (teacher != nullptr && !std::isfinite(result.teacher_nats))
    throw Error(nn::why_not_finite(*teacher, options.teacher_name, "--precision", batch.tokens_BS));
  if (!std::isfinite(result.nats) || !std::isfinite(result.kl))
    throw Error(nn::why_not_finite(model, options.model_name, "--precision", batch.tokens_BS));
}

}  // namespace

PerplexityScorer::PerplexityScorer(nn::LanguageModel& model, nn::LanguageModel* teacher, const PerplexityOptions& options,
                                   Observers observers)
    : model_(model), teacher_(teacher), options_(options), observers_(std::move(observers)) {
  if (options_.stride == 0) options_.stride = options_.context_length;
  check_options();
  if (options_.carry_state) options_.batch_size = 1;
  result_.by_position.resize(options_.position_ends.size());
  head_rows_ = ops::HeadRows(options_.left_out_rows, model_.vocab_size(), model_.device());
  head_VD_ = head_rows_.of_head(model_.head_weight());
  if (teacher_ != nullptr) teacher_head_VD_ = head_rows_.of_head(teacher_->head_weight());
}

void PerplexityScorer::check_options() const {
  const int64_t stride = options_.stride;
  if (options_.context_length < 1) throw ValueError("context_length = {}: must be at least 1", options_.context_length);
  if (stride < 1 || stride > options_.context_length) {
    throw ValueError("stride = {}: must be in 1..context_length ({}), or targets would be left out", stride, options_.context_length);
  }
  if (options_.carry_state && stride != options_.context_length)
    throw ValueError("carry_state: needs stride = context_length, got stride = {}", stride);
  if (options_.batch_size < 1) throw ValueError("batch_size = {}: must be at least 1", options_.batch_size);
  const auto& ends = options_.position_ends;
  if (!ends.empty() &&
      (ends.front() < 1 || ends.back() != options_.context_length || std::ranges::adjacent_find(ends, std::greater_equal()) != ends.end()))
    throw ValueError("position_ends = {}: must be positive, ascending, and end with context_length ({})", fmt::join(ends, ","),
                     options_.context_length);
  if (teacher_ != nullptr && teacher_->vocab_size() != model_.vocab_size()) {
    throw ShapeError("eval: the model has {} tokens, the teacher {}: the vocabularies differ", model_.vocab_size(), teacher_->vocab_size());
  }
}

void PerplexityScorer::add(const EvalDocument& document) {
  append(document.tokens);
  end_document();
  result_.size_bytes += document.size_bytes;
}

void PerplexityScorer::append(std::span<const int32_t> tokens) {
  for (const int32_t id : tokens) {
    if (id < 0 || id >= model_.vocab_size()) {
      throw ValueError("eval: token {} lies outside the model's vocabulary of {}: tokenizer and model do not belong together", id,
                       model_.vocab_size());
    }
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  while (begin_ + options_.context_length < num_tokens()) take_window(begin_ + options_.context_length);
  // What no window needs any more goes, in large parts.
  if (const auto passed = begin_ - dropped_; passed > static_cast<int64_t>(tokens_.size()) / 2) {
    const int64_t count = std::min(passed, static_cast<int64_t>(tokens_.size()));
    tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<ptrdiff_t>(count));
    dropped_ += count;
  }
}

void PerplexityScorer::end_document() {
  const int64_t size = num_tokens();
  while (scored_ < size) take_window(std::min(begin_ + options_.context_length, size - 1));
  num_targets_ += std::max<int64_t>(size - 1, 0);
  tokens_.clear();
  dropped_ = begin_ = 0;
  scored_ = 1;
}

// The window of the inputs [begin_, end) and the targets [begin_ + 1, end]; the next one begins a stride later.
void PerplexityScorer::take_window(int64_t end) {
  const auto first = tokens_.begin() + static_cast<ptrdiff_t>(begin_ - dropped_);
  Window window{.tokens = {first, tokens_.begin() + static_cast<ptrdiff_t>(end + 1 - dropped_)},
                .first_scored = static_cast<size_t>(scored_ - begin_),
                .document_tokens = begin_ == 0 ? num_tokens() : 0};
  if (observers_.targets) observers_.targets(std::span<const int32_t>(window.tokens).subspan(window.first_scored));
  waiting_.push_back(std::move(window));
  scored_ = end + 1;
  begin_ += options_.stride;
  if (static_cast<int64_t>(waiting_.size()) == options_.batch_size) score();
}

void PerplexityScorer::score() {
  throw_if_interrupted();
  const at::NoGradGuard no_grad;
  const double begin = monotonic_seconds();
  const WindowBatch batch = make_batch<Window>(waiting_, model_.device());
  Tensor hidden, teacher_hidden;
  if (options_.carry_state) {
    if (const int64_t length = waiting_.front().document_tokens; length > 0) {
      state_ = model_.new_state(1, length);
      if (teacher_ != nullptr) teacher_state_ = teacher_->new_state(1, length);
    }
    hidden = model_.forward_step(batch.tokens_BS, *state_);
    if (teacher_ != nullptr) teacher_hidden = teacher_->forward_step(batch.tokens_BS, *teacher_state_);
  } else {
    hidden = model_.forward_hidden(batch.tokens_BS);
    if (teacher_ != nullptr) teacher_hidden = teacher_->forward_hidden(batch.tokens_BS);
  }
  add_losses(hidden, teacher_hidden, head_rows_.of_ids(batch.targets_BS), batch.mask_BS);
  check_finite(result_, options_, model_, teacher_, batch);
  waiting_.clear();
  result_.seconds += monotonic_seconds() - begin;
  if (observers_.progress) observers_.progress(result_.target_tokens);
}

// Of the windows that wait: all positions together, or range by range.
void PerplexityScorer::add_losses(const Tensor& hidden_BSD, const Tensor& teacher_hidden_BSD, const Tensor& targets_BS,
                                  const Tensor& mask_BS) {
  const int64_t length = targets_BS.size(1);
  const auto ends = options_.position_ends.empty() ? std::vector<int64_t>{length} : options_.position_ends;
  int64_t first = 0;  // counted from 0, as columns are
  for (size_t range = 0; range < ends.size() && first < length; ++range) {
    const int64_t end = std::min(ends[range], length);
    int64_t count = 0;
    for (const auto& [tokens, first_scored, document_tokens] : waiting_) {
      const auto begin = std::max(first, static_cast<int64_t>(first_scored) - 1);
      count += std::max<int64_t>(std::min(end, static_cast<int64_t>(tokens.size()) - 1) - begin, 0);
    }
    const auto part = [begin = first, end](const Tensor& whole) { return whole.defined() ? whole.narrow(1, begin, end - begin) : whole; };
    first = end;
    if (count == 0) continue;  // of overlapping windows
    const auto losses = ops::head_losses(part(hidden_BSD), head_VD_, part(teacher_hidden_BSD), teacher_head_VD_, part(targets_BS),
                                         part(mask_BS), {}, 1.0, {.with_gradient = false});
    const TargetSums sums = to_sums(losses.sums, count, teacher_ != nullptr);
    result_.TargetSums::add(sums);
    if (!result_.by_position.empty()) result_.by_position[range].add(sums);
  }
}

PerplexityResult PerplexityScorer::finish() {
  if (!waiting_.empty()) score();
  if (result_.target_tokens == 0) throw ValueError("eval: no document has two tokens: there is nothing to predict");
  return result_;
}

PerplexityResult perplexity(nn::LanguageModel& model, nn::LanguageModel* teacher, const std::vector<EvalDocument>& documents,
                            const PerplexityOptions& options) {
  PerplexityScorer scorer(model, teacher, options);
  for (const auto& document : documents) scorer.add(document);
  return scorer.finish();
}

void TargetSums::add(const TargetSums& other) {
  target_tokens += other.target_tokens;
  nats += other.nats;
  teacher_nats += other.teacher_nats;
  kl += other.kl;
  agreements += other.agreements;
}

void PerplexityResult::add(const PerplexityResult& other) {
  TargetSums::add(other);
  size_bytes += other.size_bytes;
  seconds += other.seconds;
  by_position.resize(std::max(by_position.size(), other.by_position.size()));
  for (size_t range = 0; range < other.by_position.size(); ++range) by_position[range].add(other.by_position[range]);
}

json PerplexityResult::to_json(bool has_teacher) const {
  json object = sums_json(has_teacher);
  object["bits_per_byte"] = size_bytes > 0 ? json(nats / std::numbers::ln2 / static_cast<double>(size_bytes)) : json(nullptr);
  return object;
}

json TargetSums::sums_json(bool has_teacher) const {
  const auto targets = static_cast<double>(target_tokens);
  json object = {{"target_tokens", target_tokens}, {"nats_per_token", nats / targets}, {"perplexity", std::exp(nats / targets)}};
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
