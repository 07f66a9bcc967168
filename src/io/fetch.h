// What `distil-xlstm fetch NAME` does.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"

namespace distil_xlstm::io {

struct FetchRequest {
  std::string name;  // a built-in, or org/name[@revision]
  bool is_dataset = false;
  std::vector<std::string> globs;  // empty: what a model needs, a whole data set
};

// Brings it and returns where it lies. Says on stderr what it does. Throws ConfigError for a name that is neither.
fs::path fetch(const FetchRequest& request);

}  // namespace distil_xlstm::io
