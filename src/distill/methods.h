// The methods of this program.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "distill/method.h"

namespace distil_xlstm::distill {

// In the order of the documentation.
std::vector<std::pair<std::string, MethodKind>> known_methods();

}  // namespace distil_xlstm::distill
