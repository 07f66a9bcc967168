// The few kinds of failure. A message says where, what was received, what is allowed, and what to do.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace distil_xlstm {

// Base of every error that a user can cause; exit_code() is what `main` ends with (1 failed while running, 2 wrong use).
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, int exit_code = 1) : std::runtime_error(message), exit_code_(exit_code) {}
  [[nodiscard]] int exit_code() const noexcept { return exit_code_; }

 private:
  int exit_code_;
};

// Each takes a fmt format string: throw DataError("{}:{}: not JSON", path, line).
#define DISTIL_XLSTM_ERROR_TYPE(Name, code)                                                                                              \
  class Name : public Error {                                                                                                            \
   public:                                                                                                                               \
    template <typename... Args>                                                                                                          \
    explicit Name(fmt::format_string<Args...> format, Args&&... args) : Error(fmt::format(format, std::forward<Args>(args)...), code) {} \
  }

DISTIL_XLSTM_ERROR_TYPE(ConfigError, 2);  // a setting or an option
DISTIL_XLSTM_ERROR_TYPE(ValueError, 2);   // an argument outside its range
DISTIL_XLSTM_ERROR_TYPE(DataError, 1);    // the content of a file or a stream
DISTIL_XLSTM_ERROR_TYPE(ShapeError, 1);   // sizes that do not fit each other
DISTIL_XLSTM_ERROR_TYPE(IoError, 1);      // the file system or the network
DISTIL_XLSTM_ERROR_TYPE(DeviceError, 1);  // a GPU, its memory or its libraries
#undef DISTIL_XLSTM_ERROR_TYPE

// The user asked to stop; what was to be saved is saved. exit_code() is 128 + signal.
class Interrupted : public Error {
 public:
  explicit Interrupted(int signal, const std::string& message) : Error(message, 128 + signal) {}
};

}  // namespace distil_xlstm
