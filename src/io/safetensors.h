// safetensors: https://github.com/huggingface/safetensors (8-byte length, JSON header, data).
#pragma once

#include <functional>
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
  [[nodiscard]] const TensorView* find(std::string_view name) const;  // nullptr when missing
  [[nodiscard]] const TensorView& at(std::string_view name) const;    // throws DataError when missing
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  [[nodiscard]] const fs::path& path() const noexcept { return file_.path(); }

  // Throws DataError where the metadata holds a checksum of the data (write_safetensors below) and the data is another.
  void check_data() const;

 private:
  MappedFile file_;
  std::vector<TensorView> tensors_;                   // in the order of their data
  std::map<std::string, size_t, std::less<>> index_;  // name -> place in tensors_
  std::map<std::string, std::string> metadata_;
};

// Writes tensors to `path`, synced; `path` should lie in a staging directory or be replaced by the caller. The data follow the given
// order, wider element types first, so that every tensor is aligned to its element size. Throws IoError (also for a full disk),
// ValueError for a name used twice, a quantised type, or bytes that do not fit dtype and shape. With `has_checksum` the metadata gains
// "data_xxh3", the XXH3-64 of all data: for files that no other file keeps a checksum of.
void write_safetensors(const fs::path& path, const std::vector<TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata = {}, bool has_checksum = false);
inline constexpr const char* kDataChecksum = "data_xxh3";

// Tensors of several files under one roof, checked where they hold a checksum; a name in two of them is a DataError. `origin` is for
// messages.
std::shared_ptr<WeightSource> open_safetensors_files(const std::vector<fs::path>& files, std::string origin);

// The weight files of a directory: `model.safetensors`, or the shards of `model.safetensors.index.json`. Throws DataError when it has
// neither.
std::vector<fs::path> safetensors_files(const fs::path& directory);

// Both together.
std::shared_ptr<WeightSource> open_safetensors_directory(const fs::path& directory);

}  // namespace distil_xlstm::io
