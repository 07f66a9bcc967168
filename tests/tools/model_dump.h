// What model_dump's parts share.
#pragma once

#include <map>
#include <set>
#include <string>

#include "base/json.h"
#include "io/model_files.h"
#include "io/safetensors.h"
#include "ops/tensor.h"

namespace distil_xlstm {

// Each takes one value: --dtype float32|float64, --form parallel|chunkwise|recurrent, --layout cuda|vanilla, --gradients NAME, --states N,
// --write DIRECTORY.
inline const std::set<std::string> kStudentOptions{"--dtype", "--form", "--layout", "--gradients", "--states", "--write"};

struct Request {
  std::string model, tokens_path, out_path;
  bool with_hidden = false, with_attention = false;
  int64_t num_greedy = 0;
  std::map<std::string, std::string> student_options;
};

struct Input {
  Tensor tokens_BS, is_start_BS, targets_BS;  // the last two may be undefined
};

void dump_student(const io::ModelFiles& files, const Input& input, const Request& request, NamedTensors& out);
void write_tensors(const fs::path& path, const NamedTensors& tensors);

}  // namespace distil_xlstm
