#include "train/run_state.h"

#include <cmath>

#include "base/error.h"

namespace distil_xlstm::train {
namespace {

json optional_json(const std::optional<eval::ValidationResult>& result) {
  return result ? result->to_json() : json(nullptr);
}

std::optional<eval::ValidationResult> optional_result(const json& value, const char* key, const std::string& where) {
  const auto it = value.find(key);
  if (it == value.end() || it->is_null()) return std::nullopt;
  return eval::ValidationResult::from_json(*it, where);
}

}  // namespace

void RunState::record_validation(const eval::ValidationResult& result) {
  last = result;
  validated_step = step;
  if (step == 0) {
    initial = result;
  } else if (std::isfinite(result.ce_loss) && (!best || result.ce_loss < best->ce_loss)) {
    best = result;
    best_step = step;
  }
}

json RunState::to_json() const {
  return {{"step", step},
          {"epoch", epoch},
          {"tokens", tokens},
          {"skipped_in_a_row", skipped_in_a_row},
          {"stage", stage + 1},
          {"seconds", seconds},
          {"initial_validation", optional_json(initial)},
          {"last_validation", optional_json(last)},
          {"best_validation", optional_json(best)},
          {"best_step", best_step},
          {"validated_step", validated_step}};
}

RunState RunState::from_json(const json& value, const std::string& where) {
  RunState state;
  state.step = require<int64_t>(value, "step", where);
  state.epoch = require<int64_t>(value, "epoch", where);
  state.tokens = require<int64_t>(value, "tokens", where);
  state.skipped_in_a_row = require<int64_t>(value, "skipped_in_a_row", where);
  const auto stage = require<int64_t>(value, "stage", where);
  if (stage < 1) throw DataError("{}: stage {}: they are counted from 1", where, stage);
  state.stage = static_cast<size_t>(stage - 1);
  state.seconds = require<double>(value, "seconds", where);
  state.best_step = require<int64_t>(value, "best_step", where);
  state.validated_step = require<int64_t>(value, "validated_step", where);
  state.initial = optional_result(value, "initial_validation", where);
  state.last = optional_result(value, "last_validation", where);
  state.best = optional_result(value, "best_validation", where);
  return state;
}

json RunState::summary(int64_t total_steps) const {
  json best_json = optional_json(best);
  if (best) best_json["step"] = best_step;
  return {{"step", step},
          {"total_steps", total_steps},
          {"epoch", epoch},
          {"tokens", tokens},
          {"seconds", seconds},
          {"initial_validation", optional_json(initial)},
          {"last_validation", optional_json(last)},
          {"best_validation", best_json}};
}

}  // namespace distil_xlstm::train
