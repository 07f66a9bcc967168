#include "train/checkpoint.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "io/safetensors.h"

namespace distil_xlstm::train {
namespace {

constexpr const char* kFormat = "distil-xlstm checkpoint 1";
constexpr std::array kHashedFiles = {"model.safetensors", "config.json", "optimizer.safetensors"};
constexpr std::string_view kStepPrefix = "step-";

constexpr std::array<std::pair<at::ScalarType, io::DType>, 5> kDTypes = {{{at::kFloat, io::DType::f32},
                                                                          {at::kDouble, io::DType::f64},
                                                                          {at::kHalf, io::DType::f16},
                                                                          {at::kBFloat16, io::DType::bf16},
                                                                          {at::kLong, io::DType::i64}}};

io::DType stored_dtype(at::ScalarType dtype) {
  for (const auto& [scalar_type, stored] : kDTypes) {
    if (scalar_type == dtype) return stored;
  }
  throw ValueError("checkpoint: tensors of type {} have no stored form", at::toString(dtype));
}

at::ScalarType loaded_dtype(io::DType dtype, const std::string& where) {
  for (const auto& [scalar_type, stored] : kDTypes) {
    if (stored == dtype) return scalar_type;
  }
  throw DataError("{}: type {} does not belong in a checkpoint", where, io::traits(dtype).name);
}

std::string hash_of(std::span<const std::byte> bytes) {
  return fmt::format("{:016x}", xxh3_64(bytes));
}

// The checksum of trainer.json covers everything else in it.
std::string own_checksum(json trainer) {
  trainer.erase("checksum");
  const std::string text = trainer.dump();
  return hash_of(std::as_bytes(std::span(text)));
}

fs::path checkpoints_of(const fs::path& run) {
  return run / "checkpoints";
}

std::string checkpoint_name(int64_t step) {
  return fmt::format("{}{:08}", kStepPrefix, step);
}

bool is_checkpoint_name(const std::string& name) {
  return name.size() == kStepPrefix.size() + 8 && name.starts_with(kStepPrefix) &&
         name.find_first_not_of("0123456789", kStepPrefix.size()) == std::string::npos;
}

void remove_leftovers(const fs::path& run) {
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(checkpoints_of(run))) {
    if (entry.path().filename().string().find(".tmp-") != std::string::npos) leftovers.push_back(entry.path());
  }
  for (const auto& path : leftovers) fs::remove_all(path);
}

void check_file(const fs::path& path, const json& expected) {
  const std::string where = path.string();
  if (!fs::is_regular_file(path)) throw DataError("{}: missing: the checkpoint is incomplete", where);
  const MappedFile file(path);
  const auto size_bytes = require<uint64_t>(expected, "bytes", where);
  if (file.bytes().size() != size_bytes)
    throw DataError("{}: {} bytes, trainer.json recorded {}: the file is cut or was changed", where, file.bytes().size(), size_bytes);
  const auto wanted = require<std::string>(expected, "xxh3", where);
  if (const auto actual = hash_of(file.bytes()); actual != wanted) {
    throw DataError("{}: XXH3-64 is {}, trainer.json recorded {}: the content is damaged", where, actual, wanted);
  }
}

}  // namespace

fs::path write_checkpoint(const fs::path& run, int64_t step, const CheckpointContent& content) {
  const fs::path target = checkpoints_of(run) / checkpoint_name(step);
  write_directory_atomic(target, [&](const fs::path& staging) {
    write_tensors(staging / "model.safetensors", content.model);
    write_tensors(staging / "optimizer.safetensors", content.optimizer);
    write_json(staging / "config.json", content.student_config);
    json trainer = {{"format", kFormat}};
    trainer.update(content.trainer);
    for (const char* name : kHashedFiles) {
      const MappedFile file(staging / name);
      trainer["files"][name] = {{"bytes", file.bytes().size()}, {"xxh3", hash_of(file.bytes())}};
    }
    trainer["checksum"] = own_checksum(trainer);
    write_json(staging / "trainer.json", trainer);
  });
  point_to(run, "last", target);
  return target;
}

void point_to(const fs::path& run, const std::string& pointer, const fs::path& checkpoint) {
  write_file_atomic(checkpoints_of(run) / pointer, checkpoint.filename().string() + "\n");
}

std::optional<fs::path> follow_pointer(const fs::path& run, const std::string& pointer) {
  const fs::path path = checkpoints_of(run) / pointer;
  if (!fs::is_regular_file(path)) return std::nullopt;
  auto name = read_file(path);
  name.erase(name.find_last_not_of(" \r\n") + 1);
  if (!is_checkpoint_name(name) || !fs::is_directory(checkpoints_of(run) / name)) {
    throw DataError("{}: names '{}', which is no checkpoint beside it: write the name of one that is there into it", path.string(), name);
  }
  return checkpoints_of(run) / name;
}

std::vector<fs::path> list_checkpoints(const fs::path& run) {
  std::vector<fs::path> found;
  if (!fs::is_directory(checkpoints_of(run))) return found;
  for (const auto& entry : fs::directory_iterator(checkpoints_of(run))) {
    if (entry.is_directory() && is_checkpoint_name(entry.path().filename().string())) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
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
  const fs::path path = checkpoint / "trainer.json";
  const std::string where = path.string();
  if (!fs::is_regular_file(path))
    throw DataError("{}: missing: {} is no checkpoint that training can go on from", where, checkpoint.string());
  const json trainer = read_json(path);
  if (!trainer.is_object() || get_or<std::string>(trainer, "format", "", where) != kFormat) {
    throw DataError("{}: its format is not \"{}\": another version of the program wrote it", where, kFormat);
  }
  if (require<std::string>(trainer, "checksum", where) != own_checksum(trainer))
    throw DataError("{}: its checksum does not fit: the content is damaged", where);
  const auto files = require<json>(trainer, "files", where);
  for (const char* name : kHashedFiles) check_file(checkpoint / name, require<json>(files, name, where));
  return trainer;
}

fs::path checked_last_checkpoint(const fs::path& run) {
  const auto last = follow_pointer(run, "last");
  if (!last) throw DataError("{}: no checkpoint to resume from", checkpoints_of(run).string());
  try {
    read_checkpoint(*last);
    return *last;
  } catch (const Error& error) {
    auto all = list_checkpoints(run);
    for (auto it = all.rbegin(); it != all.rend(); ++it) {
      if (*it == *last) continue;
      try {
        read_checkpoint(*it);
      } catch (const Error&) {
        continue;
      }
      throw DataError("{}; {} is whole: to go on from it, write its name into {}", error.what(), it->filename().string(),
                      (checkpoints_of(run) / "last").string());
    }
    throw;
  }
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
