// Whole runs from text, as `distil-xlstm distill` makes them; some in child processes that are killed.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <spdlog/sinks/ostream_sink.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/output_lock.h"
#include "config/toml.h"
#include "data/prepare.h"
#include "io/checksums.h"
#include "small_run.h"
#include "support/decay_student.h"
#include "train/distill_run.h"
#include "train/run_directory.h"

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

  std::string error_of(const std::vector<config::Override>& extra, bool resume = false, int exit_code = 2, bool overwrite = false) {
    auto overrides = settings_for(folder_ / "run", text_);
    overrides.insert(overrides.end(), extra.begin(), extra.end());
    try {
      run_distillation({.config = load(overrides), .resume = resume, .overwrite = overwrite});
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), exit_code);
      return error.what();
    }
    return "";
  }

  void expect_kind_is_distilled_resumed_and_loaded(const std::string& kind, const std::vector<config::Override>& more = {});

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
                           "generation_config.json", "checkpoints/last", "checkpoints/best"}) {
    EXPECT_TRUE(fs::exists(output / name)) << name;
  }
  const auto description = read_json(output / "run.json");
  EXPECT_EQ(description["status"], "finished");
  EXPECT_EQ(description["progress"]["step"], description["progress"]["total_steps"]);
  EXPECT_EQ(config::to_toml(config::load_config({.file = output / "settings.toml", .preset = "", .overrides = {}}).run),
            config::to_toml(load(settings_for(output, text_)).run));

  // Embedding and head come from frozen.safetensors, everything else from the checkpoint; wherever the run lies.
  fs::rename(output, folder_ / "moved");
  const auto student = student::PaperStudent::load(io::open_model((folder_ / "moved").string()), at::kCPU);
  EXPECT_TRUE(at::equal(student->head_weight(), small_teacher().head_weight()));
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(student->forward_hidden(at::ones({1, 4}, at::kLong)).isfinite().all().item<bool>());
  // A tied matrix is stored once.
  EXPECT_EQ(read_tensors(folder_ / "moved" / "frozen.safetensors").size(), 1u);
}

// Distils a student of the kind whole, and in two parts of a run that is stopped and resumed: the same weights, a validation perplexity
// that falls, and a student that loads from the run and decodes token by token what it computes at once.
void DistillRunTest::expect_kind_is_distilled_resumed_and_loaded(const std::string& kind, const std::vector<config::Override>& more) {
  const auto settings = [&](const std::string& name) {
    auto overrides = settings_for(folder_ / name, text_);
    overrides.push_back({"student.kind", kind, "--set"});
    overrides.insert(overrides.end(), more.begin(), more.end());
    return load(overrides);
  };
  EXPECT_EQ(run_distillation({.config = settings("whole")}), TrainStatus::finished);
  EXPECT_EQ(run_distillation({.config = settings("parts"), .stop_after_steps = 7}), TrainStatus::stopped);
  EXPECT_EQ(run_distillation({.config = saved_settings(folder_ / "parts", {}), .resume = true}), TrainStatus::finished);
  const auto whole = student::load_student(io::open_model((folder_ / "whole").string()));
  const auto parts = student::load_student(io::open_model((folder_ / "parts").string()));
  EXPECT_EQ(whole->shape().kind(), kind);
  EXPECT_EQ(max_difference(whole->parameters(), parts->parameters()), 0.0);
  const auto validations = records_of(folder_ / "whole", "validation");
  EXPECT_LT(validations.back()["perplexity"].get<double>(), validations.front()["perplexity"].get<double>());
  const Tensor tokens = at::randint(3, 500, {2, 6}, at::kLong);
  const auto state = whole->new_state(2, 6);
  std::vector<Tensor> decoded;
  for (int64_t at = 0; at < 6; ++at) decoded.push_back(whole->forward_step(tokens.narrow(1, at, 1), *state));
  EXPECT_LT((at::cat(decoded, 1) - whole->forward_hidden(tokens, {})).abs().max().item<double>(), 1e-4);
}

// A kind of student that the program does not know, through the registry: every command that takes a student takes it.
TEST_F(DistillRunTest, AStudentKindFromOutsideIsDistilledResumedAndLoaded) {
  student::add_decay_student();
  expect_kind_is_distilled_resumed_and_loaded("decay");
  const auto steps = records_of(folder_ / "whole", "train");
  EXPECT_LT(steps.back()["loss"].get<double>(), steps.front()["loss"].get<double>());
  EXPECT_THAT(error_of({{"student.kind", "dekay", ""}}),
              HasSubstr("student.kind = \"dekay\": allowed are convert, decay, paper (did you mean 'decay'?)"));
}

