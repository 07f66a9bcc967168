#include "train/shared_files.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "base/log.h"
#include "io/checksums.h"
#include "io/safetensors.h"
#include "train/checkpoint.h"

namespace distil_xlstm::train {
namespace {

constexpr const char* kFrozen = "frozen.safetensors";
constexpr const char* kGeneration = "generation_config.json";

NamedTensors frozen_tensors(const teacher::Teacher& teacher) {
  NamedTensors tensors = {{"token_embedding.weight", teacher.embedding_weight()}};
  if (!teacher.has_tied_head()) tensors.emplace_back("lm_head.weight", teacher.head_weight());
  return tensors;
}

struct SharedFile {
  std::string name;
  std::function<void(const fs::path&)> write;
};

std::vector<SharedFile> shared_files(const SharedSources& sources) {
  return {{"tokenizer.json", [&](const fs::path& path) { write_file_atomic(path, sources.tokenizer.files().tokenizer_json); }},
          {"tokenizer_config.json", [&](const fs::path& path) { write_json(path, sources.tokenizer.files().tokenizer_config); }},
          {kGeneration, [&](const fs::path& path) { write_json(path, sources.generation_config); }},
          {kFrozen, [&](const fs::path& path) {
             const fs::path staging = path.string() + ".tmp";
             write_tensors(staging, frozen_tensors(sources.teacher));
             fs::rename(staging, path);
           }}};
}

// What is wrong with a file, "" where nothing is.
std::string fault_of(const fs::path& path, const json& records) {
  if (!fs::exists(path)) return path.string() + ": missing";
  const auto record = records.find(path.filename().string());
  if (record == records.end()) return "";
  try {
    io::check_file(path, *record, "run.json");
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

bool has_same_bytes(const io::TensorView& stored, const Tensor& tensor) {
  const Tensor here = tensor.detach().to(at::kCPU).contiguous();
  return stored.bytes.size() == here.nbytes() && std::memcmp(stored.bytes.data(), here.const_data_ptr(), here.nbytes()) == 0;
}

bool has_dtype(const io::TensorView& stored, const Tensor& tensor) {
  return stored.dtype == stored_dtype(tensor.scalar_type());
}

// Whether the matrices are stored in the precision that the teacher has now: after a failed run, or on another device, it may be another.
bool has_dtypes_of(const teacher::Teacher& teacher, const fs::path& path) {
  const io::SafetensorsFile file(path);
  return std::ranges::all_of(frozen_tensors(teacher), [&](const auto& named) {
    const io::TensorView* stored = file.find(named.first);
    return stored != nullptr && has_dtype(*stored, named.second);
  });
}

// A teacher of another precision has other bytes: nothing can be said then.
void check_frozen(const fs::path& path, const teacher::Teacher& teacher) {
  const io::SafetensorsFile file(path);
  for (const auto& [name, tensor] : frozen_tensors(teacher)) {
    const io::TensorView* stored = file.find(name);
    if (stored == nullptr || stored->shape != tensor.sizes().vec() || (has_dtype(*stored, tensor) && !has_same_bytes(*stored, tensor)))
      throw DataError("{}: {} is not that of the teacher as it is now: the run was trained with another teacher", path.string(), name);
  }
}

}  // namespace

json write_shared_files(const fs::path& run, const SharedSources& sources) {
  json records = json::object();
  for (const auto& file : shared_files(sources)) {
    file.write(run / file.name);
    records[file.name] = io::file_record(run / file.name);
  }
  return records;
}

json restore_shared_files(const fs::path& run, const json& records, const SharedSources& sources) {
  json restored = json::object();
  for (const auto& file : shared_files(sources)) {
    const fs::path path = run / file.name;
    const std::string fault = fault_of(path, records);
    bool is_as_recorded = fault.empty() && records.contains(file.name);
    if (!fault.empty()) {
      const bool is_new = file.name == kGeneration && !records.contains(kGeneration);  // earlier versions wrote none
      if (!is_new) spdlog::warn("{}; written again from the teacher", fault);
      file.write(path);
    } else if (file.name == kFrozen && !records.contains(kFrozen)) {
      check_frozen(path, sources.teacher);
    } else if (file.name == kFrozen && !has_dtypes_of(sources.teacher, path)) {
      spdlog::info("{}: written again, in the precision that the teacher has now", path.string());
      file.write(path);
      is_as_recorded = false;
    }
    restored[file.name] = is_as_recorded ? records[file.name] : io::file_record(path);
  }
  return restored;
}

}  // namespace distil_xlstm::train
