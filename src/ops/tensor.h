// The LibTorch names that all model code uses; included through the precompiled header.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace distil_xlstm {

using at::Tensor;

// Trainable or frozen tensors with their stored names, in a fixed order.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

namespace ops {

// Whether autograd must record an operation on these.
inline bool any_requires_grad(std::initializer_list<Tensor> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor& tensor : tensors) {
    if (tensor.defined() && tensor.requires_grad()) return true;
  }
  return false;
}

}  // namespace ops

}  // namespace distil_xlstm
