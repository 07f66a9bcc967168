// Where the tests' inputs lie. A function and no macro, so that clones in other places share the compiler's cache.
#pragma once

#include <filesystem>

namespace distil_xlstm {

std::filesystem::path source_directory();
inline std::filesystem::path golden_directory() {
  return source_directory() / "tests" / "golden";
}

}  // namespace distil_xlstm
