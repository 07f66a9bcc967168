// What the checkpoints of a run share, written once beside them: the frozen embedding and head, the tokenizer, and the stop ids.
#pragma once

#include "base/file.h"
#include "base/json.h"
#include "teacher/teacher.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::train {

struct SharedSources {
  const teacher::Teacher& teacher;
  const Tokenizer& tokenizer;
  const json& generation_config;
};

// Writes them from the teacher. Returns their sizes and checksums, which belong into run.json as "files".
json write_shared_files(const fs::path& run, const SharedSources& sources);

// For a run that goes on: those that are missing, or are not what `records` says, are written again, with a warning; the frozen
// matrices also where the teacher has another precision now. Where there are no records (runs of older versions) what lies there is
// recorded, but embedding and head must be the teacher's: else DataError.
json restore_shared_files(const fs::path& run, const json& records, const SharedSources& sources);

}  // namespace distil_xlstm::train
