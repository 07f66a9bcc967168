#include "distill/methods.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "distill/schedule.h"

namespace distil_xlstm::distill {
namespace {

enum class Family { combined, teacher_annealing, annealing_kd, convert };
enum class Use { none, constant, scheduled };  // constant: its start for the whole run

// One row a method: the formula and which settings it reads. Where T is not in the loss (ce, ce-frobenius, teacher-annealing) the KL is
// still measured at its schedule, so that runs can be compared.
struct MethodRow {
  const char* name;
  Family family;
  Use alpha, temperature, beta;
};

constexpr MethodRow kMethods[] = {
    {"ce", Family::combined, Use::none, Use::scheduled, Use::none},
    {"hinton", Family::combined, Use::constant, Use::constant, Use::none},
    {"teacher-annealing", Family::teacher_annealing, Use::none, Use::scheduled, Use::none},
    {"annealing-kd", Family::annealing_kd, Use::none, Use::none, Use::none},
    {"delta", Family::combined, Use::scheduled, Use::scheduled, Use::none},
    {"delta-frobenius", Family::combined, Use::scheduled, Use::scheduled, Use::scheduled},
    {"hinton-frobenius", Family::combined, Use::constant, Use::constant, Use::constant},
    {"ce-frobenius", Family::combined, Use::none, Use::scheduled, Use::scheduled},
    {"convert", Family::convert, Use::scheduled, Use::scheduled, Use::none},
    {"mohawk", Family::convert, Use::scheduled, Use::scheduled, Use::none},
};

config::ScheduleSettings used(const config::ScheduleSettings& settings, Use use, double unused_value) {
  if (use == Use::scheduled) return settings;
  config::ScheduleSettings constant;
  constant.start = constant.final = use == Use::constant ? settings.start : unused_value;
  return constant;
}

template <config::Divergence ours, ops::Divergence theirs>
constexpr bool kIsSame = static_cast<int>(ours) == static_cast<int>(theirs);
static_assert(kIsSame<config::Divergence::forward_kl, ops::Divergence::forward_kl> &&
              kIsSame<config::Divergence::reverse_kl, ops::Divergence::reverse_kl> &&
              kIsSame<config::Divergence::jsd, ops::Divergence::jsd>);

// alpha, T and beta with the settings that all methods share; `plan` is the method's formula.
class ScheduledMethod : public Method {
 public:
  ScheduledMethod(const MethodRow& row, const config::DistillSettings& settings, int64_t total_steps)
      : Method(row.name),
        settings_(settings),
        alpha_(used(settings.alpha, row.alpha, 0.0), total_steps, "distill.alpha"),
        temperature_(used(settings.temperature, row.temperature, 1.0), total_steps, "distill.temperature"),
        beta_(used(settings.beta, row.beta, 0.0), total_steps, "distill.beta") {}

  void end_epoch(int64_t steps_done) override {
    alpha_.end_epoch(steps_done);
    temperature_.end_epoch(steps_done);
    beta_.end_epoch(steps_done);
  }
  [[nodiscard]] json state() const override {
    return {{"method", name()}, {"alpha", alpha_.state()}, {"temperature", temperature_.state()}, {"beta", beta_.state()}};
  }
  void restore(const json& state) override {
    Method::restore(state);
    alpha_.restore(require<json>(state, "alpha", "distill state"));
    temperature_.restore(require<json>(state, "temperature", "distill state"));
    beta_.restore(require<json>(state, "beta", "distill state"));
  }

 protected:
  // Everything but the weights.
  [[nodiscard]] StepPlan measured(double temperature) const {
    StepPlan plan;
    plan.hidden_weights = {0.0};
    plan.temperature = plan.head.temperature = temperature;
    plan.head.divergence = static_cast<ops::Divergence>(settings_.divergence);
    plan.head.jsd_beta = settings_.jsd_beta;
    plan.head.mse_centered = settings_.mse_centered;
    return plan;
  }

  config::DistillSettings settings_;
  Schedule alpha_, temperature_, beta_;
};

// [P 36, 38]: (1 - alpha - beta) CE + alpha KD + beta L_F, or (1 - alpha) CE + alpha KD + beta L_F when "additive".
class CombinedMethod : public ScheduledMethod {
 public:
  using ScheduledMethod::ScheduledMethod;

