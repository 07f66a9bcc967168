#include "distill/objective.h"

#include <algorithm>

#include "base/error.h"

namespace distil_xlstm::distill {
namespace {

// What both ask for. Each collects means of one kind of state.
teacher::TeacherForwardOptions joined(const teacher::TeacherForwardOptions& a, const teacher::TeacherForwardOptions& b) {
  const bool has_groups = !a.group_sizes.empty() && !b.group_sizes.empty();
  if (a.target != b.target || a.post_norm_last != b.post_norm_last || (has_groups && a.group_sizes != b.group_sizes))
    throw ConfigError("the method's terms on hidden states want different states of the teacher: one forward pass gives one kind");
  auto all = a;
  all.collect_mean = a.collect_mean || b.collect_mean;
  all.collect_all = a.collect_all || b.collect_all;
  all.collect_heads = a.collect_heads || b.collect_heads;
  all.collect_attention = a.collect_attention || b.collect_attention;
  if (all.group_sizes.empty()) all.group_sizes = b.group_sizes;
  return all;
}

}  // namespace

Objective::Objective(const config::DistillSettings& settings, int64_t teacher_layers, int64_t student_layers) {
  const MethodTerms terms = method_terms(settings.method);
  for (const auto& name : terms.head) added_.push_back(&ops::find_head_term(name));
  for (const auto& name : terms.hidden) hidden_.push_back(make_hidden_term(name, {settings, teacher_layers, student_layers}));
  (void)teacher_options(Measured(hidden_.size(), true));  // throws where they do not go together
}

std::vector<ops::WeightedHeadTerm> Objective::added_head_terms(const StepPlan& plan) const {
  std::vector<ops::WeightedHeadTerm> added;
  for (size_t i = 0; i < added_.size(); ++i) added.push_back({added_[i], plan.added_head_weights.at(i)});
  return added;
}

std::vector<std::string> Objective::names() const {
  std::vector<std::string> names;
  for (const auto& term : ops::kernel_head_terms()) names.push_back(term.name);
  for (const auto* term : added_) names.push_back(term->name);
  for (const auto& term : hidden_) names.push_back(term->name());
  return names;
}

std::vector<double> Objective::weights(const StepPlan& plan) const {
  std::vector<double> weights;
  for (const auto& term : ops::kernel_head_terms()) weights.push_back(term.weight != nullptr ? plan.head.*term.weight : 0.0);
  for (size_t i = 0; i < added_.size(); ++i) weights.push_back(plan.added_head_weights.at(i));
  for (size_t i = 0; i < hidden_.size(); ++i) weights.push_back(plan.hidden_weights.at(i));
  return weights;
}

Measured Objective::measured(const StepPlan& plan, int64_t step) const {
  Measured measured;
  for (size_t i = 0; i < hidden_.size(); ++i) {
    const int64_t every = hidden_[i]->measured_every();
    measured.push_back(plan.hidden_weights.at(i) != 0.0 || (every > 0 && step % every == 0));
  }
  return measured;
}

teacher::TeacherForwardOptions Objective::teacher_options(const Measured& measured) const {
  teacher::TeacherForwardOptions options;
  bool is_first = true;
  for (size_t i = 0; i < hidden_.size(); ++i) {
    if (!measured[i]) continue;
    options = is_first ? hidden_[i]->teacher_options() : joined(options, hidden_[i]->teacher_options());
    is_first = false;
  }
  return options;
}

bool Objective::needs_layers(const Measured& measured) const {
  bool needs = false;
  for (size_t i = 0; i < hidden_.size(); ++i) needs = needs || (measured[i] && hidden_[i]->needs_layers());
  return needs;
}

bool Objective::is_sum_over_rows(const Measured& measured) const {
  bool is_sum = true;
  for (size_t i = 0; i < hidden_.size(); ++i) is_sum = is_sum && (!measured[i] || hidden_[i]->is_sum_over_rows());
  return is_sum;
}

}  // namespace distil_xlstm::distill
