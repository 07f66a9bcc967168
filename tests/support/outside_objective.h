// A method, loss terms and a teacher source that are no part of the program, added through its registries.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "distill/hidden_term.h"
#include "distill/method.h"
#include "ops/head_terms.h"
#include "teacher/source.h"

namespace distil_xlstm::testing {

// sum_v (q - p)^2 of the two models' probabilities.
inline ops::HeadTermValue probability_error(const ops::PlainHeadTile& tile, bool with_gradient) {
  const Tensor &q_PV = tile.q1_PV(), difference_PV = q_PV - tile.p1_PV();
  ops::HeadTermValue out{difference_PV.square().sum(1), {}};
  if (with_gradient) out.gradient_PV = 2.0 * q_PV * (difference_PV - (q_PV * difference_PV).sum(1, true));
  return out;
}

// Mean square of what the last states of both models differ by, a row at a time.
class StateError final : public distill::HiddenTerm {
 public:
  [[nodiscard]] std::string name() const override { return "state_error"; }
  [[nodiscard]] teacher::TeacherForwardOptions teacher_options() const override { return {}; }  // their last state always comes
  [[nodiscard]] bool needs_layers() const override { return false; }
  [[nodiscard]] bool is_sum_over_rows() const override { return true; }
  [[nodiscard]] int64_t measured_every() const override { return 3; }
  [[nodiscard]] Tensor loss_sum(const student::StudentOutput& student, const teacher::TeacherOutput& teacher,
                                const Tensor& mask_BS) const override {
    const Tensor difference_BSD = student.last_hidden_BSD - teacher.last_hidden_BSD;
    return (difference_BSD.square().mean(2) * mask_BS).sum() / static_cast<double>(mask_BS.size(1));
  }
};

// Two stages: first the norms alone, at half of the rate, by the state error; then all of it, by cross-entropy and both added terms.
class OutsideMethod final : public distill::Method {
 public:
  static constexpr int64_t kFirstSteps = 4;

  OutsideMethod() : Method("outside") {}
  [[nodiscard]] std::vector<distill::Stage> stages() const override {
    return {{.name = "stage I", .until_step = kFirstSteps, .rates = {{"norm", 0.5}}}, {.name = "stage II"}};
  }
  [[nodiscard]] distill::StepPlan plan(const distill::StepContext& context) const override {
    distill::StepPlan plan;
    plan.head.ce_weight = context.stage == 0 ? 0.0 : 0.5;
    plan.added_head_weights = {context.stage == 0 ? 0.0 : 2.0};
    plan.hidden_weights = {context.stage == 0 ? 1.0 : 0.25, 0.0};
    return plan;
  }
};

inline void add_outside_method() {
  static std::once_flag once;
  std::call_once(once, [] {
    ops::add_head_term({.name = "probability_error", .weight = nullptr, .plain = probability_error});
    distill::add_hidden_term("state_error", [](const auto&) { return std::make_unique<StateError>(); });
    distill::add_method("outside", {.terms = {.head = {"probability_error"}, .hidden = {"state_error", "alignment_loss"}},
                                    .make = [](const auto&) { return std::make_unique<OutsideMethod>(); },
                                    .check = {},
                                    .ignored_keys = {}});
  });
}

// Asks the model for a row once, and gives what it said whenever the row comes again.
class RememberingSource final : public teacher::TeacherSource {
 public:
  explicit RememberingSource(teacher::Teacher& teacher) : teacher_(teacher) {}

  [[nodiscard]] teacher::TeacherOutput signals(const nn::DeviceBatch& batch, const teacher::TeacherForwardOptions& wanted) override {
    if (!wanted.group_sizes.empty() || wanted.collect_all)
      throw ConfigError("teacher.source = \"remembering\": keeps the last states and means");
    std::vector<Tensor> last, mean;
    for (int64_t row = 0; row < batch.tokens_BS.size(0); ++row) {
      const auto& known = remembered(batch.rows(row, 1));
      last.push_back(known.last_hidden_BSD);
      mean.push_back(known.hidden_mean_BSD);
    }
    return {at::cat(last), wanted.collect_mean ? at::cat(mean) : Tensor(), {}, {}};
  }
  [[nodiscard]] const Tensor& head() const override { return teacher_.head_weight(); }
  [[nodiscard]] Shape shape() const override { return teacher::LiveTeacher(teacher_).shape(); }
  [[nodiscard]] at::Device device() const override { return teacher_.device(); }

  int num_asked = 0;

 private:
  const teacher::TeacherOutput& remembered(const nn::DeviceBatch& row) {
    const std::scoped_lock lock(mutex_);
    const std::pair key{row.row_ids.at(0).shard, row.row_ids.at(0).row};
    const auto found = known_.find(key);
    if (found != known_.end()) return found->second;
    ++num_asked;
    return known_[key] = teacher_.forward(row.tokens_BS, row.is_start_BS, {.collect_mean = true});
  }

  teacher::Teacher& teacher_;
  std::mutex mutex_;
  std::map<std::pair<uint64_t, uint64_t>, teacher::TeacherOutput> known_;
};

inline void add_remembering_source() {
  static std::once_flag once;
  std::call_once(once, [] {
    teacher::add_teacher_source("remembering", [](teacher::Teacher& teacher) { return std::make_unique<RememberingSource>(teacher); });
  });
}

}  // namespace distil_xlstm::testing
