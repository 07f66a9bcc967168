// How many optimizer steps and epochs a run has. A token is a row's input token: rows * context_length.
#pragma once

#include <cstdint>

#include "config/run_config.h"

namespace distil_xlstm::train {

struct RunLength {
  int64_t steps_per_epoch = 0;  // the last step of an epoch may be shorter
  int64_t total_steps = 0;
  int64_t num_epochs = 0;         // begun, whole or not
  bool ends_with_epochs = false;  // num_epochs was asked for: the data's end is the run's end, also when steps were skipped
  int64_t total_tokens = 0;
};

// From [train] and the rows of one epoch; max_tokens ends with the step that reaches it. With none of the three lengths: one epoch. Throws
// ConfigError for more than one of them, DataError without rows.
RunLength run_length(const config::TrainSettings& settings, int64_t rows_per_epoch, int64_t context_length);

}  // namespace distil_xlstm::train
