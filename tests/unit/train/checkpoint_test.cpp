#include <fstream>

#include "base/error.h"
#include "small_run.h"

namespace distil_xlstm::train {
namespace {

using ::testing::HasSubstr;

class CheckpointTest : public RunTest {
 protected:
  fs::path write(int64_t step) {
    CheckpointContent content;
    content.student_config = {{"num_blocks", 2}};
    content.model = {{"a", at::full({3, 2}, static_cast<double>(step))}, {"b", at::arange(5, at::kLong)}};
    content.optimizer = {{"exp_avg.a", at::full({3, 2}, 0.1)}, {"half", at::ones({4}, at::kHalf)}, {"bf16", at::ones({2}, at::kBFloat16)}};
    content.trainer = {{"step", step}};
    return write_checkpoint(folder_, step, content);
  }

  std::string error_of(const fs::path& checkpoint) {
    try {
      read_checkpoint(checkpoint);
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(CheckpointTest, ReadsBackWhatWasWritten) {
  const auto directory = write(7);
  EXPECT_EQ(directory.filename(), "step-00000007");
  EXPECT_EQ(read_checkpoint(directory)["step"], 7);
  EXPECT_EQ(follow_pointer(folder_, "last"), directory);
  EXPECT_EQ(follow_pointer(folder_, "best"), std::nullopt);
  const auto model = read_tensors(directory / "model.safetensors");
  ASSERT_EQ(model.size(), 2u);
  for (const auto& [name, tensor] : model) {
    EXPECT_TRUE(at::equal(tensor, name == "a" ? at::full({3, 2}, 7.0) : at::arange(5, at::kLong))) << name;
  }
  for (const auto& [name, tensor] : read_tensors(directory / "optimizer.safetensors")) {
    EXPECT_EQ(tensor.scalar_type(), name == "half" ? at::kHalf : name == "bf16" ? at::kBFloat16 : at::kFloat);
  }
}

TEST_F(CheckpointTest, EveryFlippedBitAndEveryCutIsNoticed) {
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "config.json", "trainer.json"}) {
    const auto directory = write(1);
    const auto path = directory / name;
    const auto whole = read_file(path);
    for (size_t at = 0; at < whole.size(); at += std::max<size_t>(whole.size() / 23, 1)) {
      auto damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
      std::ofstream(path, std::ios::binary) << damaged;
      EXPECT_THAT(error_of(directory), HasSubstr(name)) << "bit flipped at " << at;
      std::ofstream(path, std::ios::binary | std::ios::trunc) << whole.substr(0, at);
      EXPECT_THAT(error_of(directory), HasSubstr(name)) << "cut at " << at;
    }
    fs::remove(path);
    EXPECT_THAT(error_of(directory), HasSubstr(std::string(name) + ": missing"));
  }
}

TEST_F(CheckpointTest, NamesTheNewestWholeCheckpointWhenTheLastIsDamaged) {
  write(1);
  write(2);
  const auto last = write(3);
  EXPECT_EQ(checked_last_checkpoint(folder_), last);
  fs::resize_file(last / "model.safetensors", 40);
  try {
    checked_last_checkpoint(folder_);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("step-00000003/model.safetensors: 40 bytes, trainer.json recorded"));
    EXPECT_THAT(error.what(), HasSubstr("step-00000002 is whole"));
  }
  std::ofstream(folder_ / "checkpoints" / "last") << "step-00000002\n";
  EXPECT_EQ(checked_last_checkpoint(folder_).filename(), "step-00000002");
}

TEST_F(CheckpointTest, AFailedWriteLeavesTheLastOneAsItWas) {
  const auto first = write(1);
  CheckpointContent bad;
  bad.student_config = json::object();
  bad.model = {{"complex", at::zeros({2}, at::kComplexFloat)}};
  EXPECT_THROW(write_checkpoint(folder_, 2, bad), ValueError);
  EXPECT_EQ(checked_last_checkpoint(folder_), first);
  EXPECT_EQ(list_checkpoints(folder_).size(), 1u);
  for (const auto& entry : fs::directory_iterator(folder_ / "checkpoints"))
    EXPECT_THAT(entry.path().string(), ::testing::Not(HasSubstr("-tmp-")));
}

TEST_F(CheckpointTest, PruningKeepsTheNewestTheBestAndTheLast) {
  std::vector<fs::path> all;
  for (int64_t step = 1; step <= 6; ++step) all.push_back(write(step));
  point_to(folder_, "best", all[1]);
  fs::create_directories(folder_ / "checkpoints" / "step-00000009.distil-xlstm-tmp-1-2");  // what a kill leaves
  prune_checkpoints(folder_, 2);
  EXPECT_EQ(list_checkpoints(folder_), (std::vector<fs::path>{all[1], all[4], all[5]}));
  EXPECT_FALSE(fs::exists(folder_ / "checkpoints" / "step-00000009.distil-xlstm-tmp-1-2"));
  point_to(folder_, "last", all[1]);
  prune_checkpoints(folder_, 1);
  EXPECT_EQ(list_checkpoints(folder_), (std::vector<fs::path>{all[1], all[5]}));
}

TEST_F(CheckpointTest, PointersThatLeadNowhere) {
  write(1);
  for (const char* name : {"step-00000002", "../step-00000001", "", "/etc", "step-0000000x"}) {
    std::ofstream(folder_ / "checkpoints" / "last") << name;
    EXPECT_THROW(follow_pointer(folder_, "last"), DataError) << name;
  }
  fs::remove(folder_ / "checkpoints" / "last");
  EXPECT_THROW(checked_last_checkpoint(folder_), DataError);
}

}  // namespace
}  // namespace distil_xlstm::train
