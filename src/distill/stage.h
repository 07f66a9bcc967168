// A part of a run, as data: its length, the weights that it begins with, what is trained in it and at which rates. What is minimised in
// it is the method's plan for a step of this stage.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "config/run_config.h"

namespace distil_xlstm::distill {

// Where training stands before an optimizer step.
struct StepContext {
  int64_t step = 0;  // 0-based
  int64_t total_steps = 0;
  int64_t epoch = 0;       // 0-based
  int64_t num_epochs = 0;  // ceil
  size_t stage = 0;        // index in the method's stages
};

enum class StageStart {
  as_they_are,          // the weights that the stage before has left
  best_of_stage_before  // the checkpoint that validation liked best; as they are where there was no validation
};

struct Stage {
  std::string name;  // for logs: "stage II"
  // Where it ends: when this epoch or this step begins; 0: not so. A stage with neither goes on to the end of the run.
  int64_t until_epoch = 0, until_step = 0;
  StageStart start = StageStart::as_they_are;  // a stage after the first begins with a fresh optimizer
  // What is trained: a factor of the learning rate for each group of parameters (student::ParameterTraits). Groups that are not named stay
  // as they are. Empty: all, at 1.
  std::map<std::string, double> rates;
  // Whether each layer of the student gets the teacher's state at its place instead of the one that the student's layer before has made.
  bool takes_teacher_inputs = false;
  // Each layer's mixer by itself on the teacher's stream: hidden terms compare it with that layer's attention (layer_loss_sum), and nothing
  // behind it runs, no head either.
  bool aligns_layers = false;
  // Of those, whether the matrices are compared by which layers mix tokens, so that the student must have some.
  bool compares_matrices = false;
  // Each row starts where so many other rows of its micro-batch have ended, read one after the other; 0: from the zero state. In a
  // smaller micro-batch (an epoch's last) all other rows, so that no row has been read before itself.
  int64_t rows_before = 0;
  double learning_rate = 0.0;                                 // at its peak; 0: the optimizer's
  std::string learning_rate_key = "optimizer.learning_rate";  // of the setting that says it
  int64_t begin_step = 0, end_step = 0;                       // of the learning rate's schedule; end 0: it runs over the whole run

  [[nodiscard]] bool has_ended(const StepContext& context) const {
    return (until_epoch > 0 && context.epoch >= until_epoch) || (until_step > 0 && context.step >= until_step);
  }
};

// The stage of a step. `context.stage` is where to look from: stages are not gone back to.
size_t stage_at(const std::vector<Stage>& stages, const StepContext& context);

}  // namespace distil_xlstm::distill
