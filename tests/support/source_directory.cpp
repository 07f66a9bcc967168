#include "support/source_directory.h"

namespace distil_xlstm {

std::filesystem::path source_directory() {
  return DISTIL_XLSTM_SOURCE_DIR;
}

}  // namespace distil_xlstm
