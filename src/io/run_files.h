// Whether the files of a run are still those that were written (docs/formats/run-directory.md): trainer.json holds size and XXH3-64 of its
// checkpoint's files, run.json of those that all checkpoints share.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/model_files.h"

namespace distil_xlstm::io {

// "step-00000100": a checkpoint's directory in <run>/checkpoints.
bool is_checkpoint_name(const std::string& name);

// All of them in <run>/checkpoints, oldest first.
std::vector<fs::path> list_checkpoints(const fs::path& run);

// trainer.json of a checkpoint; its own checksum and those of `files` beside it are checked. Throws DataError that names the damaged file.
json read_trainer_json(const fs::path& checkpoint, const std::vector<std::string>& files);

// What using a student reads of a checkpoint.
const std::vector<std::string>& student_files();

// The newest checkpoint beside `damaged` whose `files` are whole.
std::optional<fs::path> newest_whole_checkpoint(const fs::path& damaged, const std::vector<std::string>& files);

// For a checkpoint that trainer.json makes one: throws DataError when a file that a student is read from is not what was written, and names
// the newest checkpoint that is whole. Directories without a trainer.json of this program are no checkpoints: nothing to check.
void check_student_files(const fs::path& directory);

// The files of a run that its run.json has records of and `names` holds. Throws DataError that names the damaged file. Runs of versions
// that recorded nothing pass.
void check_run_files(const fs::path& run, const std::vector<std::string>& names);

// A checkpoint's own files alone, for training that goes on: embedding, head and tokenizer are the teacher's.
ModelFiles open_checkpoint(const fs::path& checkpoint);

}  // namespace distil_xlstm::io
