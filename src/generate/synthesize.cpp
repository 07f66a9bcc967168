#include "generate/synthesize.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "base/error.h"
#include "base/signals.h"
#include "nn/finite.h"

namespace distil_xlstm::generate {

namespace {

using Documents = std::vector<std::vector<int32_t>>;

Tensor prompt_rows(const SynthesizeOptions& options, int64_t rows) {
  const std::vector<int64_t> wide(options.prompt.begin(), options.prompt.end());
  return at::tensor(wide, at::kLong).unsqueeze(0).expand({rows, static_cast<int64_t>(wide.size())}).contiguous();
}

int32_t sample(Sampler& sampler, std::span<const float> logits, const std::vector<int32_t>& document, nn::LanguageModel& model,
               const SynthesizeOptions& options) {
  try {
    return sampler.sample(logits, document);
  } catch (const NotFiniteLogits&) {
    const std::vector<int64_t> wide(document.begin(), document.end());
    const Tensor tokens = at::tensor(wide, at::kLong).unsqueeze(0).to(model.device());
    throw NotFiniteLogits(nn::why_not_finite(model, options.model_name, "--precision", tokens));
  }
}

// Writes documents[begin, end), which hold the prompt.
void write_documents(nn::LanguageModel& model, const SynthesizeOptions& options, uint64_t first_document, Documents& documents,
                     int64_t begin, int64_t end) {
  const at::NoGradGuard no_grad;
  const int64_t rows = end - begin, prompt_size = static_cast<int64_t>(options.prompt.size());
  std::vector<Sampler> samplers;
  for (int64_t row = begin; row < end; ++row)
    samplers.emplace_back(options.sampling, first_document + static_cast<uint64_t>(row), options.left_out);
  std::vector<uint8_t> is_done(static_cast<size_t>(rows), 0);

  auto state = model.new_state(rows, options.max_document_tokens);
  Tensor hidden = model.forward_step(prompt_rows(options, rows).to(model.device()), *state);
  Tensor next = at::empty({rows, 1}, at::kLong);
  for (int64_t length = prompt_size; length < options.max_document_tokens; ++length) {
    throw_if_interrupted();
    const Tensor logits_BV = model.logits(hidden.select(1, hidden.size(1) - 1)).to(at::kCPU, at::kFloat).contiguous();
    const int64_t vocab_size = logits_BV.size(1);
    const auto* logits = logits_BV.const_data_ptr<float>();
    auto* chosen = next.mutable_data_ptr<int64_t>();
    at::parallel_for(0, rows, 8, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const auto index = static_cast<size_t>(row);
        auto& document = documents[static_cast<size_t>(begin + row)];
        chosen[row] = options.prompt[0];  // rows that ended are carried along and thrown away
        if (is_done[index] != 0) continue;
        const int32_t id = sample(samplers[index], {logits + row * vocab_size, static_cast<size_t>(vocab_size)}, document, model, options);
        if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) {
          is_done[index] = 1;
          continue;
        }
        document.push_back(id);
        chosen[row] = id;
      }
    });
    if (std::all_of(is_done.begin(), is_done.end(), [](uint8_t done) { return done != 0; }) || length + 1 == options.max_document_tokens)
      break;
    hidden = model.forward_step(next.to(model.device()), *state);
  }
}

}  // namespace

std::vector<std::vector<int32_t>> synthesize_batch(nn::LanguageModel& model, const SynthesizeOptions& options, uint64_t first_document) {
  const auto prompt_size = static_cast<int64_t>(options.prompt.size());
  if (prompt_size == 0) throw ValueError("synthesize: documents need a first token: a tokenizer with BOS, or a prompt");
  if (options.max_document_tokens <= prompt_size) {
    throw ValueError("max_document_tokens = {}: must be more than the prompt's {} tokens", options.max_document_tokens, prompt_size);
  }
  if (options.batch_size < 1) throw ValueError("batch_size = {}: must be at least 1", options.batch_size);

  Documents documents(static_cast<size_t>(options.batch_size), options.prompt);
  const int64_t threads = at::get_num_threads();
  if (!model.device().is_cpu() || options.batch_size < threads) {
    write_documents(model, options, first_document, documents, 0, options.batch_size);
    return documents;
  }
  // On a CPU each thread writes documents of its own: the operations of one token are too small to share. What a model prepares when it is
  // first called (tables, converted weights) is there before the threads begin.
  static_cast<void>(model.forward_step(prompt_rows(options, 1), *model.new_state(1, options.max_document_tokens)));
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      write_documents(model, options, first_document, documents, options.batch_size * share / threads,
                      options.batch_size * (share + 1) / threads);
    }
  });
  return documents;
}

}  // namespace distil_xlstm::generate
