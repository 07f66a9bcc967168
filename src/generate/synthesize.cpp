#include "generate/synthesize.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "base/error.h"
#include "base/signals.h"

namespace distil_xlstm::generate {

std::vector<std::vector<int32_t>> synthesize_batch(nn::LanguageModel& model, const SynthesizeOptions& options, uint64_t first_document) {
  const auto prompt_size = static_cast<int64_t>(options.prompt.size());
  if (prompt_size == 0) throw ValueError("synthesize: documents need a first token: a tokenizer with BOS, or a prompt");
  if (options.max_document_tokens <= prompt_size) {
    throw ValueError("max_document_tokens = {}: must be more than the prompt's {} tokens", options.max_document_tokens, prompt_size);
  }
  if (options.batch_size < 1) throw ValueError("batch_size = {}: must be at least 1", options.batch_size);

  const at::NoGradGuard no_grad;
  const auto batch = static_cast<size_t>(options.batch_size);
  std::vector<std::vector<int32_t>> documents(batch, options.prompt);
  std::vector<Sampler> samplers;
  for (size_t row = 0; row < batch; ++row) samplers.emplace_back(options.sampling, first_document + row);
  std::vector<uint8_t> is_done(batch, 0);

  auto state = model.new_state(options.batch_size, options.max_document_tokens);
  const std::vector<int64_t> wide(options.prompt.begin(), options.prompt.end());
  Tensor hidden = model.forward_step(
      at::tensor(wide, at::kLong).unsqueeze(0).expand({options.batch_size, prompt_size}).contiguous().to(model.device()), *state);
  Tensor next = at::empty({options.batch_size, 1}, at::kLong);
  for (int64_t length = prompt_size; length < options.max_document_tokens; ++length) {
    throw_if_interrupted();
    const Tensor logits_BV = model.logits(hidden.select(1, hidden.size(1) - 1)).to(at::kCPU, at::kFloat).contiguous();
    const int64_t vocab_size = logits_BV.size(1);
    const auto* logits = logits_BV.const_data_ptr<float>();
    auto* chosen = next.mutable_data_ptr<int64_t>();
    at::parallel_for(0, options.batch_size, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto index = static_cast<size_t>(row);
        chosen[row] = options.prompt[0];  // rows that ended are carried along and thrown away
        if (is_done[index] != 0) continue;
        const int32_t id = samplers[index].sample({logits + row * vocab_size, static_cast<size_t>(vocab_size)}, documents[index]);
        if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) {
          is_done[index] = 1;
          continue;
        }
        documents[index].push_back(id);
        chosen[row] = id;
      }
    });
    if (std::all_of(is_done.begin(), is_done.end(), [](uint8_t done) { return done != 0; }) || length + 1 == options.max_document_tokens)
      break;
    hidden = model.forward_step(next.to(model.device()), *state);
  }
  return documents;
}

}  // namespace distil_xlstm::generate
