// A trainable tensor as its owner describes it before there is one: name, shape, first values, and what becomes of it in training.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "ops/tensor.h"
#include "student/shape.h"

namespace distil_xlstm::student {

using Shape = std::vector<int64_t>;
// Fills a tensor's values in the order of its memory.
using Initializer = std::function<void(Random&, std::span<double>)>;
// The type that products take a parameter in.
using ProductType = std::function<at::ScalarType(const Tensor& parameter, at::ScalarType compute_dtype)>;

// Which tensors the package's backends store in orders of their own (docs/mathematics.md 2).
enum class ParameterRole { plain, slstm_recurrent, slstm_bias };

struct ParameterSpec {
  std::string name;  // of a mixer's behind the prefix of its block: `xlstm_norm.weight`
  Shape shape;       // ours; R is [H, K, 4, K] and b is [H, 4, K]
  Initializer initialize;
  std::string group = "mixer";  // of parameters that are trained alike: "norm", "attention", "mixer", "feed_forward"
  bool decays = false;          // whether weight decay applies (docs/mathematics.md 5)
  ProductType product_type;     // null: as it is
  ParameterRole role = ParameterRole::plain;
  std::string start = "drawn";  // where a fresh student has it from, for people

  [[nodiscard]] int64_t num_elements() const;
};

std::vector<ParameterInfo> parameter_infos(const std::vector<ParameterSpec>& specs);

Initializer constant(double value);
Initializer normal(double standard_deviation);
Initializer uniform(double bound);  // in [-bound, bound)
// From `first` to `last` in even steps over all elements.
Initializer linspace(double first, double last);
double linspace_at(double first, double last, int64_t index, int64_t count);

// Standard deviations "small" and "wang" (docs/mathematics.md 1).
double small_std(int64_t width);
double wang_std(int64_t width, int64_t num_blocks);

// The type of what enters the cells (the sLSTM's gate pre-activations; the mLSTM's q, k, v) and leaves them: bfloat16 beside float16
// products, whose range is too small for the path into the exponentials and for the mLSTM's output, which may be around 1e-5
// (docs/mathematics.md 9, points 2 and 7).
at::ScalarType cell_dtype(at::ScalarType compute_dtype);

// Product types: the compute type itself, and the cells'.
ProductType in_compute_type();
ProductType in_cell_type();

}  // namespace distil_xlstm::student
