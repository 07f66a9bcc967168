#include "train/run_length.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace distil_xlstm::train {
namespace {

int64_t divide_up(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace

RunLength run_length(const config::TrainSettings& settings, int64_t rows_per_epoch, int64_t context_length) {
  if (rows_per_epoch < 1 || context_length < 1)
    throw DataError("training data: {} rows of {} tokens: nothing to train on", rows_per_epoch, context_length);
  std::vector<std::string> lengths;
  for (const auto& [name, value] : {std::pair<const char*, int64_t>{"train.num_epochs", settings.num_epochs},
                                    {"train.max_tokens", settings.max_tokens},
                                    {"train.max_steps", settings.max_steps}}) {
    if (value > 0) lengths.push_back(fmt::format("{} = {}", name, value));
  }
  if (lengths.size() > 1) throw ConfigError("{} are set together: set one of them", join(lengths, " and "));
  const int64_t rows_per_step = settings.micro_batch_size * settings.gradient_accumulation_steps;
  RunLength length;
  length.steps_per_epoch = divide_up(rows_per_epoch, rows_per_step);
  if (settings.max_steps > 0) {
    length.total_steps = settings.max_steps;
  } else if (settings.max_tokens > 0) {
    const int64_t rows = divide_up(settings.max_tokens, context_length);
    length.total_steps = rows / rows_per_epoch * length.steps_per_epoch + divide_up(rows % rows_per_epoch, rows_per_step);
  } else {
    length.ends_with_epochs = true;
    length.total_steps = std::max<int64_t>(settings.num_epochs, 1) * length.steps_per_epoch;
  }
  length.num_epochs = divide_up(length.total_steps, length.steps_per_epoch);
  const int64_t whole_epochs = length.total_steps / length.steps_per_epoch;
  const int64_t rows_left = std::min(length.total_steps % length.steps_per_epoch * rows_per_step, rows_per_epoch);
  length.total_tokens = (whole_epochs * rows_per_epoch + rows_left) * context_length;
  return length;
}

}  // namespace distil_xlstm::train