// It starts from the teacher's layers.
TEST_F(DistillRunTest, AConvertedStudentIsDistilledResumedAndLoaded) {
  expect_kind_is_distilled_resumed_and_loaded("convert");
}

// Every mixer, from its teacher's look-back, by the method of two stages.
TEST_F(DistillRunTest, AHybridIsConvertedResumedAndLoaded) {
  expect_kind_is_distilled_resumed_and_loaded("convert", {{"student.mixers", R"(["slstm", "attention", "mlstm"])", "--set"},
                                                          {"student.attention_window", "8", "--set"},
                                                          {"student.attention_sinks", "2", "--set"},
                                                          {"distill.method", "convert", "--set"}});
  const auto student = student::load_student(io::open_model((folder_ / "whole").string()));
  EXPECT_THAT(student->description(), HasSubstr("the last 8 tokens and a document's first 2"));
}

TEST_F(DistillRunTest, StudentAndTeacherShareTheFrozenMatrices) {
  const auto shape = teacher::teacher_shape(io::open_model("stories260K").config);
  const auto student = student::PaperStudent::create(student::derive_student(small_config().student, shape, 12),
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
  const int interrupted = killed_child(parts, text_, true, all * 5 / 8, SIGINT);
  ASSERT_TRUE(WIFEXITED(interrupted));
  EXPECT_EQ(WEXITSTATUS(interrupted), 128 + SIGINT);
  const int hung_up = killed_child(parts, text_, true, all * 3 / 4, SIGHUP);
  ASSERT_TRUE(WIFEXITED(hung_up));
  EXPECT_EQ(WEXITSTATUS(hung_up), 128 + SIGHUP);
  EXPECT_EQ(read_json(parts / "run.json")["status"], "stopped");
  EXPECT_EQ(run(parts, true), TrainStatus::finished);
  expect_same_weights(folder_ / "whole", parts);
  EXPECT_EQ(read_metrics(parts).size(), all) << "no record is lost or written twice";
}

TEST_F(DistillRunTest, SaysWhatIsWrongBeforeAnythingLoads) {
  EXPECT_THAT(error_of({{"teacher.model", "", "--teacher"}, {"data.train", "", "--train"}}),
              ::testing::AllOf(HasSubstr("teacher.model is not set"), HasSubstr("data.train is not set")));
  const std::string unknown = error_of({{"distill.method", "deltta", "run.toml:7"},
                                        {"student.kind", "papre", "--student-kind"},
                                        {"distill.beta.schedule", "cosin", "run.toml:9"}});
  EXPECT_THAT(unknown, HasSubstr("run.toml:7: distill.method = \"deltta\": allowed are ce, "));
  EXPECT_THAT(unknown, HasSubstr("--student-kind: student.kind = \"papre\": allowed are "));
  EXPECT_THAT(unknown, HasSubstr("run.toml:9: distill.beta.schedule = \"cosin\": allowed are "));
  EXPECT_THAT(error_of({{"distill.alpha", "0.95", "--alpha"}, {"distill.beta", "0.1", "--beta"}}), HasSubstr("add up to"));
  EXPECT_THAT(error_of({{"teacher.model", "stories260k", "--teacher"}}), HasSubstr("did you mean"));
  EXPECT_THAT(error_of({{"student.num_heads", "7", "--num-heads"}}), HasSubstr("num_heads"));
  EXPECT_THAT(error_of({{"distill.alignment.kind", "block_wise", "--alignment-kind"}}), HasSubstr("the teacher has 5 layers"));
  EXPECT_THAT(error_of({{"student.init_from", "stories260K", "--init-from"}}), HasSubstr("is no student"));
  EXPECT_THAT(error_of({{"data.train", (folder_ / "mistyped").string(), "--train"}}, false, 1), HasSubstr("no such file"));
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

// All files below a directory with their content.
std::map<std::string, std::string> snapshot(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) files[entry.path().string()] = read_file(entry.path());
  }
  return files;
}

