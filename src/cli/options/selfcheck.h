// What `distil-xlstm selfcheck` takes.
#pragma once

#include <string>

namespace distil_xlstm::cli {

struct SelfcheckOptions {
  std::string device = "auto";
};

}  // namespace distil_xlstm::cli
