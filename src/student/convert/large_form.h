// A student whose layers are all xlstm-large as `transformers` stores its own class xLSTMForCausalLM: other names, projections apart, and
// a config.json of its own (docs/convert.md, "Opens in plain transformers").
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/weights.h"
#include "student/convert/config.h"
#include "student/registry.h"

namespace distil_xlstm::student {

inline constexpr const char* kLargeMixer = "xlstm-large";
inline constexpr double kGateSoftCap = 15.0;  // of input and forget gates

// Names this form in StudentShape::to_json and Student::stored_tensors.
inline constexpr std::string_view kLargeLayout = "transformers";

// Whether every layer is xlstm-large.
bool is_large(const ConvertConfig& config);
// Throws ConfigError where that class has no place for what the teacher has.
void check_large(const ConvertConfig& config);

// `tensors`: the student's by their names, with embedding and head.
NamedTensors to_large_form(const ConvertConfig& config, const NamedTensors& tensors);
// The reverse, of the student whose tensors have these `names`. Throws DataError that names tensors which are missing, unexpected, or hold
// what a student of this program has no place for.
std::shared_ptr<io::WeightSource> from_large_form(const ConvertConfig& config, const std::vector<std::string>& names,
                                                  const std::shared_ptr<io::WeightSource>& weights);

PythonForm large_python_form(const ConvertConfig& config);

}  // namespace distil_xlstm::student
