// Whole runs from text, as `distil-xlstm distill` makes them; some in child processes that are killed.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "config/toml.h"
#include "small_run.h"
#include "train/distill_run.h"

namespace distil_xlstm::train {
namespace {

using ::testing::HasSubstr;

constexpr const char* kChildVariable = "DISTIL_XLSTM_TEST_CHILD_RUN";

std::vector<config::Override> settings_for(const fs::path& output, const fs::path& text) {
  const std::vector<std::pair<std::string, std::string>> values = {
      {"teacher.model", "stories260K"}, {"output", output.string()},         {"data.train", text.string()},
      {"data.context_length", "32"},    {"data.validation_fraction", "0.2"}, {"student.num_blocks", "2"},
      {"student.num_heads", "4"},       {"train.micro_batch_size", "2"},     {"train.gradient_accumulation_steps", "2"},
      {"train.device", "cpu"},          {"train.num_epochs", "2"},           {"train.save_every_steps", "5"},
      {"eval.every_steps", "10"},       {"eval.max_tokens", "500"}};
  std::vector<config::Override> overrides;
  for (const auto& [key, value] : values) overrides.push_back({key, value, "--set"});
  return overrides;
}

config::LoadedConfig load(const std::vector<config::Override>& overrides) {
  return config::load_config({.file = std::nullopt, .preset = "", .overrides = overrides});
}

class DistillRunTest : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    at::set_num_threads(2);  // as in the children: the same bits need the same number of threads
    text_ = folder_ / "stories.jsonl";
    std::ofstream lines(text_);
    std::mt19937 random(3);
    const std::vector<std::string> words = {"Once", "upon",  "a",  "time", "there", "was", "little", "girl",
                                            "who",  "liked", "to", "play", "with",  "her", "dog",    "."};
    for (int i = 0; i < 60; ++i) {
      std::string text;
      for (int k = 0; k < 60; ++k) text += words[random() % words.size()] + " ";
      lines << json{{"text", text}}.dump() << "\n";
    }
  }

  TrainStatus run(const fs::path& output, bool resume = false, int64_t stop_after = 0, bool overwrite = false) {
    const auto config = resume ? saved_settings(output, {}) : load(settings_for(output, text_));
    return run_distillation({.config = config, .resume = resume, .overwrite = overwrite, .stop_after_steps = stop_after});
  }

  std::string error_of(const std::vector<config::Override>& extra, bool resume = false) {
    auto overrides = settings_for(folder_ / "run", text_);
    overrides.insert(overrides.end(), extra.begin(), extra.end());
    try {
      run_distillation({.config = load(overrides), .resume = resume});
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), 2);
      return error.what();
    }
    return "";
  }

  fs::path text_;
};

void expect_same_weights(const fs::path& a, const fs::path& b) {
  const auto first = checked_last_checkpoint(a), second = checked_last_checkpoint(b);
  EXPECT_EQ(first.filename(), second.filename());
  for (const char* name : {"model.safetensors", "optimizer.safetensors"})
    EXPECT_TRUE(read_file(first / name) == read_file(second / name)) << name;
}

TEST_F(DistillRunTest, FromTextToARunThatOpensAsAModel) {
  const auto output = folder_ / "run";
  EXPECT_EQ(run(output), TrainStatus::finished);
  for (const char* name : {"run.json", "settings.toml", "metrics.jsonl", "frozen.safetensors", "tokenizer.json", "tokenizer_config.json",
                           "checkpoints/last", "checkpoints/best"}) {
    EXPECT_TRUE(fs::exists(output / name)) << name;
  }
  const auto description = read_json(output / "run.json");
  EXPECT_EQ(description["status"], "finished");
  EXPECT_EQ(description["progress"]["step"], description["progress"]["total_steps"]);
  EXPECT_EQ(config::to_toml(config::load_config({.file = output / "settings.toml", .preset = "", .overrides = {}}).run),
            config::to_toml(load(settings_for(output, text_)).run));

  // Embedding and head come from frozen.safetensors, everything else from the checkpoint; wherever the run lies.
  fs::rename(output, folder_ / "moved");
  const auto student = student::Student::load(io::open_model((folder_ / "moved").string()), at::kCPU);
  EXPECT_TRUE(at::equal(student->head_weight(), small_teacher().head_weight()));
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(student->forward_hidden(at::ones({1, 4}, at::kLong)).isfinite().all().item<bool>());
  // A tied matrix is stored once.
  EXPECT_EQ(read_tensors(folder_ / "moved" / "frozen.safetensors").size(), 1u);
}

