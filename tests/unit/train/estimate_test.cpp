#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/toml.h"
#include "student/paper/shape.h"
#include "student/registry.h"
#include "train/estimate.h"

namespace distil_xlstm::train {
namespace {

using ::testing::HasSubstr;

const json kQwen = {{"model_type", "qwen2"},
                    {"architectures", {"Qwen2ForCausalLM"}},
                    {"hidden_size", 1536},
                    {"intermediate_size", 8960},
                    {"num_hidden_layers", 28},
                    {"num_attention_heads", 12},
                    {"num_key_value_heads", 2},
                    {"vocab_size", 151936},
                    {"max_position_embeddings", 131072},
                    {"rms_norm_eps", 1e-6},
                    {"rope_theta", 1000000.0},
                    {"hidden_act", "silu"},
                    {"tie_word_embeddings", true}};

struct Paper {
  explicit Paper(const std::string& preset = "paper")
      : config(config::load_config({.file = std::nullopt, .preset = preset, .overrides = {}}).run),
        teacher(teacher::teacher_shape(kQwen)),
        student(student::derive_student(config.student, teacher, config.data.context_length)) {}
  config::RunConfig config;
  teacher::TeacherShape teacher;
  student::PaperShape student;
};

TEST(Estimate, CountsThePapersParameters) {
  const Paper paper;
  const auto counts = count_parameters(paper.teacher, paper.student);
  EXPECT_EQ(counts.teacher, 1'543'714'304);
  EXPECT_EQ(counts.trainable, 84'360'264);
  EXPECT_EQ(counts.as_paper, 551'107'656);
  EXPECT_EQ(counts.stored, 317'733'960);
  const Paper code("paper-code");
  EXPECT_EQ(count_parameters(code.teacher, code.student).as_paper, 550'923'360);
}

TEST(Estimate, AnUntiedTeacherStoresBothMatrices) {
  Paper paper;
  paper.teacher.is_tied = false;
  const auto counts = count_parameters(paper.teacher, paper.student);
  EXPECT_EQ(counts.stored, counts.as_paper);
}

TEST(Estimate, CountsArithmetic) {
  const Paper paper;
  const auto flops = count_flops(paper.teacher, paper.student, 512);
  EXPECT_NEAR(flops.teacher_body / 1e9, 2.66, 0.01);
  EXPECT_NEAR(flops.teacher_head / 1e9, 0.467, 0.001);
  EXPECT_NEAR(flops.student_mixer / 1e9, 0.506, 0.001);
  EXPECT_NEAR(flops.student_head / 1e9, 0.933, 0.001);
}

TEST(Estimate, MemoryGrowsWithTheMicroBatchAndShrinksWithCheckpointing) {
  Paper paper;
  const auto bytes = [&] { return total_bytes(estimate_memory(paper.config, paper.teacher, paper.student, 2, 2, false)); };
  const auto at_8 = bytes();
  paper.config.train.micro_batch_size = 16;
  const auto at_16 = bytes();
  EXPECT_GT(at_16, at_8);
  paper.config.train.checkpointing = config::Checkpointing::blocks;
  EXPECT_LT(bytes(), at_16);
  const auto items = estimate_memory(paper.config, paper.teacher, paper.student, 2, 2, false);
  EXPECT_EQ(items[0].size_bytes, int64_t{2} * 1'543'714'304);
  EXPECT_EQ(items[1].size_bytes, 4 * 84'360'264);
}

TEST(Estimate, CountsWhatEachThreadOfACpuHolds) {
  const Paper paper;
  const auto item = [&](const std::string& name, int64_t teacher_bytes, int64_t threads) -> int64_t {
    for (const auto& i : estimate_memory(paper.config, paper.teacher, paper.student, teacher_bytes, 4, true, threads)) {
      if (i.name == name) return i.size_bytes;
    }
    return 0;
  };
  EXPECT_EQ(item("gradients of other threads", 4, 1), 0);
  EXPECT_EQ(item("gradients of other threads", 4, 4), 3 * 4 * 84'360'264);
  EXPECT_EQ(item("gradients of other threads", 4, 64), 0) << "more threads than rows: they do not share them";
  for (const int64_t bytes : {2, 4}) EXPECT_EQ(item("packed heads", bytes, 4), int64_t{8} * 151936 * 1536) << bytes;
  // The threads' tiles together stay within a quarter of a GiB.
  const int64_t tokens = paper.config.train.micro_batch_size * paper.config.data.context_length;
  for (const int64_t threads : {1, 2, 8}) EXPECT_LE(item("head tiles", 4, threads) - 2 * tokens * 1536 * 4, int64_t{1} << 28) << threads;
}

TEST(Estimate, CountsTheTeachersOutputsOfTwoMicroBatchesOnAGpu) {
  Paper paper;
  const auto outputs = [&](bool is_cpu) -> int64_t {
    for (const auto& i : estimate_memory(paper.config, paper.teacher, paper.student, 2, 2, is_cpu)) {
      if (i.name == "teacher outputs") return i.size_bytes;
    }
    return 0;
  };
  const int64_t states = paper.config.train.micro_batch_size * paper.config.data.context_length * 1536;
  EXPECT_EQ(outputs(false), 2 * states * (2 + 4));
  EXPECT_EQ(outputs(true), states * (2 + 4));
  paper.config.distill.alignment.kind = config::AlignmentKind::ratio;
  EXPECT_EQ(outputs(false), 2 * states * (2 + 4 * 6)) << "a mean of layers for each block";
  paper.config.train.gradient_accumulation_steps = 1;
  EXPECT_EQ(outputs(false), 2 * states * (2 + 4 * 6)) << "the next step's first";
}

TEST(Estimate, CountsTheGradientsOfOneMicroBatchBesideTheirSum) {
  Paper paper;
  const auto extra = [&](bool is_cpu) -> int64_t {
    for (const auto& i : estimate_memory(paper.config, paper.teacher, paper.student, 2, 2, is_cpu)) {
      if (i.name == "gradients of a micro-batch") return i.size_bytes;
    }
    return 0;
  };
  ASSERT_GT(paper.config.train.gradient_accumulation_steps, 1);
  EXPECT_EQ(extra(false), 4 * 84'360'264);
  EXPECT_EQ(extra(true), 0);
  paper.config.train.gradient_accumulation_steps = 1;
  EXPECT_EQ(extra(false), 0);
}

// What kept attention holds grows with the rows that a state has read, and with the row that is read on.
TEST(Estimate, CountsTheStatesThatRowsStartFrom) {
  const Paper paper;
  config::RunConfig config = config::load_config({.file = std::nullopt, .preset = "convert", .overrides = {}}).run;
  config.student.mixers = {"mlstm", "attention"};
  config.train.max_steps = 100;
  config.distill.convert.state_passing_fraction = 0.2;
  config.distill.convert.state_passing_rows = 2;
  const auto shape = student::derive_shape(config.student, paper.teacher, config.data.context_length);
  const auto states = [&] {
    for (const auto& item : estimate_memory(config, paper.teacher, *shape, 2, 2, /*is_cpu=*/false, 1)) {
      if (item.name == "states that rows start from") return item.size_bytes;
    }
    return int64_t{0};
  };
  EXPECT_EQ(states(), 2 * config.train.micro_batch_size * shape->state_bytes(3 * config.data.context_length, at::kBFloat16));
  config.distill.convert.state_passing_fraction = 0.0;
  EXPECT_EQ(states(), 0);
}

TEST(Estimate, AdvisesNoHalfPrecisionTeacherOnACpu) {
  const Paper paper;
  constexpr int64_t kGiB = int64_t{1} << 30;
  for (const int64_t limit : {2 * kGiB, 5 * kGiB, 8 * kGiB, 10 * kGiB}) {
    const auto advice = advise_memory(paper.config, paper.teacher, paper.student, 4, 4, true, limit);
    for (const auto& line : advice.changes) EXPECT_THAT(line, ::testing::Not(HasSubstr("bf16")));
    EXPECT_THAT(advice.why_none, ::testing::Not(HasSubstr("bf16")));
  }
}

TEST(Estimate, AdviceMakesItFit) {
  Paper paper;
  constexpr int64_t kGiB = int64_t{1} << 30;
  EXPECT_TRUE(advise_memory(paper.config, paper.teacher, paper.student, 2, 2, false, 80 * kGiB).fits);
  const auto items = estimate_memory(paper.config, paper.teacher, paper.student, 2, 2, false);
  const auto advice = advise_memory(paper.config, paper.teacher, paper.student, 2, 2, false, total_bytes(items) - 1);
  EXPECT_FALSE(advice.fits);
  ASSERT_GE(advice.changes.size(), 2u);
  EXPECT_THAT(advice.changes[0], HasSubstr("train.micro_batch_size = 4 with gradient_accumulation_steps = 8 (the same steps)"));
  EXPECT_THAT(advice.changes[1], HasSubstr("train.checkpointing = \"blocks\""));
  const auto hopeless = advise_memory(paper.config, paper.teacher, paper.student, 2, 2, false, 2 * kGiB);
  EXPECT_FALSE(hopeless.fits);
  EXPECT_TRUE(hopeless.changes.empty());
  EXPECT_THAT(hopeless.why_none, HasSubstr("take a smaller teacher"));
}

}  // namespace
}  // namespace distil_xlstm::train
