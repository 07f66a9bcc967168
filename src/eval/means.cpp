#include "eval/means.h"

#include <cmath>
#include <vector>

namespace distil_xlstm::eval {

MeanOf mean_of(std::span<const double> values) {
  const auto count = static_cast<double>(values.size());
  double sum = 0.0, squares = 0.0;
  for (const double value : values) sum += value;
  const double mean = sum / count;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean, values.size() > 1 ? std::sqrt(squares / (count - 1.0) / count) : 0.0};
}

json share_json(double part, double whole) {
  return whole > 0.0 ? json(part / whole) : json(nullptr);
}

void add_mean(json& object, const std::string& name, std::span<const double> values) {
  const MeanOf mean = mean_of(values);
  object[name] = mean.mean;
  object[name + "_stderr"] = mean.standard_error;
}

json paired_json(std::span<const double> model, std::span<const double> teacher) {
  std::vector<double> differences(model.size());
  for (size_t i = 0; i < model.size(); ++i) differences[i] = model[i] - teacher[i];
  const MeanOf difference = mean_of(differences);
  return {{"kept", share_json(mean_of(model).mean, mean_of(teacher).mean)},
          {"difference", difference.mean},
          {"difference_stderr", difference.standard_error}};
}

}  // namespace distil_xlstm::eval