TEST_F(DistillRunTest, StudentAndTeacherShareTheFrozenMatrices) {
  const auto shape = teacher::teacher_shape(io::open_model("stories260K").config);
  const auto student = student::Student::create(student::derive_student(small_config().student, shape, 12),
                                                small_teacher().embedding_weight(), small_teacher().head_weight(), 0, at::kCPU);
  EXPECT_EQ(student->embedding_weight().const_data_ptr(), small_teacher().embedding_weight().const_data_ptr());
  EXPECT_EQ(student->head_weight().const_data_ptr(), small_teacher().head_weight().const_data_ptr());
  for (const auto& [name, parameter] : student->parameters()) {
    EXPECT_NE(name, "token_embedding.weight");
    EXPECT_NE(name, "lm_head.weight");
  }
}

TEST_F(DistillRunTest, StopsAndResumesToTheSameBits) {
  EXPECT_EQ(run(folder_ / "whole"), TrainStatus::finished);
  EXPECT_EQ(run(folder_ / "parts", false, 7), TrainStatus::stopped);
  EXPECT_EQ(read_json(folder_ / "parts" / "run.json")["status"], "stopped");
  EXPECT_EQ(run(folder_ / "parts", true, 9), TrainStatus::stopped);
  EXPECT_EQ(run(folder_ / "parts", true), TrainStatus::finished);
  expect_same_weights(folder_ / "whole", folder_ / "parts");
}

// Not a test by itself: what the killed children run.
TEST(DistillRunChild, DISABLED_Run) {
  const auto request = parse_json(std::getenv(kChildVariable), kChildVariable);
  const auto output = request["output"].get<std::string>();
  const bool resume = request["resume"];
  const auto config = resume ? saved_settings(output, {}) : load(settings_for(output, request["text"].get<std::string>()));
  at::set_num_threads(2);
  int code = 0;
  try {
    run_distillation({.config = config, .resume = resume});
  } catch (const Error& error) {
    code = error.exit_code();
  }
  std::_Exit(code);
}

// Starts this program again on that test, waits for `records` lines of metrics, and sends `signal`. Returns waitpid's status.
int killed_child(const fs::path& output, const fs::path& text, bool resume, size_t records, int signal) {
  const auto self = fs::read_symlink("/proc/self/exe").string();
  const auto request = json{{"output", output.string()}, {"text", text.string()}, {"resume", resume}}.dump();
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv(kChildVariable, request.c_str(), 1);
    ::execl(self.c_str(), self.c_str(), "--gtest_also_run_disabled_tests", "--gtest_filter=DistillRunChild.DISABLED_Run", nullptr);
    std::_Exit(127);
  }
  int status = 0;
  for (int waited = 0; waited < 60'000; ++waited) {
    const auto count =
        fs::exists(output / "metrics.jsonl") ? static_cast<size_t>(std::ranges::count(read_file(output / "metrics.jsonl"), '\n')) : 0;
    if (count >= records) break;
    if (::waitpid(child, &status, WNOHANG) == child) return status;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ::kill(child, signal);
  ::waitpid(child, &status, 0);
  return status;
}