  [[nodiscard]] StepPlan plan(const StepContext& context) const override {
    StepPlan plan = measured(temperature_.value(context.step));
    plan.alpha = alpha_.value(context.step);
    plan.beta = beta_.value(context.step);
    const double alignment_share = settings_.combine == config::Combine::convex ? plan.beta : 0.0;
    plan.head.ce_weight = std::max(1.0 - plan.alpha - alignment_share, 0.0);  // the sum 1 may be missed by a rounding
    plan.head.kd_weight = plan.alpha;
    plan.hidden_weights = {plan.beta};
    return plan;
  }
};

// BAM [Clark 2019]: cross-entropy against lambda onehot(y) + (1 - lambda) p_T, lambda from 0 to 1; alpha is logged as 1 - lambda.
class TeacherAnnealing : public ScheduledMethod {
 public:
  TeacherAnnealing(const MethodRow& row, const config::DistillSettings& settings, int64_t total_steps)
      : ScheduledMethod(row, settings, total_steps),
        label_mix_({.schedule = "linear", .start = 0.0, .final = 1.0}, total_steps, "distill.teacher-annealing") {}

  [[nodiscard]] StepPlan plan(const StepContext& context) const override {
    StepPlan plan = measured(temperature_.value(context.step));
    plan.head.label_weight = 1.0;
    plan.head.label_mix = label_mix_.value(context.step);
    plan.alpha = 1.0 - plan.head.label_mix;
    return plan;
  }

 private:
  Schedule label_mix_;
};

// [Jafari 2021]: stage I regresses on phi(T) z_T with T from temperature_max to 1, one value an epoch or an equal slice of the stage;
// stage II is cross-entropy alone. phi(T) = 1 - (T - 1) / temperature_max.
class AnnealingKd : public ScheduledMethod {
 public:
  AnnealingKd(const MethodRow& row, const config::DistillSettings& settings, int64_t total_steps, int64_t num_epochs)
      : ScheduledMethod(row, settings, total_steps) {
    by_epoch_ = settings.boundary == config::Boundary::epoch;
    const int64_t length = by_epoch_ ? num_epochs : total_steps;
    if (length < 2) {
      throw ConfigError(
          "distill.method = \"annealing-kd\" with boundary = \"{}\" needs at least 2 {}, one for each stage, and the run has {}: {}",
          config::name_of(settings.boundary), by_epoch_ ? "epochs" : "optimizer steps", length,
          by_epoch_ ? "raise train.num_epochs or set distill.boundary = \"slice\"" : "train for longer");
    }
    stage1_length_ = std::clamp<int64_t>(std::llround(settings.stage1_fraction * static_cast<double>(length)), 1, length - 1);
    num_temperatures_ = by_epoch_ ? stage1_length_ : std::min<int64_t>(std::llround(settings.temperature_max), stage1_length_);
  }

  // Stage II begins from the best weights of stage I, with fresh moments.
  [[nodiscard]] std::vector<Stage> stages() const override {
    Stage first{.name = "stage I"};
    (by_epoch_ ? first.until_epoch : first.until_step) = stage1_length_;
    return {first, Stage{.name = "stage II", .start = StageStart::best_of_stage_before}};
  }

  [[nodiscard]] StepPlan plan(const StepContext& context) const override {
    if (context.stage > 0) {
      StepPlan plan = measured(1.0);
      plan.head.ce_weight = 1.0;
      return plan;
    }
    const int64_t place = std::min(by_epoch_ ? context.epoch : context.step, stage1_length_ - 1);
    const double max = settings_.temperature_max;
    const int64_t index = place * num_temperatures_ / stage1_length_;
    // The last value is always 1; a single value is therefore 1.
    const int64_t left = num_temperatures_ - 1 - index;
    const double temperature = left == 0 ? 1.0 : 1.0 + (max - 1.0) * static_cast<double>(left) / static_cast<double>(num_temperatures_ - 1);
    StepPlan plan = measured(temperature);
    plan.alpha = 1.0;
    plan.head.mse_weight = 1.0;
    plan.head.mse_scale = 1.0 - (temperature - 1.0) / max;
    return plan;
  }

 private:
  bool by_epoch_ = true;
  int64_t stage1_length_ = 1;  // epochs or optimizer steps
  int64_t num_temperatures_ = 1;
};

constexpr std::string_view kMohawk = "mohawk";

// [conversion.md 2]: each layer's mixer takes on its teacher's attention by itself ("mohawk": first the matrix by which that mixes tokens),
// then the whole student learns as by "delta", at last in rows that do not start from nothing. The schedules of "delta" run over what comes
// after the layers.
class ConvertMethod : public CombinedMethod {
 public:
  ConvertMethod(const MethodRow& row, const config::DistillSettings& settings, int64_t total_steps)
      : ConvertMethod(row, settings, steps_of_stages(row.name, settings.convert, total_steps)) {}

