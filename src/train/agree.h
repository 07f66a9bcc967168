// Where the processes of a run must agree. At present a run has one (Ranks), and each of these gives back what it got: they mark the places
// that several would meet at.
#pragma once

#include <vector>

#include "base/ranks.h"
#include "data/loader.h"
#include "train/micro_batch.h"

namespace distil_xlstm::train {

// What the losses and gradients of a step are divided by.
struct StepCounts {
  int64_t num_targets = 0, num_rows = 0, num_tokens = 0;
};

// Of a step's micro-batches on all ranks: before anything is divided by them.
StepCounts count_step(const Ranks& ranks, const std::vector<data::Batch>& batches);

// Adds up the gradients, and the sums of the losses, of all ranks: before the norm is taken.
void sum_over_ranks(const Ranks& ranks, const NamedTensors& parameters, LossSums& sums);

// Whether one of the ranks says so: a signal to stop.
bool any_rank(const Ranks& ranks, bool says_so);

}  // namespace distil_xlstm::train
