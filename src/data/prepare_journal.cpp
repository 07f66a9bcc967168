#include "data/prepare_journal.h"

#include <cstring>

#include "base/error.h"
#include "base/hash.h"

namespace distil_xlstm::data {

namespace {

constexpr std::string_view kMagic = "DXJOURN1";  // then XXH3-64 of what follows, then CBOR

fs::path journal_path(const fs::path& directory) {
  return directory / "prepare.journal";
}

uint64_t checksum(std::string_view text) {
  return xxh3_64(std::as_bytes(std::span(text.data(), text.size())));
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
                        {"split", journal.split},
                        {"train", journal.train},
                        {"validation", journal.validation}};
  std::string body;
  json::to_cbor(content, body);
  const uint64_t sum = checksum(body);
  std::string text(kMagic);
  text.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  write_file_atomic(journal_path(directory), text + body);
}

std::optional<PrepareJournal> read_journal(const fs::path& directory) {
  const fs::path path = journal_path(directory);
  if (!fs::exists(path)) return std::nullopt;
  const std::string text = read_file(path);
  const std::string where = path.string();
  uint64_t sum = 0;
  const size_t head = kMagic.size() + sizeof sum;
  const bool long_enough = text.size() > head && text.starts_with(kMagic);
  if (long_enough) std::memcpy(&sum, text.data() + kMagic.size(), sizeof sum);
  if (!long_enough || checksum(std::string_view(text).substr(head)) != sum) {
    throw DataError("{}: damaged: start again with --overwrite", where);
  }
  const json content = json::from_cbor(text.begin() + static_cast<ptrdiff_t>(head), text.end(), true, false);
  if (!content.is_object()) throw DataError("{}: damaged: start again with --overwrite", where);
  PrepareJournal journal;
  journal.settings = require<json>(content, "settings", where);
  journal.place = {require<uint64_t>(content, "file", where), require<uint64_t>(content, "row", where),
                   require<uint64_t>(content, "piece", where)};
  journal.counts = reader_counts(require<json>(content, "counts", where), where);
  journal.refused_conversations = require<uint64_t>(content, "refused_conversations", where);
  journal.split = require<uint32_t>(content, "split", where);
  journal.train = require<json>(content, "train", where);
  journal.validation = require<json>(content, "validation", where);
  return journal;
}

void remove_journal(const fs::path& directory) {
  fs::remove(journal_path(directory));
}

}  // namespace distil_xlstm::data
