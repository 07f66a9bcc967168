#include "data/prepare_directory.h"

#include "base/error.h"
#include "data/prepare_journal.h"
#include "data/shard_directory.h"

namespace distil_xlstm::data {
namespace {

// Other programs may have files of that name. One that is damaged is ours where shards lie beside it.
bool is_our_index(const fs::path& directory) {
  if (!fs::is_regular_file(index_path(directory))) return false;
  if (holds_shards(directory)) return true;
  try {
    const json index = read_json(index_path(directory));
    return index.is_object() && index.contains("settings") && index.contains("shards");
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

OutputKind prepared_text() {
  return {.name = "text that `prepare` wrote",
          .is_result = [](const fs::path& directory) { return has_journal(directory) || is_our_index(directory); },
          .is_leftover =
              [](const fs::path& entry) {
                const auto name = parse_shard_name(entry.filename().string());
                return name && name->is_partial;
              }};
}

void check_output(const PrepareOptions& options) {
  const std::vector<fs::path> inputs(options.reader.inputs.begin(), options.reader.inputs.end());
  std::vector<fs::path> models;
  if (!options.model.empty()) models.emplace_back(options.model);
  check_output_directory(options.output, fmt::format("--output {}", options.output.empty() ? "\"\"" : options.output.string()),
                         prepared_text(), inputs, models);
}

bool is_prepared(const fs::path& directory) {
  return fs::is_regular_file(index_path(directory));
}

std::string first_not_prepared(const fs::path& directory) {
  OutputKind kind = prepared_text();
  kind.is_leftover = [](const fs::path& entry) {
    const fs::path name = entry.filename();
    return parse_shard_name(name.string()) || name == index_path("") || is_journal_name(name.string());
  };
  return first_stranger(directory, kind);
}

void remove_prepared(const fs::path& directory) {
  remove_shards(directory);
  remove_journal(directory);
  fs::remove(index_path(directory));
}

fs::path index_path(const fs::path& directory) {
  return directory / "prepare.json";
}

void write_index(const fs::path& directory, const json& settings, const PrepareReport& report) {
  write_json(index_path(directory), {{"settings", settings},
                                     {"counts", to_json(report.counts)},
                                     {"refused_conversations", report.refused_conversations},
                                     {"targets", to_json(report.targets)},
                                     {"reached_max_tokens", report.reached_max_tokens},
                                     {"train_tokens", report.train_tokens},
                                     {"validation_tokens", report.validation_tokens},
                                     {"shards", to_json(report.shards)}});
}

PrepareReport report_of(const json& index, const std::string& where) {
  PrepareReport report;
  report.counts = reader_counts(require<json>(index, "counts", where), where);
  report.refused_conversations = require<uint64_t>(index, "refused_conversations", where);
  if (index.contains("targets")) report.targets = target_counts(index["targets"], where);
  report.train_tokens = require<int64_t>(index, "train_tokens", where);
  report.validation_tokens = require<int64_t>(index, "validation_tokens", where);
  report.reached_max_tokens = require<bool>(index, "reached_max_tokens", where);
  report.shards = shard_summaries(require<json>(index, "shards", where), where);
  return report;
}

}  // namespace distil_xlstm::data
