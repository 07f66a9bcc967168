// How `transformers` opens an export of a converted student: share/export/modeling_distil_xlstm.py, and the keys of config.json that it
// reads.
#pragma once

#include "student/convert/config.h"
#include "student/registry.h"

namespace distil_xlstm::student {

PythonForm convert_python_form(const ConvertConfig& config);

}  // namespace distil_xlstm::student
