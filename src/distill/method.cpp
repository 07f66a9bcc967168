#include "distill/method.h"

#include <algorithm>

#include "base/error.h"
#include "distill/alignment.h"
#include "distill/methods.h"
#include "distill/schedule.h"

namespace distil_xlstm::distill {
namespace {

std::vector<std::pair<std::string, MethodKind>>& kinds() {
  static auto all = known_methods();
  return all;
}

const MethodKind& find(const std::string& name) {
  const auto found = std::ranges::find(kinds(), name, &std::pair<std::string, MethodKind>::first);
  if (found == kinds().end()) throw config::unknown_name(name, method_names(), "distill.method");
  return found->second;
}

}  // namespace

void Method::restore(const json& state) {
  const auto method = require<std::string>(state, "method", "distill state");
  if (method == name_) return;
  throw DataError("distill state: the checkpoint was trained with method \"{}\", the settings say \"{}\": resume with the same settings",
                  method, name_);
}

StepContext in_its_stage(const Method& method, StepContext context) {
  context.stage = stage_at(method.stages(), context);
  return context;
}

void add_method(const std::string& name, MethodKind kind) {
  const auto names = method_names();
  if (std::ranges::find(names, name) != names.end()) throw ValueError("method '{}': there is one of this name", name);
  kinds().emplace_back(name, std::move(kind));
}

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const auto& [name, kind] : kinds()) names.push_back(name);
  return names;
}

MethodTerms method_terms(const std::string& method) {
  return find(method).terms;
}

std::vector<std::string> ignored_keys(const std::string& method) {
  return find(method).ignored_keys;
}

void check_before_length(const config::DistillSettings& settings, int64_t max_steps) {
  const MethodKind& kind = find(settings.method);
  check_schedules(settings);
  check_alignment(settings.alignment);
  if (kind.check) kind.check(settings, max_steps);
}

std::unique_ptr<Method> make_method(const config::DistillSettings& settings, int64_t total_steps, int64_t num_epochs,
                                    int64_t steps_per_epoch) {
  const MethodKind& kind = find(settings.method);
  check_schedules(settings);
  check_alignment(settings.alignment);
  if (steps_per_epoch < 1) steps_per_epoch = (total_steps + num_epochs - 1) / std::max<int64_t>(num_epochs, 1);
  return kind.make({settings, total_steps, num_epochs, std::max<int64_t>(steps_per_epoch, 1)});
}

}  // namespace distil_xlstm::distill