TEST_F(DistillRunTest, ForeignDirectoriesStayAsTheyAre) {
  // Files of the names that a run has, a folder with text in "data": none of it is a run.
  const auto other = folder_ / "other";
  const config::Override output{"output", other.string(), "--output"};
  for (const auto& [name, content] : std::map<std::string, std::string>{{"settings.toml", "mine = true\n"},
                                                                        {"run.json", "{\"jobs\": 3}"},
                                                                        {"data/corpus.txt", "text"},
                                                                        {"checkpoints/best.ckpt", "weights"}}) {
    SCOPED_TRACE(name);
    fs::remove_all(other);
    fs::create_directories((other / name).parent_path());
    std::ofstream(other / name) << content;
    const auto before = snapshot(other);
    EXPECT_THAT(error_of({output}), HasSubstr("is not empty and no run"));
    EXPECT_THAT(error_of({output}, false, 2, /*overwrite=*/true), HasSubstr("is not empty and no run"));
    EXPECT_THAT(error_of({output}, true), HasSubstr("there is no run to resume"));
    EXPECT_TRUE(snapshot(other) == before);
  }
}

TEST_F(DistillRunTest, OverwriteKeepsTheOldRunUntilTheNewOneIsChecked) {
  const auto output = folder_ / "run";
  EXPECT_EQ(run(output, false, 6), TrainStatus::stopped);
  std::ofstream(output / "notes.txt") << "mine";
  const auto before = snapshot(output);
  const auto other_text = folder_ / "other.jsonl";
  fs::copy_file(text_, other_text);
  const auto missing = (folder_ / "mistyped").string();
  EXPECT_NE(error_of({{"data.train", missing, "--train"}}, false, 1, true), "");
  EXPECT_NE(error_of({{"data.validation", missing, "--validation"}}, false, 1, true), "");
  EXPECT_NE(error_of({{"distill.alignment.kind", "block_wise", ""}}, false, 2, true), "");
  EXPECT_NE(error_of({{"student.init_from", "stories260K", ""}}, false, 2, true), "");
  // Known when the length is: alpha rises until it and beta are more than 1.
  EXPECT_THAT(error_of({{"distill.alpha", "{ schedule = \"delta-paper\", start = 0.3, final = 0.95, decay = 0.05 }", ""},
                        {"distill.beta", "0.3", ""},
                        {"data.train", other_text.string(), ""}},
                       false, 2, true),
              HasSubstr("add up to"));
  auto after = snapshot(output);
  std::erase_if(after, [](const auto& file) { return file.first.find("/data.new/") != std::string::npos; });
  EXPECT_TRUE(after == before);
  // The old run goes on, and is replaced only by one that begins.
  EXPECT_EQ(run(output, true, 1), TrainStatus::stopped);
  text_ = other_text;
  EXPECT_EQ(run(output, false, 2, true), TrainStatus::stopped);
  EXPECT_EQ(records_of(output, "train").size(), 2u);
  EXPECT_TRUE(fs::exists(output / "notes.txt")) << "not ours to remove";
  EXPECT_FALSE(fs::exists(output / "data.new"));
  EXPECT_THAT(read_file(output / "data" / "prepare.json"), HasSubstr("other.jsonl"));
  EXPECT_EQ(run(output, true), TrainStatus::finished);
}

TEST_F(DistillRunTest, ARunWithoutACheckpointIsARunToo) {
  const auto output = folder_ / "run";
  EXPECT_EQ(run(output, false, 1), TrainStatus::stopped);
  fs::remove_all(output / "checkpoints");
  EXPECT_THAT(error_of({}), HasSubstr("holds a run already"));
  EXPECT_THAT(error_of({}, true), HasSubstr("--overwrite begins it anew"));
}

TEST_F(DistillRunTest, OneProcessAtATimeTrainsInADirectory) {
  const auto output = folder_ / "run";
  const std::string holder = fmt::format("process {} is writing there", ::getpid());
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  {
    const OutputLock lock(output);
    const auto before = snapshot(output);
    EXPECT_THAT(error_of({}, true), HasSubstr(holder));
    EXPECT_THAT(error_of({}, false, 2, /*overwrite=*/true), HasSubstr(holder));
    EXPECT_TRUE(snapshot(output) == before);
    EXPECT_EQ(io::open_model(output.string()).kind, io::ModelKind::student) << "readers need no lock";
  }
  EXPECT_EQ(run(output, true, 1), TrainStatus::stopped);
  for (const auto& entry : fs::directory_iterator(output)) EXPECT_FALSE(is_lock_name(entry.path().filename().string()));
}

