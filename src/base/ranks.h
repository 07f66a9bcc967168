// Which of a run's processes this is. At present a run has one.
#pragma once

namespace distil_xlstm {

struct Ranks {
  int rank = 0, world_size = 1;
  [[nodiscard]] bool writes() const { return rank == 0; }  // metrics, checkpoints, the run's directory
};

}  // namespace distil_xlstm
