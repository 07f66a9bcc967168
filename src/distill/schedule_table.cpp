#include "distill/schedule_table.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace distil_xlstm::distill {
namespace {

constexpr int64_t kShownEpochs = 12;

// Step -> note.
std::map<int64_t, std::string> chosen_steps(int64_t total_steps, int64_t steps_per_epoch, int64_t num_epochs) {
  std::map<int64_t, std::string> steps;
  for (const int64_t step : {0, 1, 2, 10, 100, 1000}) {
    if (step < total_steps) steps[step];
  }
  const int64_t stride = (num_epochs + kShownEpochs - 1) / kShownEpochs;
  for (int64_t epoch = stride; epoch < num_epochs; epoch += stride) {
    steps[epoch * steps_per_epoch - 1] = fmt::format("epoch {} ends", epoch);
    steps[epoch * steps_per_epoch] = fmt::format("epoch {} begins", epoch + 1);
  }
  steps[total_steps - 1] = "last step";
  return steps;
}

}  // namespace

std::vector<ScheduleRow> schedule_table(const config::DistillSettings& settings, int64_t total_steps, int64_t steps_per_epoch) {
  if (total_steps < 1) throw ConfigError("the run has {} optimizer steps: it needs at least 1", total_steps);
  if (steps_per_epoch < 1)
    throw ConfigError("an epoch has {} optimizer steps: it needs at least 1; is the training text empty?", steps_per_epoch);
  const int64_t num_epochs = (total_steps + steps_per_epoch - 1) / steps_per_epoch;
  const auto method = make_method(settings, total_steps, num_epochs, steps_per_epoch);
  std::vector<ScheduleRow> rows;
  int64_t epoch = 0;
  for (const auto& [step, note] : chosen_steps(total_steps, steps_per_epoch, num_epochs)) {
    for (; epoch < step / steps_per_epoch; ++epoch) method->end_epoch((epoch + 1) * steps_per_epoch);
    const StepContext context{.step = step, .total_steps = total_steps, .epoch = epoch, .num_epochs = num_epochs};
    rows.push_back({step, epoch, method->plan(in_its_stage(*method, context)), note});
  }
  return rows;
}

}  // namespace distil_xlstm::distill
