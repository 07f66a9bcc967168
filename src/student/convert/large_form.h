// A student whose layers are all xlstm-large as `transformers` stores its own class xLSTMForCausalLM: other names, projections apart, and
// a config.json of its own (docs/convert.md, "Opens in plain transformers").
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/weights.h"
#include "student/convert/config.h"
#include "student/parameter.h"
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
// Throws ConfigError where config.json says something else of the function than large_python_form does: transformers would compute another.
void check_large_config(const ConvertConfig& config, const json& stored, const std::string& where);
// The reverse of to_large_form, of the student whose tensors have these names and shapes. Throws DataError that names tensors which are
// missing, unexpected, of another shape, or hold what a student of this program has no place for.
std::shared_ptr<io::WeightSource> from_large_form(const ConvertConfig& config, const std::map<std::string, Shape>& shapes,
                                                  const std::shared_ptr<io::WeightSource>& weights);

PythonForm large_python_form(const ConvertConfig& config);

}  // namespace distil_xlstm::student
