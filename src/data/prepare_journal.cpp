#include "data/prepare_journal.h"

#include "data/journal.h"

namespace distil_xlstm::data {

namespace {

fs::path journal_path(const fs::path& directory) {
  return directory / "prepare.journal";
}

}  // namespace

json to_json(const ReaderCounts& counts) {
  return {{"documents", counts.documents},           {"text_bytes", counts.text_bytes},     {"empty_documents", counts.empty_documents},
          {"malformed_rows", counts.malformed_rows}, {"invalid_utf8", counts.invalid_utf8}, {"cut_documents", counts.cut_documents}};
}

ReaderCounts reader_counts(const json& value, std::string_view where) {
  ReaderCounts counts;
  counts.documents = require<uint64_t>(value, "documents", where);
  counts.text_bytes = require<uint64_t>(value, "text_bytes", where);
  counts.empty_documents = require<uint64_t>(value, "empty_documents", where);
  counts.malformed_rows = require<uint64_t>(value, "malformed_rows", where);
  counts.invalid_utf8 = require<uint64_t>(value, "invalid_utf8", where);
  counts.cut_documents = require<uint64_t>(value, "cut_documents", where);
  return counts;
}

void write_journal(const fs::path& directory, const PrepareJournal& journal) {
  const json content = {{"settings", journal.settings},
                        {"file", journal.place.file},
                        {"row", journal.place.row},
                        {"piece", journal.place.piece},
                        {"counts", to_json(journal.counts)},
                        {"refused_conversations", journal.refused_conversations},
                        {"targets", to_json(journal.targets)},
                        {"split", journal.split},
                        {"train", journal.train},
                        {"validation", journal.validation}};
  write_state(journal_path(directory), content);
}

std::optional<PrepareJournal> read_journal(const fs::path& directory) {
  const fs::path path = journal_path(directory);
  const std::optional<json> state = read_state(path);
  if (!state) return std::nullopt;
  const json& content = *state;
  const std::string where = path.string();
  PrepareJournal journal;
  journal.settings = require<json>(content, "settings", where);
  journal.place = {require<uint64_t>(content, "file", where), require<uint64_t>(content, "row", where),
                   require<uint64_t>(content, "piece", where)};
  journal.counts = reader_counts(require<json>(content, "counts", where), where);
  journal.refused_conversations = require<uint64_t>(content, "refused_conversations", where);
  // Earlier versions did not count them.
  if (content.contains("targets")) journal.targets = target_counts(content["targets"], where);
  journal.split = require<uint32_t>(content, "split", where);
  journal.train = require<json>(content, "train", where);
  journal.validation = require<json>(content, "validation", where);
  return journal;
}

bool has_journal(const fs::path& directory) {
  return fs::is_regular_file(journal_path(directory));
}

bool is_journal_name(std::string_view name) {
  return name == journal_path("").string();
}

void remove_journal(const fs::path& directory) {
  fs::remove(journal_path(directory));
}

}  // namespace distil_xlstm::data
