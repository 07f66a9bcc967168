#include "student/parameter.h"

#include <algorithm>
#include <cmath>

namespace distil_xlstm::student {

int64_t ParameterSpec::num_elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

std::vector<ParameterInfo> parameter_infos(const std::vector<ParameterSpec>& specs) {
  std::vector<ParameterInfo> infos;
  for (const auto& spec : specs) infos.push_back({spec.name, spec.shape, spec.group, spec.start});
  return infos;
}

Initializer constant(double value) {
  return [value](Random&, std::span<double> out) { std::fill(out.begin(), out.end(), value); };
}

Initializer normal(double standard_deviation) {
  return [standard_deviation](Random& random, std::span<double> out) {
    for (double& value : out) value = standard_deviation * random.normal();
  };
}

Initializer uniform(double bound) {
  return [bound](Random& random, std::span<double> out) {
    for (double& value : out) value = bound * (2.0 * random.uniform() - 1.0);
  };
}

double linspace_at(double first, double last, int64_t index, int64_t count) {
  return count == 1 ? first : first + (last - first) * static_cast<double>(index) / static_cast<double>(count - 1);
}

Initializer linspace(double first, double last) {
  return [first, last](Random&, std::span<double> out) {
    const auto count = static_cast<int64_t>(out.size());
    for (int64_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = linspace_at(first, last, i, count);
  };
}

double small_std(int64_t width) {
  return std::sqrt(2.0 / (5.0 * static_cast<double>(width)));
}

double wang_std(int64_t width, int64_t num_blocks) {
  return 2.0 / (static_cast<double>(num_blocks) * std::sqrt(static_cast<double>(width)));
}

at::ScalarType cell_dtype(at::ScalarType compute_dtype) {
  return compute_dtype == at::kHalf ? at::kBFloat16 : compute_dtype;
}

ProductType in_compute_type() {
  return [](const Tensor&, at::ScalarType compute_dtype) { return compute_dtype; };
}

ProductType in_cell_type() {
  return [](const Tensor&, at::ScalarType compute_dtype) { return cell_dtype(compute_dtype); };
}

}  // namespace distil_xlstm::student