TEST_F(DistillRunTest, KilledBeforeItsFirstStepItBeginsAgain) {
  const auto output = folder_ / "run";
  // Killed before there was a journal of its text.
  fs::create_directories(output / "data");
  for (const char* name :
       {".distil-xlstm.lock", "run.json.distil-xlstm-tmp-1-0", "data/.distil-xlstm.lock", "data/prepare.journal.distil-xlstm-tmp-1-1"})
    std::ofstream(output / name) << "1";
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  // Killed between run.json and the first step.
  fs::remove_all(output / "checkpoints");
  for (const char* name : {"metrics.jsonl", "settings.toml", "frozen.safetensors"}) fs::remove(output / name);
  auto description = read_json(output / "run.json");
  description["status"] = "starting";
  write_json(output / "run.json", description);
  for (const char* name : {"frozen.safetensors.tmp", "settings.toml.distil-xlstm-tmp-1-0", "notes.txt"})
    std::ofstream(output / name) << "half";
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  EXPECT_EQ(records_of(output, "train").size(), 2u);
  EXPECT_FALSE(fs::exists(output / "frozen.safetensors.tmp") || fs::exists(output / "settings.toml.distil-xlstm-tmp-1-0"));
  EXPECT_TRUE(fs::exists(output / "notes.txt"));
}

// `prepare --output run/data` came first.
TEST_F(DistillRunTest, TextThatAUserPreparedInItStays) {
  const auto output = folder_ / "run", other = folder_ / "other.jsonl";
  data::PrepareOptions options;
  options.reader.inputs = {text_.string()};
  options.model = "stories260K";
  options.context_length = 32;
  options.show_progress = false;
  for (const char* name : {"data", "data.new", "validation-data"}) {
    options.output = output / name;
    data::prepare(options);
    const auto before = snapshot(output);
    for (const bool overwrite : {false, true}) {
      EXPECT_THAT(error_of({}, false, 2, overwrite), HasSubstr(fmt::format("holds {}, is not empty and no run: choose a new", name)));
      EXPECT_TRUE(snapshot(output) == before);
    }
    fs::remove_all(output);
  }
  // Of a run that was stopped while it prepared its text, it is the run's: also where the text is another by now.
  options.output = output / "data";
  data::prepare(options);
  write_json(output / "run.json", {{"format", kRunFormat}, {"status", "starting"}});
  fs::copy_file(text_, other);
  text_ = other;
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  EXPECT_THAT(read_file(output / "data" / "prepare.json"), HasSubstr("other.jsonl"));
  EXPECT_FALSE(fs::exists(output / "data.new"));
}

TEST_F(DistillRunTest, ItsTextIsMarkedUntilTheRunIsMade) {
  const auto output = folder_ / "run";
  // Fails when the length is known, after its text is prepared.
  EXPECT_NE(error_of({{"distill.alpha", "{ schedule = \"delta-paper\", start = 0.3, final = 0.95, decay = 0.05 }", ""},
                      {"distill.beta", "0.3", ""}}),
            "");
  EXPECT_TRUE(fs::exists(output / "data" / "prepare.json"));
  EXPECT_EQ(run_status(output), "starting");
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  {
    const BegunRun begun(folder_ / "no text");
    EXPECT_EQ(run_status(folder_ / "no text"), "starting");
  }
  EXPECT_TRUE(fs::is_empty(folder_ / "no text"));
}

TEST_F(DistillRunTest, AUsersFileAmongItsTextIsNamedBeforeAnythingGoes) {
  const auto output = folder_ / "run", other = folder_ / "other.jsonl";
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  std::ofstream(output / "data" / "notes.txt") << "mine";
  const auto before = snapshot(output);
  fs::copy_file(text_, other);
  text_ = other;
  EXPECT_THAT(error_of({}, false, 2, /*overwrite=*/true), HasSubstr("data: holds notes.txt, which is not the run's"));
  EXPECT_TRUE(snapshot(output) == before);
  fs::remove(output / "data" / "notes.txt");
  std::ofstream(output / "data" / "prepare.journal.distil-xlstm-tmp-1-0") << "left";
  EXPECT_EQ(run(output, false, 2, /*overwrite=*/true), TrainStatus::stopped);
  EXPECT_FALSE(fs::exists(output / "data" / "prepare.journal.distil-xlstm-tmp-1-0"));
}