  [[nodiscard]] std::vector<Stage> stages() const override {
    const auto& s = settings_.convert;
    const auto named = [](std::map<std::string, double> rates) {
      std::erase_if(rates, [](const auto& rate) { return rate.second == 0.0; });
      return rates;
    };
    const auto of_layers = named({{"mixer", 1.0}, {"attention", s.align_attention_rate}});
    const auto whole = named({{"mixer", 1.0}, {"attention", s.attention_rate}, {"feed_forward", s.body_rate}, {"norm", s.body_rate}});
    std::vector<Stage> stages;
    int64_t begin = 0;
    const auto add = [&](int64_t steps, Stage stage) {
      if (steps == 0) return;
      if (!stages.empty()) stages.back().until_step = begin;
      stage.begin_step = begin;
      begin += steps;
      stage.end_step = begin;
      stages.push_back(std::move(stage));
    };
    add(steps_.orientation, {.name = "orientation",
                             .rates = of_layers,
                             .aligns_layers = true,
                             .compares_matrices = true,
                             .learning_rate = s.orient_learning_rate,
                             .learning_rate_key = "distill.convert.orient_learning_rate"});
    add(steps_.alignment, {.name = "alignment",
                           .rates = of_layers,
                           .aligns_layers = true,
                           .learning_rate = s.align_learning_rate,
                           .learning_rate_key = "distill.convert.align_learning_rate"});
    add(steps_.distillation, {.name = "distillation", .rates = whole});
    add(steps_.passing, {.name = "state passing",
                         .rates = whole,
                         .rows_before = s.state_passing_rows,
                         .learning_rate = s.state_passing_learning_rate,
                         .learning_rate_key = "distill.convert.state_passing_learning_rate"});
    return stages;
  }

  [[nodiscard]] StepPlan plan(const StepContext& context) const override {
    if (context.step < steps_.of_layers()) {
      StepPlan plan = measured(1.0);
      const bool orients = context.step < steps_.orientation;
      plan.hidden_weights = has_orientation() ? std::vector<double>{orients ? 0.0 : 1.0, orients ? 1.0 : 0.0} : std::vector<double>{1.0};
      return plan;
    }
    StepContext own = context;
    own.step -= steps_.of_layers();
    StepPlan plan = CombinedMethod::plan(own);
    if (has_orientation()) plan.hidden_weights.push_back(0.0);
    return plan;
  }

  // Epochs that end before the whole student is trained, or where that begins, are none of the schedules'.
  void end_epoch(int64_t steps_done) override {
    if (steps_done > steps_.of_layers()) CombinedMethod::end_epoch(steps_done - steps_.of_layers());
  }

 private:
  struct Steps {
    int64_t orientation = 0, alignment = 0, distillation = 0, passing = 0;
    [[nodiscard]] int64_t of_layers() const { return orientation + alignment; }
  };

  ConvertMethod(const MethodRow& row, const config::DistillSettings& settings, const Steps& steps)
      : CombinedMethod(row, settings, steps.distillation + steps.passing), steps_(steps) {}

  [[nodiscard]] bool has_orientation() const { return name() == kMohawk; }

  // At least one of each stage that there is.
  static Steps steps_of_stages(std::string_view method, const config::ConvertSettings& s, int64_t total_steps) {
    const double orient_fraction = method == kMohawk ? s.orient_fraction : 0.0;
    int64_t num_stages = 1, left = total_steps;
    for (const double fraction : {orient_fraction, s.align_fraction, s.state_passing_fraction}) num_stages += fraction > 0.0 ? 1 : 0;
    if (total_steps < num_stages && num_stages > 1) {
      throw ConfigError(
          "distill.method = \"{}\" needs at least {} optimizer steps, one for each stage, and the run has {}: train for longer, or set "
          "distill.convert.align_fraction = 0{}{}",
          method, num_stages, total_steps, orient_fraction > 0.0 ? ", orient_fraction = 0" : "",
          s.state_passing_fraction > 0.0 ? ", state_passing_fraction = 0" : "");
    }
    const auto take = [&](double fraction) {
      if (fraction == 0.0) return int64_t{0};
      --num_stages;  // those that come after it get a step each
      const int64_t steps = std::clamp<int64_t>(std::llround(fraction * static_cast<double>(total_steps)), 1, left - num_stages);
      left -= steps;
      return steps;
    };
    Steps steps{.orientation = take(orient_fraction), .alignment = take(s.align_fraction)};
    steps.passing = take(s.state_passing_fraction);
    steps.distillation = std::max<int64_t>(left, 1);
    return steps;
  }

