// What a run will need, from configurations alone: parameters, memory by class, arithmetic, steps. `plan` prints it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "student/shape.h"
#include "teacher/teacher.h"
#include "train/run_length.h"

namespace distil_xlstm::train {

struct ParameterCounts {
  int64_t teacher = 0;
  int64_t trainable = 0;  // the student's blocks and post norm
  int64_t embedding = 0;  // V * D, frozen
  int64_t stored = 0;     // trainable and the frozen matrices, a tied one once
  int64_t as_paper = 0;   // trainable and two frozen matrices, tied or not
};

struct MemoryItem {
  std::string name;
  int64_t size_bytes = 0;
  std::string note;
};

// GFLOP are 1e9; a token is an input token of training.
struct FlopsPerToken {
  double teacher_body = 0, teacher_head = 0, student_mixer = 0, student_head = 0;
  [[nodiscard]] double total() const { return teacher_body + teacher_head + student_mixer + student_head; }
};

ParameterCounts count_parameters(const teacher::TeacherShape& teacher, const student::StudentShape& student);

// Weights, gradients and moments are exact; activations and the heads' tiles are estimates for the device's kind.
// `teacher_bytes` and `compute_bytes` are the sizes of an element of the teacher's weights (with fp8: of its embedding and activations) and
// of the student's activations; `num_threads` share the rows on a CPU (0: as many as LibTorch has here).
std::vector<MemoryItem> estimate_memory(const config::RunConfig& config, const teacher::TeacherShape& teacher,
                                        const student::StudentShape& student, int64_t teacher_bytes, int64_t compute_bytes, bool is_cpu,
                                        int64_t num_threads = 0);
int64_t total_bytes(const std::vector<MemoryItem>& items);

FlopsPerToken count_flops(const teacher::TeacherShape& teacher, const student::StudentShape& student, int64_t context_length);

struct MemoryAdvice {
  bool fits = false;                 // as it is
  std::vector<std::string> changes;  // each makes it fit, best first
  std::string why_none;              // where it does not fit and nothing here helps
};

// What to change so that the run fits into `limit_bytes`.
MemoryAdvice advise_memory(const config::RunConfig& config, const teacher::TeacherShape& teacher, const student::StudentShape& student,
                           int64_t teacher_bytes, int64_t compute_bytes, bool is_cpu, int64_t limit_bytes);

}  // namespace distil_xlstm::train
