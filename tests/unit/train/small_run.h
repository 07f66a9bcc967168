// A small real run for tests: teacher stories260K, a fresh two-block student, shards of random tokens.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <optional>
#include <random>

#include "base/file.h"
#include "data/shard_writer.h"
#include "io/model_files.h"
#include "student/paper/student.h"
#include "student/registry.h"
#include "train/checkpoint.h"
#include "train/trainer.h"

namespace distil_xlstm::train {

// A folder of its own for each test, removed at its end.
class RunTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / fmt::format("dx-{}-{}-{}", info->test_suite_name(), info->name(), ::getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_;
};

inline teacher::Teacher& small_teacher() {
  static const auto teacher = teacher::load_teacher(io::open_model("stories260K"), at::kCPU, at::kFloat);
  return *teacher;
}

// `num_rows` rows of 12 tokens in documents of 5 to 40 tokens; every id is below 512.
inline void write_rows(const fs::path& directory, data::Split split, int64_t num_rows, uint64_t seed) {
  data::ShardSettings settings;
  settings.split = split;
  settings.context_length = 12;
  settings.vocab_size = 512;
  settings.tokenizer_fingerprint = "test";
  data::ShardWriter writer(directory, settings);
  std::mt19937_64 random(seed);
  int64_t left = num_rows * 12 + 1;
  while (left > 0) {
    const auto length = std::min<int64_t>(left, static_cast<int64_t>(5 + random() % 36));
    std::vector<int32_t> ids = {1};
    while (static_cast<int64_t>(ids.size()) < length) ids.push_back(static_cast<int32_t>(3 + random() % 509));
    writer.add(ids);
    left -= length;
  }
  writer.finish();
}

inline config::RunConfig small_config() {
  config::RunConfig config;
  config.seed = 5;
  config.student.num_blocks = 2;
  config.student.num_heads = 4;
  config.student.chunk_size = 8;
  config.data.context_length = 12;
  config.train.micro_batch_size = 2;
  config.train.gradient_accumulation_steps = 2;
  config.train.num_epochs = 2;
  config.train.save_every_steps = 3;
  config.train.keep_checkpoints = 2;
  config.distill.alignment.every_steps = 2;
  config.optimizer.learning_rate = 1e-2;
  config.eval.every_steps = 4;
  return config;
}

// Everything a Trainer needs, over shards in `data`.
struct SmallRun {
  SmallRun(const config::RunConfig& settings, const fs::path& data, const fs::path& run, const std::string& resume_from = "",
           int64_t stop_after_steps = 0, const std::vector<std::string>& mixers = {}, const std::string& teacher_source = "live")
      : config(settings) {
    fs::create_directories(run);
    auto& teacher = small_teacher();
    data::LoaderOptions options;
    options.sources = {{data.string(), 1.0}};
    options.context_length = 12;
    options.micro_batch_size = config.train.micro_batch_size;
    options.seed = config.seed;
    options.document_isolation = config.data.document_isolation;
    train = std::make_unique<data::Loader>(options);
    options.split = "validation";
    options.shuffle = false;
    validation = std::make_unique<data::Loader>(options);
    const auto shape = teacher::teacher_shape(io::open_model("stories260K").config);
    const student::StudentPlace place{.embedding_VD = teacher.embedding_weight(), .head_VD = teacher.head_weight(), .teacher = &teacher};
    if (config.student.kind != "paper") {
      student = resume_from.empty() ? student::derive_shape(config.student, shape, 12)->fresh(place, config.seed)
                                    : student::load_student(io::open_model(resume_from), place);
    } else if (resume_from.empty()) {
      auto student_config = student::derive_student(config.student, shape, 12);
      student_config.mixers = mixers;
      student = student::PaperStudent::create(student_config, teacher.embedding_weight(), teacher.head_weight(), config.seed, at::kCPU);
    } else {
      student =
          student::PaperStudent::load(io::open_model(resume_from), at::kCPU, at::kFloat, teacher.embedding_weight(), teacher.head_weight());
    }
    plan.emplace(plan_run(config, *train, distill::Objective(config.distill, teacher.num_layers(), student->shape().num_layers())));
    source = teacher::make_teacher_source(teacher_source, teacher);
    trainer = std::make_unique<Trainer>(TrainerInputs{.config = config,
                                                      .plan = *plan,
                                                      .teacher = *source,
                                                      .student = *student,
                                                      .train = *train,
                                                      .validation = config.eval.every_steps > 0 ? validation.get() : nullptr,
                                                      .run = run,
                                                      .compute_dtype = config.train.precision == "fp16" ? at::kHalf : at::kFloat,
                                                      .resume_from = resume_from,
                                                      .stop_after_steps = stop_after_steps});
  }

  config::RunConfig config;
  std::unique_ptr<data::Loader> train, validation;
  std::unique_ptr<student::Student> student;
  std::optional<RunPlan> plan;
  std::unique_ptr<teacher::TeacherSource> source;
  std::unique_ptr<Trainer> trainer;
};

inline std::vector<json> read_metrics(const fs::path& run) {
  std::vector<json> records;
  std::istringstream lines(read_file(run / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) records.push_back(parse_json(line, "metrics"));
  return records;
}

inline std::vector<json> records_of(const fs::path& run, const std::string& kind) {
  auto records = read_metrics(run);
  std::erase_if(records, [&](const json& record) { return record["kind"] != kind; });
  return records;
}

inline double max_difference(const NamedTensors& a, const NamedTensors& b) {
  double largest = a.size() == b.size() ? 0.0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    largest = std::max(largest, (a[i].second.detach() - b[i].second.detach()).abs().max().item<double>());
  }
  return largest;
}

inline NamedTensors copies_of(const NamedTensors& tensors) {
  NamedTensors copies;
  for (const auto& [name, tensor] : tensors) copies.emplace_back(name, tensor.detach().clone());
  return copies;
}

}  // namespace distil_xlstm::train
