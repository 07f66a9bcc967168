#include "distill/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace distil_xlstm::distill {
namespace {

// v_f + (v_0 - v_f) / (1 + ln(1 + t))
double delta(const SchedulePoint& p) {
  return p.final + (p.start - p.final) / (1.0 + std::log1p(static_cast<double>(std::max<int64_t>(p.step, 0))));
}

double linear(const SchedulePoint& p) {
  return p.final + (p.start - p.final) * (1.0 - p.progress);
}

double cosine(const SchedulePoint& p) {
  return p.final + (p.start - p.final) * (0.5 * (1.0 + std::cos(std::numbers::pi * p.progress)));
}

double constant(const SchedulePoint& p) {
  return p.start;
}

using NamedKind = std::pair<std::string, ScheduleKind>;

std::vector<NamedKind>& kinds() {
  static std::vector<NamedKind> all = {{"delta-paper", {.value = delta, .start_decays = true}},
                                       {"delta-code", {.value = delta, .counts_in_epoch = true, .start_decays = true}},
                                       {"linear", {.value = linear, .needs_length = true}},
                                       {"cosine", {.value = cosine, .needs_length = true}},
                                       {"constant", {.value = constant}}};
  return all;
}

const ScheduleKind& find_kind(const std::string& name, const std::string& key) {
  const auto found = std::ranges::find(kinds(), name, &NamedKind::first);
  if (found == kinds().end()) throw config::unknown_name(name, schedule_names(), key + ".schedule");
  return found->second;
}

}  // namespace

void add_schedule(const std::string& name, ScheduleKind kind) {
  if (std::ranges::find(kinds(), name, &NamedKind::first) != kinds().end())
    throw ValueError("schedule '{}': there is one of this name", name);
  kinds().emplace_back(name, std::move(kind));
}

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const auto& [name, kind] : kinds()) names.push_back(name);
  return names;
}

void check_schedule(const std::string& name, const std::string& key) {
  find_kind(name, key);
}

void check_schedules(const config::DistillSettings& settings) {
  check_schedule(settings.alpha.schedule, "distill.alpha");
  check_schedule(settings.temperature.schedule, "distill.temperature");
  check_schedule(settings.beta.schedule, "distill.beta");
}

bool depends_on_epochs(const config::ScheduleSettings& settings) {
  const ScheduleKind& kind = find_kind(settings.schedule, "distill");
  return kind.counts_in_epoch || (kind.start_decays && settings.decay > 0.0);
}

Schedule::Schedule(const config::ScheduleSettings& settings, int64_t total_steps, const std::string& key)
    : kind_(find_kind(settings.schedule, key)), settings_(settings), key_(key), total_steps_(total_steps), start_(settings.start) {
  if (kind_.needs_length && total_steps < 1) {
    throw ConfigError(
        "{}.schedule = \"{}\" needs the number of optimizer steps, and that is {}: set train.num_epochs, max_tokens or max_steps", key,
        settings.schedule, total_steps);
  }
}

double Schedule::value(int64_t step) const {
  const double last = static_cast<double>(std::max<int64_t>(total_steps_ - 1, 1));
  return kind_.value({.start = start_,
                      .final = settings_.final,
                      .step = kind_.counts_in_epoch ? step - epoch_begin_ : step,
                      .progress = std::clamp(static_cast<double>(step) / last, 0.0, 1.0)});
}

void Schedule::end_epoch(int64_t steps_done) {
  epoch_begin_ = steps_done;
  if (!kind_.start_decays) return;
  const double change = settings_.decay * (settings_.decay_mode == config::DecayMode::multiply ? std::abs(start_) : 1.0);
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
