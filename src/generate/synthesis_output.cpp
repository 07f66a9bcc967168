#include "generate/synthesis_output.h"

#include <spdlog/spdlog.h>

#include "base/error.h"
#include "base/output_directory.h"
#include "data/journal.h"
#include "data/shard_directory.h"

namespace distil_xlstm::generate {
namespace {

fs::path journal_of(const fs::path& directory) {
  return directory / "synthesize.cbor";
}

bool is_result(const fs::path& directory) {
  return fs::is_regular_file(journal_of(directory));
}

bool is_leftover(const fs::path& entry) {
  const auto name = data::parse_shard_name(entry.filename().string());
  return name && name->is_partial;
}

}  // namespace

void check_synthesis_output(const fs::path& directory, const std::vector<fs::path>& models) {
  const OutputKind kind = {.name = "text that `synthesize` wrote", .is_result = is_result, .is_leftover = is_leftover};
  check_output_directory(directory, fmt::format("--output {}", directory.empty() ? "\"\"" : directory.string()), kind, {}, models);
}

SynthesisOutput::SynthesisOutput(const SynthesisRequest& request) : request_(request) {
  check_synthesis_output(request_.directory, request_.models);
  lock_ = std::make_unique<OutputLock>(request_.directory);
  check_synthesis_output(request_.directory, request_.models);  // another process may have written before the lock was ours
  const fs::path journal = journal_of(request_.directory);
  writer_ = std::make_unique<data::ShardWriter>(request_.directory, request_.shard);
  try {
    const auto state = data::read_state(journal);
    if (state && take_up(*state)) return;
  } catch (const DataError& error) {
    if (!request_.overwrite) throw;
    spdlog::warn("{}; beginning anew", error.what());
  }
  // The journal goes last: until then the directory is one that the same command may write to.
  data::remove_shards(request_.directory);
  fs::remove(journal);
  writer_ = std::make_unique<data::ShardWriter>(request_.directory, request_.shard);
  next_document_ = 0;
  save();
}

// A finished output keeps the writer's place too: a greater number of tokens goes on there. False where all of it is to be replaced.
bool SynthesisOutput::take_up(const json& state) {
  const std::string where = journal_of(request_.directory).string(), folder = request_.directory.string();
  const auto settings = require<json>(state, "settings", where);
  const bool was_complete = require<bool>(state, "is_complete", where);
  const auto num_tokens = require<int64_t>(state, "num_tokens", where);
  const bool is_same = settings == request_.settings;
  if (request_.overwrite && (!is_same || was_complete)) return false;
  if (!is_same)
    throw ConfigError("{} holds text of other settings ({}): choose another --output, or give --overwrite", folder, settings.dump());
  if (was_complete) {
    const auto shards = data::shard_summaries(require<json>(state, "shards", where), where);
    if (const std::string fault = data::fault_of_shards(request_.directory, shards); !fault.empty())
      throw DataError("{}: the shards are not as they were written: {}; give --overwrite to write them again", where, fault);
  }
  next_document_ = require<uint64_t>(state, "next_document", where);
  if (was_complete && num_tokens >= request_.max_tokens) {
    spdlog::info("{}: complete already ({} tokens, --max-tokens {})", folder, num_tokens, request_.max_tokens);
    is_complete_ = true;
    return true;
  }
  writer_->restore(require<json>(state, "writer", where));
  if (num_tokens > 0) spdlog::info("going on after {} documents, {} tokens", next_document_, writer_->num_tokens());
  if (was_complete) save();  // its last shard is open again
  return true;
}

void SynthesisOutput::add(std::span<const int32_t> document) {
  writer_->add(document);
  ++next_document_;
}

void SynthesisOutput::save() {
  write(false, writer_->save());
}

void SynthesisOutput::finish() {
  const json place = writer_->save();
  write(false, place);
  writer_->finish();
  write(true, place);
}

void SynthesisOutput::write(bool is_complete, const json& place) {
  json state = {{"settings", request_.settings},
                {"next_document", next_document_},
                {"num_tokens", writer_->num_tokens()},
                {"is_complete", is_complete},
                {"writer", place}};
  if (is_complete) state["shards"] = data::to_json(writer_->shards());
  data::write_state(journal_of(request_.directory), state);
}

}  // namespace distil_xlstm::generate
