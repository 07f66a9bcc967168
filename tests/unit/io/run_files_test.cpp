// A run's files that are no longer what was written: every way to open it refuses them, and names file and remedy.
#include "io/run_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/checksums.h"
#include "io/model_files.h"
#include "io/safetensors.h"
#include "unit/io/io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

void write_value(const fs::path& path, const std::string& name, float value) {
  write_safetensors(path, {{name, DType::f32, {1}, std::as_bytes(std::span(&value, 1))}});
}

void flip_last_bit(const fs::path& path) {
  std::string content = read_file(path);
  content.back() = static_cast<char>(content.back() ^ 1);
  write_text(path, content);
}

class RunFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const int step : {100, 200, 300}) write_checkpoint(step);
    write_text(run_ / "checkpoints" / "last", "step-00000300\n");
    write_value(run_ / "frozen.safetensors", "token_embedding.weight", 5.0F);
    write_text(run_ / "tokenizer.json", "{}");
    json description = {{"format", "distil-xlstm run 1"}, {"files", json::object()}};
    for (const char* name : {"frozen.safetensors", "tokenizer.json"}) description["files"][name] = file_record(run_ / name);
    write_json(run_ / "run.json", description);
  }

  fs::path checkpoint(int step) const { return run_ / "checkpoints" / fmt::format("step-{:08}", step); }

  void write_checkpoint(int step) {
    fs::create_directories(checkpoint(step));
    write_value(checkpoint(step) / "model.safetensors", "blocks.0.weight", static_cast<float>(step));
    write_text(checkpoint(step) / "config.json", R"({"mlstm_block": {}, "distil_xlstm": {"version": 1}})");
    json trainer = {{"format", "distil-xlstm checkpoint 1"}, {"step", step}};
    for (const std::string& name : student_files()) trainer["files"][name] = file_record(checkpoint(step) / name);
    trainer["checksum"] = own_checksum(trainer);
    write_json(checkpoint(step) / "trainer.json", trainer);
  }

  static std::string error_of_model(const fs::path& path) {
    return error_of<DataError>([&] { open_model(path.string()); });
  }

  TemporaryDirectory directory_;
  fs::path run_ = directory_ / "run";
};

TEST_F(RunFilesTest, AWholeRunOpens) {
  EXPECT_TRUE(open_model(run_.string()).weights->contains("token_embedding.weight"));
  EXPECT_TRUE(open_model(checkpoint(100).string()).weights->contains("blocks.0.weight"));
}

TEST_F(RunFilesTest, DamagedStudentsAreRefusedAndTheNewestWholeOneIsNamed) {
  flip_last_bit(checkpoint(300) / "model.safetensors");
  EXPECT_THAT(error_of_model(run_), AllOf(HasSubstr("step-00000300/model.safetensors: XXH3-64 is"), HasSubstr("the content is damaged"),
                                          HasSubstr("the newest checkpoint that is whole is"), HasSubstr("step-00000200: name that one")));
  fs::resize_file(checkpoint(200) / "model.safetensors", 20);
  EXPECT_THAT(error_of_model(run_ / "checkpoints"), HasSubstr("step-00000100: name that one"));
  EXPECT_THAT(error_of_model(checkpoint(200)), HasSubstr("step-00000200/model.safetensors: 20 bytes, trainer.json recorded"));
  fs::remove(checkpoint(100) / "config.json");
  EXPECT_THAT(error_of_model(checkpoint(100)), AllOf(HasSubstr("step-00000100/config.json: missing"), Not(HasSubstr("is whole"))));
}

TEST_F(RunFilesTest, ADamagedConfigurationOrRecordIsRefused) {
  write_text(checkpoint(300) / "config.json", R"({"mlstm_block": {}, "distil_xlstm": {"version": 2}})");
  EXPECT_THAT(error_of_model(run_), HasSubstr("step-00000300/config.json: XXH3-64 is"));
  write_checkpoint(300);
  const std::string trainer = read_file(checkpoint(300) / "trainer.json");
  write_text(checkpoint(300) / "trainer.json", trainer.substr(0, trainer.size() / 2));
  EXPECT_THAT(error_of_model(run_), AllOf(HasSubstr("trainer.json: not JSON"), HasSubstr("step-00000200: name that one")));
  std::string changed = trainer;
  changed.replace(changed.find("300"), 3, "301");
  write_text(checkpoint(300) / "trainer.json", changed);
  EXPECT_THAT(error_of_model(run_), HasSubstr("its checksum does not fit"));
  // Without it, or with another program's file of this name, there is nothing to compare with.
  write_text(checkpoint(300) / "trainer.json", R"({"epochs": 3})");
  EXPECT_TRUE(open_model(run_.string()).weights->contains("blocks.0.weight"));
  fs::remove(checkpoint(300) / "trainer.json");
  EXPECT_TRUE(open_model(run_.string()).weights->contains("blocks.0.weight"));
}

TEST_F(RunFilesTest, SharedFilesAreComparedWithRunJson) {
  flip_last_bit(run_ / "frozen.safetensors");
  EXPECT_THAT(error_of_model(run_), AllOf(HasSubstr("run/frozen.safetensors: XXH3-64 is"), HasSubstr("run.json recorded"),
                                          HasSubstr("distil-xlstm distill --resume --output"), HasSubstr("from the teacher")));
  EXPECT_TRUE(open_checkpoint(checkpoint(300)).weights->contains("blocks.0.weight")) << "what --resume needs";
  fs::remove(run_ / "frozen.safetensors");
  EXPECT_THAT(error_of_model(checkpoint(100)), HasSubstr("run/frozen.safetensors: missing: run.json recorded it"));
  write_value(run_ / "frozen.safetensors", "token_embedding.weight", 5.0F);
  write_text(run_ / "tokenizer.json", "{ }");
  EXPECT_THAT(error_of_model(run_), HasSubstr("run/tokenizer.json: 3 bytes, run.json recorded 2"));
  // Runs of older versions.
  write_text(run_ / "run.json", R"({"format": "distil-xlstm run 1"})");
  EXPECT_TRUE(open_model(run_.string()).tokenizer.has_value());
}

}  // namespace
}  // namespace distil_xlstm::io
