// A student that keeps its teacher's layers but for attention, in whose place stands an mLSTM (docs/convert.md).
#pragma once

#include "student/registry.h"

namespace distil_xlstm::student {

StudentKind convert_kind();

}  // namespace distil_xlstm::student
