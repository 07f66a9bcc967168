#include "support/source_directory.h"

#include <cstdlib>

namespace distil_xlstm {

std::filesystem::path source_directory() {
  const char* moved = std::getenv("DISTIL_XLSTM_SOURCE_DIR");  // where the tests run on another machine than they were built on
  return moved != nullptr && *moved != '\0' ? moved : DISTIL_XLSTM_SOURCE_DIR;
}

}  // namespace distil_xlstm
