// What `bench` measures: the parts of a training step one by one, and the step.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "config/run_config.h"
#include "measure/trace.h"
#include "student/paper/shape.h"
#include "teacher/teacher.h"

namespace distil_xlstm::measure {

// What is measured: the models of a run, at sizes of a micro-batch.
struct BenchSubject {
  config::RunConfig config;
  json teacher_config;
  teacher::TeacherShape teacher;
  std::shared_ptr<const student::StudentShape> shape;
  std::optional<student::StudentConfig> student;  // the same where it is a paper student, whose blocks' operations are measured
  at::Device device = at::kCPU;
  at::ScalarType compute_dtype = at::kFloat;
  teacher::Precision teacher_precision;
  // Measured: large products in the compute type and in the teacher's, a copy.
  double flops_per_second = 0.0, teacher_flops_per_second = 0.0, bytes_per_second = 0.0;
  [[nodiscard]] int64_t tokens() const { return config.train.micro_batch_size * config.data.context_length; }
};

// Seconds are medians. The floor is the larger of two times: all operations at the speed of large matrix products, and every input read
// and every output written once at the speed of a copy.
struct PartResult {
  std::string name, shape;
  std::optional<double> forward_seconds, both_seconds;  // forward alone; forward and backward
  double floor_seconds = 0.0;                           // of forward and backward where both were measured
  std::optional<double> error;                          // worst relative error of values and gradients against float64, on a few tokens
};

// Names in the order of the step: those that cli::bench_part_names() gives for the command line.
std::vector<std::string> known_part_names();

// Whether the student has blocks that run it.
bool has_bench_part(const BenchSubject& subject, const std::string& name);

PartResult bench_part(const BenchSubject& subject, const std::string& name);

struct StepBench {
  int64_t micro_batch_size = 0, accumulation_steps = 0;
  double seconds = 0.0, tokens_per_second = 0.0;  // of an optimizer step; input tokens
  std::optional<double> floor_tokens_per_second;  // its matrix products at the measured speed; none where only layers are aligned
  int64_t peak_memory_bytes = 0;                  // of the process on the device so far; 0 on a CPU
  std::optional<TraceSummary> trace;
};

// Optimizer steps of the run on random tokens and a teacher with random weights: teacher, student, losses, backward, clipping, AdamW.
// `stage`: of the method; empty: the first that runs the whole student. With a path, one more step of the first size is run under the
// profiler and its trace written there. Throws ConfigError for a stage that the method has not.
std::vector<StepBench> bench_step(const BenchSubject& subject, const std::vector<int64_t>& micro_batch_sizes, const std::string& stage,
                                  const std::string& trace_path);

}  // namespace distil_xlstm::measure