  Steps steps_;
};

// alpha + beta over the run: both move monotonically inside an epoch, but their sum need not, so the steps themselves are looked at.
void check_convex(const MethodRow& row, const config::DistillSettings& settings, int64_t total_steps, int64_t steps_per_epoch) {
  if (settings.combine != config::Combine::convex || row.beta == Use::none) return;
  Schedule alpha(used(settings.alpha, row.alpha, 0.0), total_steps, "distill.alpha");
  Schedule beta(used(settings.beta, row.beta, 0.0), total_steps, "distill.beta");
  const int64_t stride = std::max<int64_t>(total_steps / 1'000'000, 1);
  for (int64_t begin = 0; begin < std::max<int64_t>(total_steps, 1); begin += steps_per_epoch) {
    for (int64_t step = begin; step < std::min(begin + steps_per_epoch, std::max<int64_t>(total_steps, 1)); step += stride) {
      const double a = alpha.value(step), b = beta.value(step);
      if (a + b <= 1.0 + 1e-12) continue;
      throw ConfigError(
          "distill.combine = \"convex\" weighs the cross-entropy by 1 - alpha - beta, but alpha = {:.4g} and beta = {:.4g} at step {} add "
          "up to "
          "{:.4g}: lower distill.alpha or distill.beta, or set combine = \"additive\"",
          a, b, step, a + b);
    }
    alpha.end_epoch(begin + steps_per_epoch);
    beta.end_epoch(begin + steps_per_epoch);
  }
}

std::vector<std::string> keys_ignored_by(const MethodRow& row) {
  std::vector<std::string> keys;
  const auto add = [&](Use use, const std::string& key) {
    if (use == Use::none) keys.push_back(key);
    if (use == Use::constant) {
      for (const char* part : {".schedule", ".final", ".decay", ".decay_mode"}) keys.push_back(key + part);
    }
  };
  add(row.alpha, "alpha");
  add(row.temperature, "temperature");
  add(row.beta, "beta");
  if (row.beta == Use::none) keys.emplace_back("combine");
  if (row.family != Family::annealing_kd) {
    for (const char* key : {"temperature_max", "boundary", "stage1_fraction"}) keys.emplace_back(key);
  }
  keys.emplace_back(row.family == Family::convert ? "alignment" : "convert");
  if (row.family == Family::convert && row.name != kMohawk) {
    for (const char* key : {"convert.orient_fraction", "convert.orient_learning_rate"}) keys.emplace_back(key);
  }
  return keys;
}

MethodTerms terms_of(const MethodRow& row) {
  MethodTerms terms;
  if (row.family == Family::convert) terms.hidden = {"layer_error"};
  if (row.name == kMohawk) terms.hidden.emplace_back("matrix_error");
  return terms;
}

void check_without_length(const MethodRow& row, const config::DistillSettings& settings, int64_t max_steps) {
  if (row.family == Family::convert) {
    const auto& s = settings.convert;
    const double orient_fraction = row.name == kMohawk ? s.orient_fraction : 0.0;
    if (orient_fraction + s.align_fraction + s.state_passing_fraction >= 1.0) {
      throw ConfigError(
          "distill.convert: orient_fraction = {}, align_fraction = {} and state_passing_fraction = {} leave nothing of the run for "
          "distillation: their sum must be below 1",
          orient_fraction, s.align_fraction, s.state_passing_fraction);
    }
  }
  const auto moves_with_epochs = [](const config::ScheduleSettings& s, Use use) { return use == Use::scheduled && depends_on_epochs(s); };
  const bool needs_epochs = moves_with_epochs(settings.alpha, row.alpha) || moves_with_epochs(settings.beta, row.beta);
  const int64_t known_steps = max_steps > 0 && !needs_epochs ? max_steps : 1;
  check_convex(row, settings, known_steps, known_steps);
}

std::unique_ptr<Method> make(const MethodRow& row, const MethodInputs& in) {
  check_convex(row, in.settings, in.total_steps, in.steps_per_epoch);
  switch (row.family) {
    case Family::teacher_annealing:
      return std::make_unique<TeacherAnnealing>(row, in.settings, in.total_steps);
    case Family::convert:
      return std::make_unique<ConvertMethod>(row, in.settings, in.total_steps);
    case Family::annealing_kd:
      return std::make_unique<AnnealingKd>(row, in.settings, in.total_steps, in.num_epochs);
    default:
      return std::make_unique<CombinedMethod>(row, in.settings, in.total_steps);
  }
}

}  // namespace

std::vector<std::pair<std::string, MethodKind>> known_methods() {
  std::vector<std::pair<std::string, MethodKind>> all;
  for (const MethodRow& row : kMethods) {
    all.emplace_back(
        row.name, MethodKind{.terms = terms_of(row),
                             .make = [&row](const MethodInputs& inputs) { return make(row, inputs); },
                             .check = [&row](const auto& settings, int64_t max_steps) { check_without_length(row, settings, max_steps); },
                             .ignored_keys = keys_ignored_by(row)});
  }
  return all;
}

}  // namespace distil_xlstm::distill
