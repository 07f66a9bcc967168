// GGUF, versions 2 and 3, little-endian. From the start of the file:
//   u32 "GGUF", u32 version, u64 num_tensors, u64 num_pairs
//   num_pairs times: string key, u32 type, value     string: u64 length, bytes; array: u32 type, u64 length, values
//   num_tensors times: string name, u32 num_dimensions, u64 dimensions (fastest first), u32 type, u64 offset
//   padding to general.alignment (32 unless set), then the tensors in that order, each padded to the alignment
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/file.h"
#include "io/weights.h"

namespace distil_xlstm::io {

// Integers are int64_t (those above its range double), float32 becomes the double with the same shortest decimal (1e-05, not
// 9.99999974e-06). Arrays of bool are arrays of integers.
using GgufValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;

// One mapped file, all of its header checked before use. Throws DataError that names the file.
class GgufFile {
 public:
  explicit GgufFile(const fs::path& path);
  [[nodiscard]] const std::vector<TensorView>& tensors() const noexcept { return tensors_; }  // GGUF's names; shapes slowest first
  [[nodiscard]] const TensorView* find(std::string_view name) const;                          // nullptr when missing
  [[nodiscard]] const std::map<std::string, GgufValue, std::less<>>& metadata() const noexcept { return metadata_; }
  [[nodiscard]] fs::path path() const { return file_.path(); }

  // metadata()[key], nullptr when missing; throws DataError that names the key when it has another type.
  template <typename T>
  [[nodiscard]] const T* get(std::string_view key) const {
    const auto it = metadata_.find(key);
    if (it == metadata_.end()) return nullptr;
    if (const T* value = std::get_if<T>(&it->second)) return value;
    throw_wrong_type(key);
  }
  template <typename T>
  [[nodiscard]] T get_or(std::string_view key, const T& fallback) const {
    const T* value = get<T>(key);
    return value == nullptr ? fallback : *value;
  }
  template <typename T>
  [[nodiscard]] const T& require(std::string_view key) const {
    const T* value = get<T>(key);
    if (value == nullptr) throw_missing(key);
    return *value;
  }

 private:
  [[noreturn]] void throw_wrong_type(std::string_view key) const;
  [[noreturn]] void throw_missing(std::string_view key) const;

  MappedFile file_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<TensorView> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace distil_xlstm::io
