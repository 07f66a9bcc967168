#include "distill/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "distill/settings_check.h"

namespace distil_xlstm::distill {
namespace {

const std::vector<std::string> kSchedules = {"delta-paper", "delta-code", "linear", "cosine", "constant"};
const std::vector<std::string> kDecayModes = {"multiply", "subtract"};

}  // namespace

Schedule::Schedule(const config::ScheduleSettings& settings, int64_t total_steps, const std::string& key)
    : settings_(settings), key_(key), total_steps_(total_steps), start_(settings.start) {
  check_name(settings.schedule, kSchedules, key + ".schedule");
  check_name(settings.decay_mode, kDecayModes, key + ".decay_mode");
  if (!std::isfinite(settings.start)) throw ConfigError("{}.start = {}: it must be finite", key, settings.start);
  if (!std::isfinite(settings.final)) throw ConfigError("{}.final = {}: it must be finite", key, settings.final);
  if (settings.decay_mode == "multiply" && !(settings.decay >= 0.0 && settings.decay <= 1.0)) {
    throw ConfigError("{}.decay = {}: it must lie in 0 to 1 (0.05 takes one twentieth off the start at each epoch's end)", key,
                      settings.decay);
  }
  if (!(settings.decay >= 0.0)) throw ConfigError("{}.decay = {}: it must not be negative", key, settings.decay);
  if ((settings.schedule == "linear" || settings.schedule == "cosine") && total_steps < 1) {
    throw ConfigError(
        "{}.schedule = \"{}\" needs the number of optimizer steps, and that is {}: set train.num_epochs, max_tokens or max_steps", key,
        settings.schedule, total_steps);
  }
}

bool Schedule::is_delta() const {
  return settings_.schedule == "delta-paper" || settings_.schedule == "delta-code";
}

double Schedule::value(int64_t step) const {
  const double final = settings_.final;
  if (settings_.schedule == "constant") return start_;
  if (is_delta()) {
    const int64_t t = settings_.schedule == "delta-code" ? step - epoch_begin_ : step;
    return final + (start_ - final) / (1.0 + std::log1p(static_cast<double>(std::max<int64_t>(t, 0))));
  }
  const double last = static_cast<double>(std::max<int64_t>(total_steps_ - 1, 1));
  const double progress = std::clamp(static_cast<double>(step) / last, 0.0, 1.0);
  const double left = settings_.schedule == "linear" ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return final + (start_ - final) * left;
}

void Schedule::end_epoch(int64_t steps_done) {
  epoch_begin_ = steps_done;
  if (!is_delta()) return;
  const double change = settings_.decay * (settings_.decay_mode == "multiply" ? std::abs(start_) : 1.0);
  // The authors' code takes max() for rising values too, which jumps to final after one epoch; here both directions approach it.
  start_ = start_ > settings_.final ? std::max(start_ - change, settings_.final) : std::min(start_ + change, settings_.final);
}

json Schedule::state() const {
  return {{"schedule", settings_.schedule}, {"start", start_}, {"epoch_begin", epoch_begin_}};
}

void Schedule::restore(const json& state) {
  const auto schedule = require<std::string>(state, "schedule", key_);
  if (schedule != settings_.schedule) {
    throw DataError("{}: the checkpoint was annealed by schedule \"{}\", the settings say \"{}\": resume with the same settings", key_,
                    schedule, settings_.schedule);
  }
  start_ = require<double>(state, "start", key_);
  epoch_begin_ = require<int64_t>(state, "epoch_begin", key_);
}

}  // namespace distil_xlstm::distill
