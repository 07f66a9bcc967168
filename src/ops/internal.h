// What the operations of this folder share: types to compute in, shape checks, masks of document starts.
#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <string_view>

#include "base/error.h"
#include "ops/tensor.h"

namespace distil_xlstm::ops {

// float64 stays, everything else computes in float32.
inline at::ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline std::string shape_text(at::IntArrayRef sizes) {
  return fmt::format("[{}]", fmt::join(sizes.begin(), sizes.end(), ", "));
}

// Throws ShapeError unless `tensor` has exactly these sizes; `what` names operation and argument ("slstm_scan: bias_HGK").
inline void check_shape(std::string_view what, const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  const at::IntArrayRef expected(sizes);
  if (!tensor.defined()) throw ShapeError("{}: not given, {} is needed", what, shape_text(expected));
  if (tensor.sizes() != expected)
    throw ShapeError("{}: {} does not fit the other arguments: {} is needed", what, shape_text(tensor.sizes()), shape_text(expected));
}

inline void check_rank(std::string_view what, const Tensor& tensor, int64_t rank) {
  if (!tensor.defined()) throw ShapeError("{}: not given, a tensor with {} dimensions is needed", what, rank);
  if (tensor.dim() != rank)
    throw ShapeError("{}: {} has {} dimensions, {} are needed", what, shape_text(tensor.sizes()), tensor.dim(), rank);
}

// Kernels take raw pointers: a tensor of another device would be read where it is not. Undefined tensors are skipped.
inline void check_device(std::string_view what, const Tensor& x, std::initializer_list<Tensor> others) {
  for (const Tensor& other : others) {
    if (other.defined() && other.device() != x.device())
      throw ShapeError("{}: on {}, another argument on {}: all must be on one device", what, x.device().str(), other.device().str());
  }
}

// An optional input in the type to compute in, contiguous; zeros when undefined.
inline Tensor or_zeros(const Tensor& tensor, at::IntArrayRef sizes, const at::TensorOptions& options) {
  return tensor.defined() ? tensor.to(options.dtype().toScalarType()).contiguous() : at::zeros(sizes, options);
}

// An input that may be undefined, as autograd functions take it: they fail on undefined tensors.
inline std::optional<Tensor> as_optional(const Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace distil_xlstm::ops
