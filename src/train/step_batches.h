// The micro-batches of each optimizer step, those of the next one read ahead.
#pragma once

#include <vector>

#include "data/loader.h"

namespace distil_xlstm::train {

class StepBatches {
 public:
  // The loader must outlive this object.
  StepBatches(data::Loader& loader, int64_t accumulation_steps) : loader_(loader), accumulation_steps_(accumulation_steps) {}

  // Those of this step; empty at the epoch's end, after which begin_epoch of the loader goes on. With reads_next those of the next step are
  // read too, where there is one in this epoch.
  std::vector<data::Batch> take(bool reads_next);
  // The first of the next step, where it was read.
  [[nodiscard]] const data::Batch* next() const { return next_.empty() ? nullptr : &next_.front(); }
  // The loader's place before what was read ahead: what a checkpoint holds.
  [[nodiscard]] json place() const { return next_.empty() ? loader_.state() : place_before_next_; }

 private:
  std::vector<data::Batch> read();

  data::Loader& loader_;
  int64_t accumulation_steps_;
  std::vector<data::Batch> next_;
  json place_before_next_;
};

// The first row of a micro-batch, as a micro-batch.
data::Batch first_row(const data::Batch& batch);

}  // namespace distil_xlstm::train
