// distil-xlstm synthesize: a model writes training text into token shards.
#include <algorithm>
#include <iostream>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/text.h"
#include "cli/options/synthesize.h"
#include "commands/compute.h"
#include "generate/synthesis_output.h"
#include "generate/synthesize.h"
#include "load/model.h"
#include "tokenizer/document_borders.h"
#include "tokenizer/stop_ids.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::SynthesizeOptions;

// What must be equal for an interrupted run to go on.
json identity(const Options& options, const Tokenizer& tokenizer) {
  const auto& sampling = options.synthesize.sampling;
  return {{"model", options.model},
          {"tokenizer", tokenizer.fingerprint()},
          {"prompt", options.prompt},
          {"context_length", options.context_length},
          {"document_end", options.document_end},
          {"max_document_tokens", options.synthesize.max_document_tokens},
          {"temperature", sampling.temperature},
          {"top_k", sampling.top_k},
          {"top_p", sampling.top_p},
          {"min_p", sampling.min_p},
          {"seed", sampling.seed},
          {"split", options.is_validation ? "validation" : "train"}};
}

// Prompt, stops and rows left out, as ids of the model's tokenizer.
void complete(generate::SynthesizeOptions& synthesis, const Options& options, const load::LoadedModel& loaded,
              const DocumentBorders& borders) {
  const Tokenizer& tokenizer = loaded.require_tokenizer();
  synthesis.prompt = encode_prompt(tokenizer, options.prompt);
  if (const auto bos = tokenizer.bos_id(); bos && synthesis.prompt.empty()) synthesis.prompt.push_back(*bos);
  synthesis.stop_ids = stop_ids(loaded.files, tokenizer);
  // A model trained on documents that begin with BOS ends one by beginning the next.
  if (!borders.begin.empty()) synthesis.stop_ids.push_back(borders.begin.front());
  synthesis.left_out = rows_without_token(tokenizer, loaded.model->vocab_size());
  const auto& stops = synthesis.stop_ids;
  std::erase_if(synthesis.left_out, [&](int32_t id) { return std::ranges::find(stops, id) != stops.end(); });
  synthesis.model_name = options.model;
  check_rows(synthesis.prompt, tokenizer, loaded.model->vocab_size(), "--prompt");
}

data::ShardSettings shard_settings(const Options& options, const Tokenizer& tokenizer, const DocumentBorders& borders) {
  data::ShardSettings shard;
  shard.split = options.is_validation ? data::Split::validation : data::Split::train;
  shard.context_length = options.context_length;
  shard.vocab_size = tokenizer.vocab_size();
  shard.tokenizer_fingerprint = tokenizer.fingerprint();
  if (!borders.begin.empty()) shard.bos_id = borders.begin.front();
  if (!borders.end.empty()) shard.document_end_id = borders.end.back();
  shard.synthetic = true;
  shard.source = identity(options, tokenizer);
  return shard;
}

}  // namespace

void run_synthesize(const cli::SynthesizeOptions& given) {
  Options options = given;
  const SignalGuard guard;
  generate::check(options.synthesize.sampling);
  const int64_t max_tokens = parse_count(options.max_tokens, "--max-tokens");
  if (max_tokens < 1) throw ConfigError("--max-tokens {}: must be at least 1", options.max_tokens);
  generate::check_synthesis_output(options.output, {options.model});
  const load::LoadedModel loaded = load::load_model(options.model, options.device, options.precision);
  const Tokenizer& tokenizer = loaded.require_tokenizer();
  const auto borders = document_borders(tokenizer, document_end_id(options.document_end, tokenizer));
  complete(options.synthesize, options, loaded, borders);
  const auto shard = shard_settings(options, tokenizer, borders);
  generate::SynthesisOutput output({.directory = options.output,
                                    .models = {options.model, loaded.files.path},
                                    .settings = shard.source,
                                    .shard = shard,
                                    .max_tokens = max_tokens,
                                    .overwrite = options.overwrite});
  if (output.is_complete()) return;
  const auto& writer = output.writer();

  ProgressLine progress;
  const double begin = monotonic_seconds();
  const int64_t tokens_before = writer.num_tokens();
  double saved = begin;
  const auto rate_text = [&] {
    const double rate = static_cast<double>(writer.num_tokens() - tokens_before) / std::max(monotonic_seconds() - begin, 1e-9);
    return fmt::format("{} of {} tokens, {} documents, {:.0f} tokens/s, {} left", format_count(static_cast<double>(writer.num_tokens())),
                       format_count(static_cast<double>(max_tokens)), writer.num_documents(), rate,
                       format_duration(static_cast<double>(std::max<int64_t>(max_tokens - writer.num_tokens(), 0)) / std::max(rate, 1e-9)));
  };
  while (writer.num_tokens() < max_tokens) {
    std::vector<std::vector<int32_t>> documents;
    try {
      documents = generate::synthesize_batch(*loaded.model, options.synthesize, output.next_document());
    } catch (const Interrupted&) {
      output.save();
      throw Interrupted(received_signal(), fmt::format("stopped; {} tokens are kept: the same command goes on there", writer.num_tokens()));
    }
    for (auto& document : documents) {
      if (writer.num_tokens() >= max_tokens) break;
      document.insert(document.end(), borders.end.begin(), borders.end.end());
      output.add(document);
    }
    progress.update(rate_text());
    if (monotonic_seconds() - saved > 30) {
      output.save();
      saved = monotonic_seconds();
    }
  }
  output.finish();
  progress.finish(fmt::format("{} ({})", rate_text(), format_duration(monotonic_seconds() - begin)));
}

}  // namespace distil_xlstm::commands
