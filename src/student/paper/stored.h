// Parameters of a student to and from the tensors of a checkpoint: names and layouts of the package `xlstm` (docs/mathematics.md 2, 5).
#pragma once

#include "student/paper/mixers.h"
#include "student/paper/student.h"

namespace distil_xlstm::student {

struct LoadedTensors {
  NamedTensors parameters;       // by our names, in the order of parameter_specs, of the type asked for
  Tensor embedding_VD, head_VD;  // in their stored type; on a CPU views of the mapped file where they can be
  bool has_own_head = false;     // the configuration ties it, but one of other values is stored, which head_VD then is
};

// Reads every parameter, and embedding and head unless `needs_frozen` is false. Throws DataError that names missing, unexpected and
// mis-shaped tensors.
LoadedTensors load_tensors(const StudentConfig& config, const std::shared_ptr<io::WeightSource>& source, at::Device device,
                           at::ScalarType parameter_dtype, bool needs_frozen);

// One parameter as a backend of the package stores it (a copy), and back.
Tensor to_stored(const Tensor& parameter, ParameterRole role, SlstmLayout layout);
Tensor from_stored(const Tensor& stored, const std::vector<int64_t>& shape, ParameterRole role, SlstmLayout layout);

}  // namespace distil_xlstm::student
