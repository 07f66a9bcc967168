#include "generate/generator.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "generate/decode_threads.h"
#include "nn/finite.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::generate {
namespace {

// Releases text only up to where a stop string could still begin.
class StopFilter {
 public:
  explicit StopFilter(const std::vector<std::string>& stop) : stop_(stop) {}

  // Text that may be shown now; sets is_stopped() once a stop string is complete.
  std::string push(const std::string& text) {
    held_ += text;
    size_t cut = held_.size();
    for (const auto& stop : stop_) {
      if (stop.empty()) continue;
      if (const size_t found = held_.find(stop); found != std::string::npos && found <= cut) {
        cut = found;
        stopped_ = true;
      }
    }
    if (!stopped_) {
      for (const auto& stop : stop_) {
        for (size_t length = std::min(stop.empty() ? 0 : stop.size() - 1, held_.size()); length > 0; --length) {
          if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) {
            cut = std::min(cut, held_.size() - length);
            break;
          }
        }
      }
    }
    std::string certain = held_.substr(0, cut);
    held_.erase(0, cut);
    return certain;
  }

  [[nodiscard]] bool is_stopped() const { return stopped_; }
  [[nodiscard]] std::string rest() const { return stopped_ ? "" : held_; }

 private:
  const std::vector<std::string>& stop_;
  std::string held_;
  bool stopped_ = false;
};

constexpr size_t kDecoderContext = 16;  // more ids than one character takes

// Decoders treat the first piece of a text differently (some strip its leading space): the text goes on after the prompt's last ids.
void begin_after(StreamDecoder& decoder, const std::vector<int32_t>& prompt) {
  for (size_t at = prompt.size() - std::min(prompt.size(), kDecoderContext); at < prompt.size(); ++at) decoder.push(prompt[at]);
}

Tensor to_tensor(const std::vector<int32_t>& ids, size_t begin, size_t end, at::Device device) {
  std::vector<int64_t> wide(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.begin() + static_cast<std::ptrdiff_t>(end));
  return at::tensor(wide, at::kLong).unsqueeze(0).to(device);
}

}  // namespace

GenerateResult generate(nn::LanguageModel& model, const Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                        const GenerateOptions& options, const std::function<void(const std::string&)>& on_text) {
  if (prompt.empty()) throw ValueError("generate: the prompt has no tokens: give a text, or use a tokenizer that adds BOS");
  if (options.max_new_tokens < 1) throw ValueError("max_new_tokens = {}: must be at least 1", options.max_new_tokens);
  check_rows(prompt, tokenizer, model.vocab_size(), options.model_name);
  const at::NoGradGuard no_grad;
  GenerateResult result;
  result.prompt_tokens = static_cast<int64_t>(prompt.size());
  const double begin = monotonic_seconds();
  auto state = model.new_state(1, result.prompt_tokens + options.max_new_tokens);
  Tensor hidden;
  const auto piece = static_cast<size_t>(std::max<int64_t>(options.prefill_piece, 1));
  for (size_t at = 0; at < prompt.size(); at += piece) {
    hidden = model.forward_step(to_tensor(prompt, at, std::min(prompt.size(), at + piece), model.device()), *state);
  }
  result.prompt_seconds = monotonic_seconds() - begin;

  auto left_out = rows_without_token(tokenizer, model.vocab_size());
  std::erase_if(left_out, [&](int32_t id) { return std::ranges::find(options.stop_ids, id) != options.stop_ids.end(); });
  Sampler sampler(options.sampling, /*stream=*/0, left_out);
  StreamDecoder decoder(tokenizer, options.skip_special_tokens);
  if (options.continues_text) begin_after(decoder, prompt);
  StopFilter filter(options.stop);
  std::vector<int32_t> context = prompt;
  const auto show = [&](const std::string& text) {
    result.text += text;
    if (on_text && !text.empty()) on_text(text);
  };
  result.finish_reason = "length";
  DecodeThreads threads(model);
  const double decode_begin = monotonic_seconds();
  while (static_cast<int64_t>(result.tokens.size()) < options.max_new_tokens) {
    if (received_signal() != 0) {
      result.finish_reason = "interrupted";
      break;
    }
    const Tensor logits = model.logits(hidden.select(1, hidden.size(1) - 1)).reshape({-1}).to(at::kCPU, at::kFloat).contiguous();
    threads.stop();
    int32_t next = 0;
    try {
      next = sampler.sample({logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel())}, context);
    } catch (const NotFiniteLogits&) {
      const Tensor tokens = to_tensor(context, 0, context.size(), model.device());
      throw NotFiniteLogits(nn::why_not_finite(model, options.model_name, "--precision", tokens));
    }
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), next) != options.stop_ids.end()) {
      result.finish_reason = "stop";
      break;
    }
    result.tokens.push_back(next);
    context.push_back(next);
    show(filter.push(decoder.push(next)));
    if (filter.is_stopped()) {
      result.finish_reason = "stop";
      break;
    }
    if (static_cast<int64_t>(result.tokens.size()) == options.max_new_tokens) break;
    threads.start();
    hidden = model.forward_step(to_tensor(context, context.size() - 1, context.size(), model.device()), *state);
  }
  if (!filter.is_stopped()) {
    show(filter.push(decoder.finish()));
    show(filter.rest());
  }
  result.decode_seconds = monotonic_seconds() - decode_begin;
  result.state_bytes = state->size_bytes();
  return result;
}

}  // namespace distil_xlstm::generate
