// What an interrupted `prepare` needs to go on: one small file, replaced whole.
#pragma once

#include <optional>
#include <string_view>

#include "base/file.h"
#include "base/json.h"
#include "data/text_reader.h"

namespace distil_xlstm::data {

// What counts for the loss.
struct TargetCounts {
  uint64_t conversations = 0;
  uint64_t without_answer = 0;   // of them: nothing in them counts
  uint64_t missing_answers = 0;  // of all: RenderedChat::num_missing_answers
  json roles = json::array();    // of those, each set of roles once (a few)
  int64_t target_tokens = 0;     // ids that count, of texts (all but the first, which nothing predicts) and conversations
};

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

json to_json(const TargetCounts& targets);
TargetCounts target_counts(const json& value, std::string_view where);

void write_journal(const fs::path& directory, const PrepareJournal& journal);
// Nothing when there is none. Throws DataError when it is damaged.
std::optional<PrepareJournal> read_journal(const fs::path& directory);
bool has_journal(const fs::path& directory);
bool is_journal_name(std::string_view name);
void remove_journal(const fs::path& directory);

}  // namespace distil_xlstm::data
