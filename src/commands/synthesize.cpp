// distil-xlstm synthesize: a model writes training text into token shards.
#include <iostream>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/text.h"
#include "cli/options/synthesize.h"
#include "commands/compute.h"
#include "commands/loaded_model.h"
#include "data/shard_writer.h"
#include "generate/generator.h"
#include "generate/synthesize.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::SynthesizeOptions;

std::optional<int32_t> end_id(const std::string& name, const Tokenizer& tokenizer) {
  if (name == "none") return std::nullopt;
  const auto id = name == "eos" ? tokenizer.eos_id() : tokenizer.token_id(name);
  if (!id) throw ConfigError("--document-end {}: the tokenizer of {} has no such token", name, tokenizer.files().origin);
  return id;
}

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

}  // namespace

void run_synthesize(const cli::SynthesizeOptions& given) {
  Options options = given;
  const SignalGuard guard;
  generate::check(options.synthesize.sampling);
  const int64_t max_tokens = parse_count(options.max_tokens, "--max-tokens");
  if (max_tokens < 1) throw ConfigError("--max-tokens {}: must be at least 1", options.max_tokens);
  const LoadedModel loaded = load_model(options.model, options.device, options.precision);
  const Tokenizer& tokenizer = loaded.require_tokenizer();
  options.synthesize.prompt = tokenizer.encode(options.prompt);
  if (const auto bos = tokenizer.bos_id(); bos && (tokenizer.adds_bos() || options.synthesize.prompt.empty())) {
    options.synthesize.prompt.insert(options.synthesize.prompt.begin(), *bos);
  }
  options.synthesize.stop_ids = generate::end_of_text_ids(loaded.files, tokenizer);
  // A model trained on documents that begin with BOS ends one by beginning the next.
  if (tokenizer.adds_bos() && tokenizer.bos_id()) options.synthesize.stop_ids.push_back(*tokenizer.bos_id());
  const auto document_end = end_id(options.document_end, tokenizer);

  const fs::path folder = options.output;
  const fs::path journal = folder / "synthesize.cbor";
  const json settings = identity(options, tokenizer);
  data::ShardSettings shard;
  shard.split = options.is_validation ? data::Split::validation : data::Split::train;
  shard.context_length = options.context_length;
  shard.vocab_size = tokenizer.vocab_size();
  shard.tokenizer_fingerprint = tokenizer.fingerprint();
  if (tokenizer.adds_bos()) shard.bos_id = tokenizer.bos_id();
  shard.document_end_id = document_end;
  shard.synthetic = true;
  shard.source = settings;

  json state = json::object();
  if (fs::exists(journal) && !options.overwrite) {
    const std::string bytes = read_file(journal);
    state = json::from_cbor(bytes, true, false);
    if (state.is_discarded() || !state.contains("settings"))
      throw DataError("{}: broken: give --overwrite to begin again", journal.string());
    if (state["settings"] != settings) {
      throw ConfigError("{} holds text of other settings ({}): choose another --output, or give --overwrite", folder.string(),
                        state["settings"].dump());
    }
  } else if (fs::exists(folder) && !fs::is_empty(folder)) {
    if (!options.overwrite) throw ConfigError("{} is not empty: choose another --output, or give --overwrite", folder.string());
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() == data::kShardExtension || entry.path() == journal) fs::remove(entry.path());
    }
  }
  data::ShardWriter writer(folder, shard);
  uint64_t next_document = 0;
  if (!state.empty()) {
    const bool is_complete = state.value("is_complete", false);
    const auto num_tokens = require<int64_t>(state, "num_tokens", journal.string());
    if (is_complete && num_tokens >= max_tokens) {
      spdlog::info("{}: complete already ({} tokens, --max-tokens {})", folder.string(), num_tokens, options.max_tokens);
      return;
    }
    if (!state.contains("writer")) {
      throw ConfigError("{}: complete with {} tokens, written by a version that cannot extend it to --max-tokens {}: give --overwrite",
                        folder.string(), num_tokens, options.max_tokens);
    }
    writer.restore(state["writer"]);
    next_document = state["next_document"].get<uint64_t>();
    spdlog::info("going on after {} documents, {} tokens", next_document, writer.num_tokens());
  }
  // A complete output keeps the writer's place too: a greater --max-tokens goes on there.
  const auto save = [&](bool is_complete, const json& place) {
    const json now = {{"settings", settings},
                      {"next_document", next_document},
                      {"num_tokens", writer.num_tokens()},
                      {"is_complete", is_complete},
                      {"writer", place}};
    const auto bytes = json::to_cbor(now);
    write_file_atomic(journal, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  };

  if (state.value("is_complete", false)) save(false, writer.save());  // its last shard is open again

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
      documents = generate::synthesize_batch(*loaded.model, options.synthesize, next_document);
    } catch (const Interrupted&) {
      save(false, writer.save());
      throw Interrupted(received_signal(), fmt::format("stopped; {} tokens are kept: the same command goes on there", writer.num_tokens()));
    }
    for (auto& document : documents) {
      if (writer.num_tokens() >= max_tokens) break;
      if (document_end) document.push_back(*document_end);
      writer.add(document);
      ++next_document;
    }
    progress.update(rate_text());
    if (monotonic_seconds() - saved > 30) {
      save(false, writer.save());
      saved = monotonic_seconds();
    }
  }
  const json place = writer.save();
  save(false, place);
  writer.finish();
  save(true, place);
  progress.finish(fmt::format("{} ({})", rate_text(), format_duration(monotonic_seconds() - begin)));
}

}  // namespace distil_xlstm::commands
