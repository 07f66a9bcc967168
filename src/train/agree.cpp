#include "train/agree.h"

#include "base/error.h"

namespace distil_xlstm::train {
namespace {

void check_alone(const Ranks& ranks) {
  if (ranks.world_size != 1) throw ConfigError("a run of {} processes: this version trains with one", ranks.world_size);
}

}  // namespace

StepCounts count_step(const Ranks& ranks, const std::vector<data::Batch>& batches) {
  check_alone(ranks);
  StepCounts counts;
  for (const auto& batch : batches) {
    counts.num_targets += batch.num_targets;
    counts.num_rows += batch.num_rows;
    counts.num_tokens += batch.num_rows * batch.context_length;
  }
  return counts;
}

void sum_over_ranks(const Ranks& ranks, const NamedTensors& /*parameters*/, LossSums& /*sums*/) {
  check_alone(ranks);
}

bool any_rank(const Ranks& ranks, bool says_so) {
  check_alone(ranks);
  return says_so;
}

}  // namespace distil_xlstm::train