TEST_F(DistillRunTest, KilledAndResumedEqualsUninterrupted) {
  ASSERT_EQ(run(folder_ / "whole"), TrainStatus::finished);
  const size_t all = read_metrics(folder_ / "whole").size();
  const auto parts = folder_ / "parts";
  // No warning: gone in the middle of whatever it did. Then asked to stop, twice, then to the end.
  const int killed = killed_child(parts, text_, false, all / 4, SIGKILL);
  ASSERT_TRUE(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGKILL) << "the run ended before it could be killed: " << killed;
  ASSERT_FALSE(list_checkpoints(parts).empty());
  const int terminated = killed_child(parts, text_, true, all / 2, SIGTERM);
  ASSERT_TRUE(WIFEXITED(terminated));
  EXPECT_EQ(WEXITSTATUS(terminated), 128 + SIGTERM);
  EXPECT_EQ(read_json(parts / "run.json")["status"], "stopped");
  const int interrupted = killed_child(parts, text_, true, all * 3 / 4, SIGINT);
  ASSERT_TRUE(WIFEXITED(interrupted));
  EXPECT_EQ(WEXITSTATUS(interrupted), 128 + SIGINT);
  EXPECT_EQ(run(parts, true), TrainStatus::finished);
  expect_same_weights(folder_ / "whole", parts);
  EXPECT_EQ(read_metrics(parts).size(), all) << "no record is lost or written twice";
}

TEST_F(DistillRunTest, SaysWhatIsWrongBeforeAnythingLoads) {
  EXPECT_THAT(error_of({{"teacher.model", "", "--teacher"}, {"data.train", "", "--train"}}),
              ::testing::AllOf(HasSubstr("teacher.model is not set"), HasSubstr("data.train is not set")));
  EXPECT_THAT(error_of({{"distill.alpha", "0.95", "--alpha"}, {"distill.beta", "0.1", "--beta"}}), HasSubstr("add up to"));
  EXPECT_THAT(error_of({{"teacher.model", "stories260k", "--teacher"}}), HasSubstr("did you mean"));
  EXPECT_THAT(error_of({{"student.num_heads", "7", "--num-heads"}}), HasSubstr("num_heads"));
  EXPECT_FALSE(fs::exists(folder_ / "run")) << "nothing was written";
  EXPECT_THAT(error_of({}, true), HasSubstr("there is no run to resume"));
}

TEST_F(DistillRunTest, ARunIsNotOverwrittenByAccident) {
  EXPECT_EQ(run(folder_ / "run", false, 2), TrainStatus::stopped);
  EXPECT_THAT(error_of({}), HasSubstr("holds a run already: --resume goes on with it, --overwrite replaces it"));
  EXPECT_THAT(error_of({{"optimizer.learning_rate", "0.5", "--learning-rate"}, {"seed", "3", "--seed"}}, true),
              ::testing::AllOf(HasSubstr("cannot be resumed with other settings"), HasSubstr("optimizer.learning_rate: was 0.0002, is 0.5"),
                               HasSubstr("seed: was 0, is 3")));
  EXPECT_EQ(run(folder_ / "run", false, 2, true), TrainStatus::stopped);
  EXPECT_EQ(records_of(folder_ / "run", "train").size(), 2u);
  fs::create_directories(folder_ / "other");
  std::ofstream(folder_ / "other" / "notes.txt") << "mine";
  EXPECT_THAT(error_of({{"output", (folder_ / "other").string(), "--output"}}), HasSubstr("is not empty and no run"));
}

TEST_F(DistillRunTest, SettingsThatMayChangeOnResume) {
  config::RunConfig a, b;
  b.output = "elsewhere";
  b.train.log_every_steps = 10;
  b.train.keep_checkpoints = 9;
  EXPECT_TRUE(changed_settings(a, b).empty());
  b.distill.alpha.start = 0.7;
  ASSERT_EQ(changed_settings(a, b).size(), 1u);
  EXPECT_THAT(changed_settings(a, b)[0], HasSubstr("distill.alpha.start: was 0.8, is 0.7"));
}

}  // namespace
}  // namespace distil_xlstm::train
