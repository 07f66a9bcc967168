#include "commands/greedy_model.h"

#include <algorithm>

#include "cli/options/eval.h"
#include "ops/device.h"
#include "tokenizer/document_borders.h"
#include "tokenizer/stop_ids.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::commands {
namespace {

constexpr int64_t kTokensOfWindow = 512;  // what --batch-size counts

// Null of no values.
json median(std::vector<double> values) {
  if (values.empty()) return nullptr;
  std::ranges::sort(values);
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

GreedyModel::GreedyModel(const std::string& name, const cli::EvalOptions& options, const GreedyModel* other)
    : loaded_(load::load_model(name, options.device, options.precision)),
      tokenizer_(other != nullptr && !loaded_.tokenizer ? other->tokenizer_ : loaded_.require_tokenizer()) {
  greedy_.batch_tokens = options.perplexity.batch_size * kTokensOfWindow;
  greedy_.stop_ids = stop_ids(loaded_.files, tokenizer_);
  greedy_.left_out_rows = rows_without_token(tokenizer_, loaded_.model->vocab_size());
  std::erase_if(greedy_.left_out_rows, [&](int32_t id) { return std::ranges::binary_search(greedy_.stop_ids, id); });
  greedy_.model_name = name;
}

std::vector<std::vector<int32_t>> GreedyModel::encode(std::span<const std::string> texts, int64_t max_new_tokens,
                                                      const std::string& what) const {
  std::vector<std::vector<int32_t>> prompts;
  size_t longest = 0;
  for (const std::string& text : texts) {
    prompts.push_back(encode_prompt(tokenizer_, text));
    check_rows(prompts.back(), tokenizer_, loaded_.model->vocab_size(), name());
    longest = std::max(longest, prompts.back().size());
  }
  load::warn_beyond_positions(loaded_, static_cast<int64_t>(longest) + max_new_tokens, what);
  return prompts;
}

GreedyModel::Written GreedyModel::write(std::span<const std::vector<int32_t>> prompts, int64_t max_new_tokens,
                                        const std::function<void(size_t)>& progress) const {
  generate::GreedyOptions options = greedy_;
  options.max_new_tokens = max_new_tokens;
  const at::Device device = loaded_.model->device();
  const int64_t before = ops::reset_peak_memory(device);
  Written written{generate::greedy_continuations(*loaded_.model, prompts, options, progress)};
  written.memory_bytes = ops::peak_memory_bytes(device) - before;
  return written;
}

json speed_json(const GreedyModel::Written& written) {
  std::vector<double> prefill, decode;
  int64_t rows = 0, state_bytes = 0;
  for (const auto& batch : written.batches) {
    prefill.push_back(static_cast<double>(batch.prefill_tokens) / std::max(batch.prefill_seconds, 1e-9));
    if (batch.decode_tokens > 0) decode.push_back(static_cast<double>(batch.decode_tokens) / std::max(batch.decode_seconds, 1e-9));
    rows = std::max(rows, batch.num_rows);
    state_bytes = std::max(state_bytes, batch.state_bytes / batch.num_rows);
  }
  return {{"rows_at_a_time", rows},
          {"prefill_tokens_per_second", median(std::move(prefill))},
          {"decode_tokens_per_second", median(std::move(decode))},
          {"state_bytes_per_row", state_bytes},
          {"memory_bytes", written.memory_bytes > 0 ? json(written.memory_bytes) : json(nullptr)}};
}

json greedy_settings(const cli::EvalOptions& options, const GreedyModel& model) {
  const at::Device device = model.loaded().model->device();
  json settings = {{"model", options.model}, {"description", model.loaded().model->description()}};
  if (!options.teacher.empty()) settings["teacher"] = options.teacher;
  settings.update({{"batch_size", options.perplexity.batch_size},
                   {"precision", ops::precision_name(ops::parse_precision(options.precision, device))},
                   {"device", device.str()}});
  return settings;
}

}  // namespace distil_xlstm::commands
