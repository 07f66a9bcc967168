// safetensors: https://github.com/huggingface/safetensors (8-byte length, JSON header, data).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "io/weights.h"

namespace distil_xlstm::io {

// One mapped file. Everything in the header is checked before use: lengths, offsets, overlaps, sizes against dtype and shape.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const fs::path& path);
  [[nodiscard]] const std::vector<TensorView>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] const TensorView* find(std::string_view name) const;           // nullptr when missing
  [[nodiscard]] const TensorView& at(std::string_view name) const;             // throws DataError when missing
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  [[nodiscard]] const fs::path& path() const noexcept { return file_.path(); }

 private:
  MappedFile file_;
  std::vector<TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Writes tensors (in the given order, data 8-byte aligned header) to `path`, synced; `path` should lie in a staging directory or be
// replaced by the caller. Throws IoError (also for a full disk).
void write_safetensors(const fs::path& path, const std::vector<TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// `model.safetensors`, or the shards of `model.safetensors.index.json`, of a directory.
std::shared_ptr<WeightSource> open_safetensors_directory(const fs::path& directory);

}  // namespace distil_xlstm::io
