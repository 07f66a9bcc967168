// Forward and backward of one micro-batch: teacher, student, losses, gradients (docs/mathematics.md 7).
#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/thread_chooser.h"
#include "data/loader.h"
#include "distill/objective.h"
#include "ops/head_rows.h"
#include "student/student.h"
#include "teacher/source.h"

namespace distil_xlstm::train {

// What all micro-batches of an optimizer step share.
struct GradientSettings {
  ops::HeadObjective head;
  std::vector<ops::WeightedHeadTerm> added_head_terms;
  double target_scale = 1.0;          // of the head losses' sum in the gradient: loss scale / targets of the step
  distill::Measured measured;         // of the objective's hidden terms; empty: none
  std::vector<double> hidden_scales;  // of each one's sum in the gradient: loss scale * weight / rows of the step; 0: measured only
  bool takes_teacher_inputs = false, aligns_layers = false;  // distill::Stage
  int64_t rows_before = 0;                                   // distill::Stage
  student::StudentForwardOptions student;
};

// Sums over what was run so far.
struct LossSums {
  Tensor head;                 // ops::HeadLosses::sums, on the student's device; undefined where layers are aligned
  std::vector<Tensor> hidden;  // scalars, one a hidden term, undefined where it is not measured

  void add(const LossSums& other);
};

// The first micro-batch of the step that comes after this one.
struct NextBatch {
  const data::Batch* batch = nullptr;
  distill::Measured measured;
  bool takes_teacher_inputs = false;
};

// On a GPU a micro-batch is one graph, and the teacher runs ahead by one micro-batch, beside the student (run_ahead). On a CPU each thread
// of LibTorch's pool takes a share of the rows through the whole step, with its own graph: threads then meet once a micro-batch instead of
// at each of some hundred operations, most of them too small to share. Shares are added in their order, so that the same number of threads
// gives the same bits. Fewer of them may work where another program has a core: one thread then takes several shares, to the same bits.
class MicroBatches {
 public:
  // All references must outlive this object.
  MicroBatches(teacher::TeacherSource& teacher, student::Student& student, const distill::Objective& objective,
               const ops::HeadRows& head_rows = {});
  ~MicroBatches();
  MicroBatches(const MicroBatches&) = delete;
  MicroBatches& operator=(const MicroBatches&) = delete;

  // Adds the gradients of all these micro-batches, one or more, to those of the student's parameters; returns the sums. On a GPU the
  // student is on the current stream (ops::PriorityStream lets it go first), which waits for the teacher's; the host waits for neither.
  // `next`, unless null: what the next call is thought to begin with, whose teacher then runs beside this call's last student. Where it
  // begins with something else that was in vain; the results are the same in any case.
  LossSums run(const std::vector<data::Batch>& batches, const GradientSettings& settings, const NextBatch* next = nullptr);

  // To be called when other parameters of the student are trained than before.
  void forget_replicas() { replicas_.clear(); }

 private:
  // A micro-batch whose teacher was started, and may be under way.
  struct Ahead {
    data::Batch host;  // of the next step
    teacher::TeacherForwardOptions wanted;
    nn::DeviceBatch batch;
    teacher::TeacherOutput output;
    c10::Event done;
  };

  // How many shares of rows there are: as many as threads, or one.
  [[nodiscard]] int64_t num_shares(int64_t rows, const GradientSettings& settings) const;
  LossSums run_in_shares(const data::Batch& batch, const GradientSettings& settings);
  LossSums run_ahead(const std::vector<data::Batch>& batches, const GradientSettings& settings, const NextBatch* next);
  void drop_ahead();
  [[nodiscard]] c10::Stream current_stream() const;
  [[nodiscard]] teacher::TeacherForwardOptions wanted(const distill::Measured& measured, bool takes_teacher_inputs) const;
  // Where the rows of a micro-batch start; null: from the zero state.
  [[nodiscard]] std::unique_ptr<nn::DecodeState> state_before(const nn::DeviceBatch& batch, const GradientSettings& settings) const;
  // Runs work(share) for all of them, on as many threads.
  void in_shares(int64_t shares, const std::function<void(int64_t)>& work);
  // These four: of a micro-batch, or of some rows of it.
  [[nodiscard]] LossSums run_layers(student::Student& student, const teacher::TeacherOutput& teacher, const nn::DeviceBatch& batch,
                                    const GradientSettings& settings) const;
  [[nodiscard]] student::StudentOutput run_student(student::Student& student, const nn::DeviceBatch& batch,
                                                   const teacher::TeacherOutput* teacher, const GradientSettings& settings,
                                                   nn::DecodeState* state) const;
  // Reads the rows on from `state`, without gradients.
  static void read_on(student::Student& student, const nn::DeviceBatch& batch, const GradientSettings& settings, nn::DecodeState& state);
  LossSums run_losses(const student::StudentOutput& output, const teacher::TeacherOutput& teacher, const nn::DeviceBatch& batch,
                      const GradientSettings& settings, int64_t num_shares) const;

  teacher::TeacherSource& teacher_;
  student::Student& student_;
  const distill::Objective& objective_;
  ops::HeadRows head_rows_;                                  // that the losses run over
  int64_t num_matrices_;                                     // layers whose mixing matrix is known (StudentShape::num_mixing_matrices)
  std::optional<c10::Stream> teacher_stream_;                // where teacher and student run side by side
  std::optional<Ahead> ahead_;                               // of the next step
  ops::Head student_head_, teacher_head_;                    // as the products take them; one where the models share it
  std::vector<std::unique_ptr<student::Student>> replicas_;  // of the shares after the first, made when first needed
  std::optional<ThreadChooser> workers_;                     // how many threads take shares
};

}  // namespace distil_xlstm::train
