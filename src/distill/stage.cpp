#include "distill/stage.h"

namespace distil_xlstm::distill {

size_t stage_at(const std::vector<Stage>& stages, const StepContext& context) {
  size_t stage = context.stage;
  while (stage + 1 < stages.size() && stages[stage].has_ended(context)) ++stage;
  return stage;
}

}  // namespace distil_xlstm::distill
