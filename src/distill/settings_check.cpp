#include "distill/settings_check.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace distil_xlstm::distill {
namespace {

// Start, and final where the schedule uses it.
std::vector<std::pair<std::string, double>> ends(const config::ScheduleSettings& settings, const std::string& key) {
  std::vector<std::pair<std::string, double>> values = {{key + ".start", settings.start}};
  if (settings.schedule != "constant") values.emplace_back(key + ".final", settings.final);
  return values;
}

}  // namespace

void check_name(const std::string& name, const std::vector<std::string>& allowed, const std::string& key) {
  if (std::ranges::find(allowed, name) != allowed.end()) return;
  throw ConfigError("{} = \"{}\": allowed are {}{}", key, name, join(allowed, ", "), did_you_mean(name, allowed));
}

void check_alignment_settings(const config::AlignmentSettings& settings) {
  check_name(settings.kind, {"average", "ratio", "block_wise"}, "distill.alignment.kind");
  check_name(settings.distance, {"frobenius", "cosine"}, "distill.alignment.distance");
  check_name(settings.target, {"block_output", "attention_output"}, "distill.alignment.target");
  check_name(settings.state, {"pre_norm", "post_norm"}, "distill.alignment.state");
  check_name(settings.scope, {"sequence", "batch"}, "distill.alignment.scope");
  if (settings.target == "attention_output" && settings.state == "post_norm") {
    throw ConfigError(
        "distill.alignment.state = \"post_norm\" goes with target = \"block_output\" only: attention outputs have no norm after them");
  }
  if (settings.every_steps < 1) throw ConfigError("distill.alignment.every_steps = {}: it must be at least 1", settings.every_steps);
}

void check_settings(const config::DistillSettings& settings) {
  check_name(settings.combine, {"convex", "additive"}, "distill.combine");
  check_name(settings.divergence, {"forward_kl", "reverse_kl", "jsd"}, "distill.divergence");
  check_name(settings.boundary, {"epoch", "slice"}, "distill.boundary");
  check_alignment_settings(settings.alignment);
  for (const auto& [key, value] : ends(settings.alpha, "distill.alpha")) {
    if (!(value >= 0.0 && value <= 1.0)) throw ConfigError("{} = {}: it must lie in 0 to 1", key, value);
  }
  for (const auto& [key, value] : ends(settings.beta, "distill.beta")) {
    if (!(value >= 0.0)) throw ConfigError("{} = {}: a weight must not be negative", key, value);
  }
  for (const auto& [key, value] : ends(settings.temperature, "distill.temperature")) {
    if (!(value > 0.0)) throw ConfigError("{} = {}: a temperature must be above 0 (1 leaves the distributions as they are)", key, value);
  }
  if (!(settings.jsd_beta > 0.0 && settings.jsd_beta < 1.0)) {
    throw ConfigError("distill.jsd_beta = {}: it must lie between 0 and 1, both excluded (use forward_kl or reverse_kl for the ends)",
                      settings.jsd_beta);
  }
  if (!(settings.temperature_max >= 1.0 && std::isfinite(settings.temperature_max))) {
    throw ConfigError("distill.temperature_max = {}: it must be at least 1", settings.temperature_max);
  }
  if (!(settings.stage1_fraction > 0.0 && settings.stage1_fraction < 1.0)) {
    throw ConfigError("distill.stage1_fraction = {}: it must lie between 0 and 1, both excluded", settings.stage1_fraction);
  }
}

}  // namespace distil_xlstm::distill
