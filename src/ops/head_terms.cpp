#include "ops/head_terms.h"

#include <fmt/ranges.h>

#include <limits>
#include <list>

#include "base/error.h"

namespace distil_xlstm::ops {
namespace {

const Tensor& made_once(Tensor& kept, const std::function<Tensor()>& make) {
  if (!kept.defined()) kept = make();
  return kept;
}

Tensor at_target(const Tensor& x_PV, const Tensor& target_P1) {
  return x_PV.gather(1, target_P1).squeeze(1);
}

// x_PV with `amount` taken off each target's entry, in place.
Tensor less_at_target(const Tensor& x_PV, const Tensor& target_P1, double amount) {
  return x_PV.scatter_add_(1, target_P1, at::full_like(target_P1, -amount, x_PV.options()));
}

HeadTermValue cross_entropy(const PlainHeadTile& tile, bool with_gradient) {
  HeadTermValue out{-at_target(tile.log_q1_PV(), tile.target_P1), {}};
  if (with_gradient) out.gradient_PV = less_at_target(tile.q1_PV().clone(), tile.target_P1, 1.0);
  return out;
}

// Divergence of each row at T (without T^2) and its derivative by student_logits / T.
std::pair<Tensor, Tensor> divergence(const HeadObjective& objective, const Tensor& log_p_PV, const Tensor& log_q_PV) {
  const Tensor q_PV = log_q_PV.exp();
  if (objective.divergence == Divergence::forward_kl) {
    const Tensor p_PV = log_p_PV.exp();
    return {(p_PV * (log_p_PV - log_q_PV)).sum(1), q_PV - p_PV};
  }
  if (objective.divergence == Divergence::reverse_kl) {
    const Tensor difference_PV = log_q_PV - log_p_PV;
    const Tensor value_P = (q_PV * difference_PV).sum(1);
    return {value_P, q_PV * (difference_PV - value_P.unsqueeze(1))};
  }
  // log(q / m) = -l and log(p / m) = u - l with u = log p - log q, l = log(1 + b (e^u - 1)); beyond |u| = 80 the smaller has no weight
  // left.
  const double b = objective.jsd_beta;
  const Tensor u_PV = (log_p_PV - log_q_PV).clamp(-80.0, 80.0);
  const Tensor l_PV = (u_PV.expm1() * b).log1p();
  const Tensor kl_q_P = -(q_PV * l_PV).sum(1);
  const Tensor kl_p_P = (log_p_PV.exp() * (u_PV - l_PV)).sum(1);
  return {kl_p_P * b + kl_q_P * (1.0 - b), q_PV * (-l_PV - kl_q_P.unsqueeze(1)) * (1.0 - b)};
}

HeadTermValue distillation(const PlainHeadTile& tile, bool /*with_gradient*/) {
  const double T = tile.objective.temperature;
  const auto [value_P, slope_PV] = divergence(tile.objective, tile.log_pT_PV(), tile.log_qT_PV());
  return {value_P * (T * T), slope_PV * T};
}

HeadTermValue kl_at_1(const PlainHeadTile& tile, bool /*with_gradient*/) {
  return {(tile.p1_PV() * (tile.log_p1_PV() - tile.log_q1_PV())).sum(1), {}};
}

HeadTermValue teacher_nll(const PlainHeadTile& tile, bool /*with_gradient*/) {
  return {-at_target(tile.log_p1_PV(), tile.target_P1), {}};
}

HeadTermValue agreement(const PlainHeadTile& tile, bool /*with_gradient*/) {
  return {(tile.student_PV.argmax(1) == tile.teacher_PV.argmax(1)).to(tile.student_PV.scalar_type()), {}};
}

HeadTermValue squared_error(const PlainHeadTile& tile, bool /*with_gradient*/) {
  Tensor r_PV = at::sub(tile.student_PV, tile.teacher_PV, tile.objective.mse_scale);
  if (tile.objective.mse_centered) r_PV.sub_(r_PV.mean(1, true));
  return {r_PV.square().mean(1), r_PV * (2.0 / static_cast<double>(r_PV.size(1)))};
}

HeadTermValue mixed_cross_entropy(const PlainHeadTile& tile, bool with_gradient) {
  const double mix = tile.objective.label_mix;
  const Tensor ce_P = -at_target(tile.log_q1_PV(), tile.target_P1);
  HeadTermValue out{ce_P * mix - (tile.p1_PV() * tile.log_q1_PV()).sum(1) * (1.0 - mix), {}};
  if (with_gradient) out.gradient_PV = less_at_target(at::sub(tile.q1_PV(), tile.p1_PV(), 1.0 - mix), tile.target_P1, mix);
  return out;
}

std::list<HeadTerm>& added_terms() {  // a list: those that were found stay where they are
  static std::list<HeadTerm> terms;
  return terms;
}

}  // namespace

PlainHeadTile::PlainHeadTile(const HeadObjective& wanted, const Tensor& student, const Tensor& teacher, const Tensor& target)
    : objective(wanted), student_PV(student), teacher_PV(teacher), target_P1(target) {}

const Tensor& PlainHeadTile::log_q1_PV() const {
  return made_once(log_q1_PV_, [&] { return student_PV.log_softmax(1); });
}
const Tensor& PlainHeadTile::log_p1_PV() const {
  return made_once(log_p1_PV_, [&] { return teacher_PV.log_softmax(1); });
}
const Tensor& PlainHeadTile::log_qT_PV() const {
  const double T = objective.temperature;
  return T == 1.0 ? log_q1_PV() : made_once(log_qT_PV_, [&] { return (student_PV / T).log_softmax(1); });
}
const Tensor& PlainHeadTile::log_pT_PV() const {
  const double T = objective.temperature;
  return T == 1.0 ? log_p1_PV() : made_once(log_pT_PV_, [&] { return (teacher_PV / T).log_softmax(1); });
}
const Tensor& PlainHeadTile::q1_PV() const {
  return made_once(q1_PV_, [&] { return log_q1_PV().exp(); });
}
const Tensor& PlainHeadTile::p1_PV() const {
  return made_once(p1_PV_, [&] { return log_p1_PV().exp(); });
}

const std::vector<HeadTerm>& kernel_head_terms() {
  static const std::vector<HeadTerm> terms = {
      {"ce_loss", false, &HeadObjective::ce_weight, cross_entropy},
      {"kd_loss", true, &HeadObjective::kd_weight, distillation, /*grows_with_temperature=*/true},
      {"kl_at_1", true, nullptr, kl_at_1},
      {"teacher_nll", true, nullptr, teacher_nll},
      {"agreement", true, nullptr, agreement},
      {"mse_loss", true, &HeadObjective::mse_weight, squared_error},
      {"mixed_ce", true, &HeadObjective::label_weight, mixed_cross_entropy},
  };
  return terms;
}

void add_head_term(HeadTerm term) {
  const auto has_name = [&](const HeadTerm& other) { return other.name == term.name; };
  if (std::ranges::any_of(kernel_head_terms(), has_name) || std::ranges::any_of(added_terms(), has_name))
    throw ValueError("loss term '{}': there is one of this name", term.name);
  added_terms().push_back(std::move(term));
}

const HeadTerm& find_head_term(const std::string& name) {
  std::vector<std::string> names;
  for (const HeadTerm& term : added_terms()) {
    if (term.name == name) return term;
    names.push_back(term.name);
  }
  throw ConfigError("loss term '{}': there is none of this name beside those of the kernels; there are [{}]", name, fmt::join(names, ", "));
}

}  // namespace distil_xlstm::ops
