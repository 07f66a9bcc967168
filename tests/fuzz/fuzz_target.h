// What the fuzz targets share: inputs as JSON recipes, from which a target builds a file with right lengths, offsets and checksums, so that
// mutation reaches what lies behind them; and a mutator that keeps a recipe JSON.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json_limits.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace distil_xlstm::fuzz {

// Runs `body`. The program's own errors are what broken input shall give: anything else ends the target and is a finding.
template <typename Body>
void tolerate(Body&& body) {
  try {
    body();
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch)
  }
}

// A directory of this process, gone with it; where tools/fuzz says, which takes away what a target that crashed left.
class Folder {
 public:
  Folder() {
    const char* parent = std::getenv("DISTIL_XLSTM_FUZZ_FOLDER");
    path_ = fs::path(parent != nullptr ? parent : "/dev/shm") / ("distil-xlstm-fuzz-" + std::to_string(::getpid()));
    clear();
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }
  void clear() const {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  fs::path write(const std::string& name, std::string_view content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path_ / name;
  }

 private:
  fs::path path_;
};

// The recipe, or null where the input is none.
json read_recipe(const uint8_t* data, size_t size);

// Recipes hold what the target asks for or something else: then these give the fallback.
uint64_t number_or(const json& recipe, const char* key, uint64_t fallback);
std::string text_or(const json& recipe, const char* key, const std::string& fallback);
json list_or_empty(const json& recipe, const char* key);

// Applies "patches": [[offset, byte], ...] to a file that was built right; offsets count round its size.
void apply_patches(std::string& content, const json& recipe);

template <typename T>
void append(std::string& content, T value) {
  content.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Changes some of the recipe's values, keys and lists; `words` are what its texts are made of.
size_t mutate_recipe(uint8_t* data, size_t size, size_t max_size, unsigned seed, const std::vector<std::string>& words);

}  // namespace distil_xlstm::fuzz

// The mutator of a target whose inputs are recipes.
#define DISTIL_XLSTM_RECIPE_MUTATOR(...)                                                                  \
  extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) { \
    static const std::vector<std::string> words = __VA_ARGS__;                                            \
    return distil_xlstm::fuzz::mutate_recipe(data, size, max_size, seed, words);                          \
  }                                                                                                       \
  static_assert(true)