// An error between a checkpoint and what follows it: nothing is saved any more, but what is too much goes.
TEST_F(DistillRunTest, ResumingRemovesOldCheckpoints) {
  const auto output = folder_ / "run";
  EXPECT_EQ(run(output), TrainStatus::finished);
  const auto kept = list_checkpoints(output);
  for (const char* name : {"step-00000001", "step-00000002", "step-00000005.distil-xlstm-tmp-1-0"})
    fs::copy(kept.front(), output / "checkpoints" / name, fs::copy_options::recursive);
  EXPECT_EQ(run(output, true), TrainStatus::finished);
  EXPECT_TRUE(list_checkpoints(output) == kept);
  EXPECT_FALSE(fs::exists(output / "checkpoints" / "step-00000005.distil-xlstm-tmp-1-0"));
}

TEST_F(DistillRunTest, NeverInsideWhatItReads) {
  const auto corpus = folder_ / "corpus";
  fs::create_directories(corpus);
  fs::copy_file(text_, corpus / "stories.jsonl");
  EXPECT_THAT(error_of({{"data.train", corpus.string(), ""}, {"output", (corpus / "run").string(), ""}}),
              ::testing::AllOf(HasSubstr("output = \""), HasSubstr("lies inside ")));
  EXPECT_FALSE(fs::exists(corpus / "run"));
  EXPECT_EQ(run(folder_ / "run", false, 2), TrainStatus::stopped);
  const auto before = snapshot(folder_ / "run");
  EXPECT_THAT(error_of({{"data.train", (folder_ / "run" / "data").string(), ""}}, false, 2, /*overwrite=*/true),
              HasSubstr("data, which the command reads, lies inside it"));
  EXPECT_THAT(error_of({{"output", "", ""}}), HasSubstr("output = \"\": names no directory"));
  EXPECT_TRUE(snapshot(folder_ / "run") == before);
}

TEST_F(DistillRunTest, ShardsThatAUserPutBesideARunAreNotItsOwn) {
  const auto output = folder_ / "run";
  EXPECT_EQ(run(folder_ / "other", false, 2), TrainStatus::stopped);
  const auto shards = settings_for(output, folder_ / "other" / "data");
  EXPECT_EQ(run_distillation({.config = load(shards), .stop_after_steps = 2}), TrainStatus::stopped);
  fs::copy(folder_ / "other" / "data", output / "data");
  const auto mine = snapshot(output / "data");
  EXPECT_EQ(run_distillation({.config = load(shards), .overwrite = true, .stop_after_steps = 2}), TrainStatus::stopped);
  EXPECT_TRUE(snapshot(output / "data") == mine);
  EXPECT_THAT(error_of({{"data.context_length", "24", ""}}, false, 2, /*overwrite=*/true),
              HasSubstr("shards that the run there did not prepare"));
  EXPECT_TRUE(snapshot(output / "data") == mine);
}

TEST_F(DistillRunTest, DamagedTextOfItsOwnIsPreparedAnew) {
  const auto output = folder_ / "run", shard = output / "data" / "train-00000.dxts";
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  const auto good = read_file(shard);
  auto bad = good;
  bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] ^ 1);
  write_file_atomic(shard, bad);
  EXPECT_EQ(run(output, false, 2, /*overwrite=*/true), TrainStatus::stopped);
  EXPECT_TRUE(read_file(shard) == good);
}

TEST_F(DistillRunTest, ResumingPreparesNothingAnew) {
  const auto output = folder_ / "run";
  ASSERT_EQ(run(folder_ / "whole"), TrainStatus::finished);
  EXPECT_EQ(run(output, false, 3), TrainStatus::stopped);
  const auto shards = snapshot(output / "data");
  std::ofstream(text_, std::ios::app) << "{\"text\": \"one more\"}\n";
  EXPECT_EQ(run(output, true, 3), TrainStatus::stopped);
  EXPECT_TRUE(snapshot(output / "data") == shards) << "the text has changed, the run's data has not";
  fs::remove(text_);
  EXPECT_EQ(run(output, true), TrainStatus::finished);
  EXPECT_TRUE(snapshot(output / "data") == shards);
  expect_same_weights(folder_ / "whole", output);
}

