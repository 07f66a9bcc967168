// What loading stored weights shares between teachers and students.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/dtype.h"
#include "io/weights.h"
#include "ops/tensor.h"

namespace distil_xlstm::nn {

// The tensor type whose elements are stored as they stand; none for packed and integer types.
std::optional<at::ScalarType> stored_type(io::DType dtype);

// The stored values: a view of the mapped bytes, which keeps the source open and must not be written to, or float32 where the container
// encodes them.
Tensor read_stored(const std::shared_ptr<io::WeightSource>& source, const std::string& name);

// Throws DataError that names them unless both are empty: the tensors that a file lacks, and those that nothing asks for.
void check_names(const std::string& origin, const std::vector<std::string>& missing, const std::vector<std::string>& unexpected,
                 const std::string& hint = "");

}  // namespace distil_xlstm::nn
