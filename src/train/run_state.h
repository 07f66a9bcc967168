// Where a run stands: the part of a checkpoint that is numbers (trainer.json).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/json.h"
#include "eval/validation.h"

namespace distil_xlstm::train {

struct RunState {
  int64_t step = 0;  // optimizer steps done
  int64_t epoch = 0;
  int64_t tokens = 0;            // input tokens seen, skipped steps included
  int64_t skipped_in_a_row = 0;  // steps
  size_t stage = 0;              // index in the method's stages
  double seconds = 0.0;          // spent in steps
  std::optional<eval::ValidationResult> initial, last, best;
  int64_t best_step = 0;
  int64_t validated_step = -1;  // of `last`

  // Takes the result of this step.
  void record_validation(const eval::ValidationResult& result);

  [[nodiscard]] json to_json() const;
  // Throws DataError; `where` names the file.
  static RunState from_json(const json& value, const std::string& where);
  // For run.json: step, tokens, seconds, initial, last and best validation.
  [[nodiscard]] json summary(int64_t total_steps) const;
};

}  // namespace distil_xlstm::train