TEST_F(DistillRunTest, SharedFilesThatAreMissingOrDamagedAreWrittenAgain) {
  const auto output = folder_ / "run";
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  std::map<std::string, std::string> before;
  for (const char* name : {"frozen.safetensors", "tokenizer.json", "tokenizer_config.json"}) before[name] = read_file(output / name);
  const json records = read_json(output / "run.json")["files"];
  fs::remove(output / "tokenizer.json");
  fs::resize_file(output / "tokenizer_config.json", 3);
  std::string damaged = before["frozen.safetensors"];
  damaged.back() = static_cast<char>(damaged.back() ^ 1);
  std::ofstream(output / "frozen.safetensors", std::ios::binary) << damaged;
  EXPECT_THROW(io::open_model(output.string()), DataError);
  EXPECT_EQ(run(output, true, 2), TrainStatus::stopped);
  for (const auto& [name, content] : before) EXPECT_TRUE(read_file(output / name) == content) << name;
  EXPECT_EQ(read_json(output / "run.json")["files"], records);
  EXPECT_TRUE(io::open_model(output.string()).tokenizer.has_value());
}

TEST_F(DistillRunTest, OlderRunsHaveNoRecordsAndGoOn) {
  const auto output = folder_ / "run";
  EXPECT_EQ(run(output, false, 2), TrainStatus::stopped);
  json description = read_json(output / "run.json");
  description.erase("files");
  write_json(output / "run.json", description);
  const auto path = checked_last_checkpoint(output) / "trainer.json";
  json trainer = read_json(path);
  trainer.erase("origin");
  trainer["checksum"] = io::own_checksum(trainer);
  write_json(path, trainer);
  EXPECT_EQ(run(output, true, 1), TrainStatus::stopped);
  EXPECT_TRUE(read_json(output / "run.json")["files"].contains("frozen.safetensors"));
  EXPECT_TRUE(read_json(checked_last_checkpoint(output) / "trainer.json")["origin"].is_object());
}

TEST_F(DistillRunTest, ValidationIsNeverTrainingText) {
  const auto shards = folder_ / "shards", all = folder_ / "all";
  const auto prepare = [&](const fs::path& directory, double fraction) {
    data::PrepareOptions options;
    options.reader.inputs = {text_.string()};
    options.output = directory;
    options.model = "stories260K";
    options.context_length = 32;
    options.validation_fraction = fraction;
    options.show_progress = false;
    return data::prepare(options);
  };
  const auto report = prepare(shards, 0.3);
  prepare(all, 0.0);
  const auto result_of = [&](const std::string& train, const std::string& validation) -> int64_t {
    auto overrides = settings_for(folder_ / "run", text_);
    overrides.push_back({"data.train", train, ""});
    overrides.push_back({"data.validation", validation, ""});
    overrides.push_back({"eval.max_tokens", "0", ""});
    run_distillation({.config = load(overrides), .overwrite = true, .stop_after_steps = 1});
    return records_of(folder_ / "run", "validation")[0]["target_tokens"];
  };
  EXPECT_LE(result_of(shards.string(), shards.string()), report.validation_tokens);
  // No split to tell them apart.
  EXPECT_THAT(error_of({{"data.train", all.string(), ""}, {"data.validation", all.string(), ""}}, false, 2, true),
              HasSubstr("is also trained on"));
  fs::create_directories(folder_ / "copies");
  for (const auto& entry : fs::directory_iterator(all))
    fs::copy(entry.path(), folder_ / "copies" / ("x" + entry.path().filename().string()));
  fs::remove(folder_ / "copies" / "xprepare.json");
  EXPECT_THAT(error_of({{"data.train", all.string(), ""}, {"data.validation", (folder_ / "copies").string(), ""}}, false, 2, true),
              HasSubstr("is also trained on"));
}

