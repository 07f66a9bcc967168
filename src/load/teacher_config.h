// A teacher's configuration without its weights: what `plan` and `bench` need.
#pragma once

#include <string>

#include "base/json.h"
#include "teacher/teacher.h"

namespace distil_xlstm::load {

// Of a config.json, a directory with one, or any model of `--model`. Throws ConfigError for a student or what is no model.
json read_teacher_config(const std::string& model);
// Its shape; where the tensors are there too, as they make it.
teacher::TeacherShape read_teacher_shape(const std::string& model);

}  // namespace distil_xlstm::load
