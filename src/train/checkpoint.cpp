#include "train/checkpoint.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <system_error>

#include "base/error.h"
#include "base/temporary_path.h"
#include "io/checksums.h"
#include "io/safetensors.h"

namespace distil_xlstm::train {
namespace {

constexpr const char* kFormat = "distil-xlstm checkpoint 1";
const std::vector<std::string> kHashedFiles = {"model.safetensors", "config.json", "optimizer.safetensors"};

constexpr std::array<std::pair<at::ScalarType, io::DType>, 5> kDTypes = {{{at::kFloat, io::DType::f32},
                                                                          {at::kDouble, io::DType::f64},
                                                                          {at::kHalf, io::DType::f16},
                                                                          {at::kBFloat16, io::DType::bf16},
                                                                          {at::kLong, io::DType::i64}}};

at::ScalarType loaded_dtype(io::DType dtype, const std::string& where) {
  for (const auto& [scalar_type, stored] : kDTypes) {
    if (stored == dtype) return scalar_type;
  }
  throw DataError("{}: type {} does not belong in a checkpoint", where, io::traits(dtype).name);
}

fs::path checkpoints_of(const fs::path& run) {
  return run / "checkpoints";
}

std::string checkpoint_name(int64_t step) {
  return fmt::format("step-{:08}", step);
}

// Into a directory that is there: where the run was removed meanwhile, nothing of it is made anew.
void write_new_json(const fs::path& path, const json& value) {
  std::ofstream stream(path, std::ios::binary);
  stream << value.dump(2, ' ', false, json::error_handler_t::replace) << '\n';
  stream.close();
  if (!stream) throw IoError("{}: cannot write to it: {}", path.string(), std::error_code(errno, std::generic_category()).message());
}

void remove_leftovers(const fs::path& run) {
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(checkpoints_of(run))) {
    if (is_temporary_name(entry.path().filename().string())) leftovers.push_back(entry.path());
  }
  for (const auto& path : leftovers) fs::remove_all(path);
}

}  // namespace

fs::path write_checkpoint(const fs::path& run, int64_t step, const CheckpointContent& content) {
  const fs::path target = checkpoints_of(run) / checkpoint_name(step);
  write_directory_atomic(target, [&](const fs::path& staging) {
    write_tensors(staging / "model.safetensors", content.model);
    write_tensors(staging / "optimizer.safetensors", content.optimizer);
    write_new_json(staging / "config.json", content.student_config);
    json trainer = {{"format", kFormat}};
    trainer.update(content.trainer);
    for (const std::string& name : kHashedFiles) trainer["files"][name] = io::file_record(staging / name);
    trainer["checksum"] = io::own_checksum(trainer);
    write_new_json(staging / "trainer.json", trainer);
  });
  point_to(run, "last", target);
  return target;
}

void point_to(const fs::path& run, const std::string& pointer, const fs::path& checkpoint) {
  if (!fs::is_directory(checkpoint)) throw IoError("{}: was removed before {} could name it", checkpoint.string(), pointer);
  write_file_atomic(checkpoints_of(run) / pointer, checkpoint.filename().string() + "\n");
}

std::optional<fs::path> follow_pointer(const fs::path& run, const std::string& pointer) {
  const fs::path path = checkpoints_of(run) / pointer;
  if (!fs::is_regular_file(path)) return std::nullopt;
  auto name = read_file(path);
  name.erase(name.find_last_not_of(" \r\n") + 1);
  if (!io::is_checkpoint_name(name) || !fs::is_directory(checkpoints_of(run) / name)) {
    throw DataError("{}: names '{}', which is no checkpoint beside it: write the name of one that is there into it", path.string(), name);
  }
  return checkpoints_of(run) / name;
}

std::optional<fs::path> checkpoint_at(const fs::path& run, int64_t step) {
  fs::path path = checkpoints_of(run) / checkpoint_name(step);
  if (!fs::is_directory(path)) return std::nullopt;
  return path;
}

void drop_checkpoints_after(const fs::path& run, int64_t step) {
  for (const auto& path : list_checkpoints(run)) {
    if (path.filename().string() > checkpoint_name(step)) fs::remove_all(path);
  }
}

void remove_checkpoints(const fs::path& run) {
  if (!fs::is_directory(checkpoints_of(run))) return;
  for (const char* pointer : {"last", "best"}) remove_pointer(run, pointer);
  for (const auto& path : list_checkpoints(run)) fs::remove_all(path);
  remove_leftovers(run);
  if (fs::is_empty(checkpoints_of(run))) fs::remove(checkpoints_of(run));
}

void remove_pointer(const fs::path& run, const std::string& pointer) {
  fs::remove(checkpoints_of(run) / pointer);
}

void prune_checkpoints(const fs::path& run, int64_t keep) {
  const auto last = follow_pointer(run, "last"), best = follow_pointer(run, "best");
  auto all = list_checkpoints(run);
  const auto num_old = std::max<int64_t>(0, static_cast<int64_t>(all.size()) - keep);
  for (int64_t i = 0; i < num_old; ++i) {
    const auto& candidate = all[static_cast<size_t>(i)];
    if (candidate != last && candidate != best) fs::remove_all(candidate);
  }
  remove_leftovers(run);
}

json read_checkpoint(const fs::path& checkpoint) {
  return io::read_trainer_json(checkpoint, kHashedFiles);
}

fs::path checked_last_checkpoint(const fs::path& run) {
  const auto last = follow_pointer(run, "last");
  if (!last) throw DataError("{}: no checkpoint to resume from", checkpoints_of(run).string());
  try {
    read_checkpoint(*last);
  } catch (const Error& error) {
    const auto whole = io::newest_whole_checkpoint(*last, kHashedFiles);
    if (!whole) throw;
    throw DataError("{}; {} is whole: to go on from it, write its name into {}", error.what(), whole->filename().string(),
                    (checkpoints_of(run) / "last").string());
  }
  return *last;
}

io::DType stored_dtype(at::ScalarType dtype) {
  for (const auto& [scalar_type, stored] : kDTypes) {
    if (scalar_type == dtype) return stored;
  }
  throw ValueError("checkpoint: tensors of type {} have no stored form", at::toString(dtype));
}

void write_tensors(const fs::path& path, const NamedTensors& tensors) {
  std::vector<Tensor> held;
  std::vector<io::TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    held.push_back(tensor.detach().to(at::kCPU).contiguous());
    const auto& data = held.back();
    views.push_back({name,
                     stored_dtype(data.scalar_type()),
                     data.sizes().vec(),
                     {static_cast<const std::byte*>(data.const_data_ptr()), data.nbytes()}});
  }
  io::write_safetensors(path, views, {{"format", "pt"}});
}

NamedTensors read_tensors(const fs::path& path) {
  const io::SafetensorsFile file(path);
  NamedTensors tensors;
  for (const auto& view : file.tensors()) {
    const auto dtype = loaded_dtype(view.dtype, path.string() + ": " + view.name);
    auto tensor = at::empty(view.shape, at::TensorOptions(dtype));
    std::copy(view.bytes.begin(), view.bytes.end(), static_cast<std::byte*>(tensor.mutable_data_ptr()));
    tensors.emplace_back(view.name, tensor);
  }
  return tensors;
}

}  // namespace distil_xlstm::train
