// Shared by the tests of io.
#pragma once

#include <gtest/gtest.h>

#include <unistd.h>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/file.h"

namespace distil_xlstm::io {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    static std::atomic<int> count = 0;
    path_ = fs::temp_directory_path() / ("distil-xlstm-io-" + std::to_string(::getpid()) + "-" + std::to_string(count++));
    fs::create_directories(path_);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }
  fs::path operator/(const fs::path& name) const { return path_ / name; }

 private:
  fs::path path_;
};

// A new file: some file systems flush one that is truncated, which takes milliseconds.
inline void write_text(const fs::path& path, const std::string& content) {
  fs::remove(path);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
}

// The message of the `ErrorType` that `action` throws; fails the test when it throws none or another one.
template <typename ErrorType, typename Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const ErrorType& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another kind of error: " << error.what();
    return "";
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace distil_xlstm::io
