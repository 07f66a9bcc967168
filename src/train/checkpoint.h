// Checkpoints of a run and the pointers to them (docs/formats/run-directory.md).
//   <run>/checkpoints/step-00000100/{model.safetensors, config.json, optimizer.safetensors, trainer.json}
//   <run>/checkpoints/last, best     text files that hold a directory's name
// A directory appears whole or not at all; trainer.json holds size and XXH3-64 of every file, and its own.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "io/dtype.h"
#include "io/run_files.h"
#include "ops/tensor.h"

namespace distil_xlstm::train {

struct CheckpointContent {
  json student_config;
  NamedTensors model;      // the trainable tensors as stored (Student::stored_tensors)
  NamedTensors optimizer;  // AdamW::state_tensors
  json trainer;            // counters, schedules, places; `files` and `checksum` are added
};

// Writes <run>/checkpoints/step-N and points `last` to it. Returns its directory.
fs::path write_checkpoint(const fs::path& run, int64_t step, const CheckpointContent& content);

// Lets checkpoints/<pointer> name `checkpoint`, atomically.
void point_to(const fs::path& run, const std::string& pointer, const fs::path& checkpoint);
// Where a pointer leads, if it exists. Throws DataError when it names no checkpoint.
std::optional<fs::path> follow_pointer(const fs::path& run, const std::string& pointer);

// Where the checkpoint of a step is, if it exists.
std::optional<fs::path> checkpoint_at(const fs::path& run, int64_t step);

// Removes checkpoints of later steps than `step`: what a run left that was resumed from an earlier one, or was killed before `last` moved.
void drop_checkpoints_after(const fs::path& run, int64_t step);

// Removes all checkpoints and pointers, and their directory where nothing else is in it.
void remove_checkpoints(const fs::path& run);

// Removes a pointer, if it exists.
void remove_pointer(const fs::path& run, const std::string& pointer);

// Removes the oldest checkpoints above `keep`, never `last` or `best`, and what interrupted writes left behind.
void prune_checkpoints(const fs::path& run, int64_t keep);

using io::list_checkpoints;

// trainer.json of a checkpoint after all its files were checked. Throws DataError that names the damaged file.
json read_checkpoint(const fs::path& checkpoint);

// The checkpoint that `last` names, checked. When it is damaged the DataError also names the newest one that is whole.
fs::path checked_last_checkpoint(const fs::path& run);

// The type as which tensors of a type are stored.
io::DType stored_dtype(at::ScalarType dtype);
// Tensors as a safetensors file, copied to the CPU where they are elsewhere.
void write_tensors(const fs::path& path, const NamedTensors& tensors);
// The tensors of optimizer.safetensors by name, as copies.
NamedTensors read_tensors(const fs::path& path);

}  // namespace distil_xlstm::train
