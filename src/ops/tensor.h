// The LibTorch names that all model code uses; included through the precompiled header.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace distil_xlstm {

using at::Tensor;

// Trainable or frozen tensors with their stored names, in a fixed order.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

}  // namespace distil_xlstm
