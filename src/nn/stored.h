// What loading stored weights shares between teachers and students.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/dtype.h"
#include "ops/tensor.h"

namespace distil_xlstm::nn {

// The tensor type whose elements are stored as they stand; none for packed and integer types.
std::optional<at::ScalarType> stored_type(io::DType dtype);

// The first names, and how many more there are.
std::string listed(const std::vector<std::string>& names);

}  // namespace distil_xlstm::nn
