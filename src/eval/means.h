// Means over what was asked, with their standard errors.
#pragma once

#include <span>

#include "base/json.h"

namespace distil_xlstm::eval {

struct MeanOf {
  double mean = 0.0;
  double standard_error = 0.0;  // of the mean; 0 of a single value
};

MeanOf mean_of(std::span<const double> values);

// Null where there is nothing to keep a part of.
json share_json(double part, double whole);

// "NAME", "NAME_stderr": the mean of values.
void add_mean(json& object, const std::string& name, std::span<const double> values);

// Of the same items: kept (model / teacher), difference (model - teacher) and the standard error of the paired difference.
json paired_json(std::span<const double> model, std::span<const double> teacher);

}  // namespace distil_xlstm::eval