TEST_F(DistillRunTest, AStudentToStartFromFitsByShapeAlone) {
  EXPECT_EQ(run(folder_ / "first", false, 2), TrainStatus::stopped);
  auto overrides = settings_for(folder_ / "run", text_);
  for (const auto& [key, value] : std::map<std::string, std::string>{{"student.init_from", (folder_ / "first").string()},
                                                                     {"data.context_length", "24"},
                                                                     {"student.chunk_size", "16"},
                                                                     {"student.bias_init", "zeros"},
                                                                     {"student.recurrent_weight_init", "standard"}})
    overrides.push_back({key, value, ""});
  EXPECT_EQ(run_distillation({.config = load(overrides), .stop_after_steps = 1}), TrainStatus::stopped);
  EXPECT_EQ(read_json(checked_last_checkpoint(folder_ / "run") / "config.json")["context_length"], 24);
  overrides.push_back({"student.num_blocks", "3", ""});
  try {
    run_distillation({.config = load(overrides), .overwrite = true});
    ADD_FAILURE() << "took another shape";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("num_blocks: [student] and the teacher give 3, there it is 2"));
  }
}

TEST_F(DistillRunTest, AFailedRunGoesOnWithALowerLearningRate) {
  auto overrides = settings_for(folder_ / "run", text_);
  for (const auto& [key, value] : std::map<std::string, std::string>{{"optimizer.learning_rate", "1e30"},
                                                                     {"optimizer.warmup_ratio", "0.3"},
                                                                     {"train.max_skipped_steps", "2"},
                                                                     {"train.save_every_steps", "1"}})
    overrides.push_back({key, value, ""});
  EXPECT_THROW(run_distillation({.config = load(overrides)}), Error);
  EXPECT_EQ(read_json(folder_ / "run" / "run.json")["status"], "failed");
  const auto lower = saved_settings(folder_ / "run", {{"optimizer.learning_rate", "1e-3", "--learning-rate"}});
  EXPECT_EQ(run_distillation({.config = lower, .resume = true, .stop_after_steps = 3}), TrainStatus::stopped);
  EXPECT_EQ(saved_settings(folder_ / "run", {}).run.optimizer.learning_rate, 1e-3) << "settings.toml says what is in force";
  EXPECT_EQ(run(folder_ / "run", true, 1), TrainStatus::stopped);
}

// A settings.toml names every key: what stands at its default asks for nothing.
TEST_F(DistillRunTest, WarnsOfIgnoredKeysThatWereChangedAndOnce) {
  std::ostringstream said;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(said)));
  auto overrides = settings_for(folder_ / "run", text_);
  overrides.push_back({"distill.temperature_max", "7", "--temperature-max"});
  overrides.push_back({"distill.boundary", "epoch", "--boundary"});
  overrides.push_back({"student.feature_factor", "4", "--set"});
  run_distillation({.config = load(overrides), .stop_after_steps = 1});
  const auto first = said.str();
  said.str("");
  run(folder_ / "run", true, 1);
  spdlog::set_default_logger(before);
  EXPECT_THAT(first, HasSubstr("--temperature-max: distill.temperature_max has no effect"));
  EXPECT_THAT(first, HasSubstr("--set: student.feature_factor has no effect with student.kind = \"paper\""));
  EXPECT_THAT(first, ::testing::Not(HasSubstr("distill.boundary")));
  EXPECT_THAT(said.str(), ::testing::Not(HasSubstr("has no effect")));
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
  b = a;
  b.optimizer.learning_rate = 1e-5;
  b.optimizer.initial_loss_scale = 1.0;
  b.train.precision = "fp32";
  EXPECT_EQ(changed_settings(a, b).size(), 3u);
  EXPECT_TRUE(changed_settings(a, b, /*has_failed=*/true).empty());
}

// Another value of each setting: the table says which of them are reported.
TEST_F(DistillRunTest, EverySettingThatMustStayIsReported) {
  const std::vector<json> candidates = {
      3, 5, 0.25, true, false, "elsewhere", json::array({0.5, 0.75}), json::array({1}), json::array({"shards"})};
  for (const auto& setting : config::all_settings()) {
    const config::RunConfig saved;
    config::RunConfig now;
    for (const auto& name : setting.names) setting.set(now, name);  // the last is not the default of any
    for (const auto& value : candidates) {
      if (setting.get(now) == setting.get(saved)) setting.set(now, value);
    }
    ASSERT_NE(setting.get(now), setting.get(saved)) << setting.key;
    for (const bool has_failed : {false, true}) {
      const auto changes = changed_settings(saved, now, has_failed);
      ASSERT_EQ(changes.size(), setting.may_change(has_failed) ? 0U : 1U) << setting.key;
      if (!changes.empty()) {
        EXPECT_THAT(changes[0], HasSubstr(setting.key + ": was "));
      }
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::train
