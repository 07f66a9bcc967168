// How windows are laid over documents and scored.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace distil_xlstm::eval {

struct PerplexityOptions {
  int64_t context_length = 512;  // targets a window
  int64_t stride = 0;  // 0: context_length. Smaller: windows overlap, each target is scored with at least context - stride tokens before it
  int64_t batch_size = 8;              // windows at a time
  bool carry_state = false;            // the state goes on from window to window inside a document (reported apart)
  std::vector<int64_t> position_ends;  // ranges of positions in a window that are also summed apart: the last one of each, ascending up
                                       // to context_length; position p is the prediction made from p tokens
  std::vector<int32_t> left_out_rows;  // of the heads, ascending: as if they were not there
  std::string model_name = "the model", teacher_name = "the teacher";  // for messages
};

}  // namespace distil_xlstm::eval
