// What an interrupted `prepare` needs to go on: one small file, replaced whole.
#pragma once

#include <optional>
#include <string_view>

#include "base/file.h"
#include "base/json.h"
#include "data/target_counts.h"
#include "data/text_reader.h"

namespace distil_xlstm::data {

struct PrepareJournal {
  json settings;  // must be those of the run that goes on
  ReaderPlace place;
  ReaderCounts counts;
  uint64_t refused_conversations = 0;
  TargetCounts targets;
  uint32_t split = 0;      // of the document that is being read
  json train, validation;  // ShardWriter::save()
};

json to_json(const ReaderCounts& counts);
ReaderCounts reader_counts(const json& value, std::string_view where);

void write_journal(const fs::path& directory, const PrepareJournal& journal);
// Nothing when there is none. Throws DataError when it is damaged.
std::optional<PrepareJournal> read_journal(const fs::path& directory);
bool has_journal(const fs::path& directory);
bool is_journal_name(std::string_view name);
void remove_journal(const fs::path& directory);

}  // namespace distil_xlstm::data
