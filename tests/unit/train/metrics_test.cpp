#include <cstring>

#include "base/error.h"
#include "base/log.h"
#include "io/checksums.h"
#include "small_run.h"
#include "train/metrics.h"

namespace distil_xlstm::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using MetricsTest = RunTest;

TEST(Crc32c, KnownValues) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(masked_crc32c("123456789"), ((0xe3069283u >> 15) | (0xe3069283u << 17)) + 0xa282ead8u);
}

// Takes the records of an event file apart, checking both checksums of each.
std::vector<std::string> messages_of(const fs::path& path) {
  const auto bytes = read_file(path);
  std::vector<std::string> messages;
  size_t at = 0;
  while (at < bytes.size()) {
    uint64_t length = 0;
    uint32_t length_crc = 0, message_crc = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&length_crc, bytes.data() + at + 8, 4);
    EXPECT_EQ(length_crc, masked_crc32c(bytes.substr(at, 8)));
    messages.push_back(bytes.substr(at + 12, length));
    std::memcpy(&message_crc, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(message_crc, masked_crc32c(messages.back()));
    at += 16 + length;
  }
  EXPECT_EQ(at, bytes.size());
  return messages;
}

TEST_F(MetricsTest, WritesBothFiles) {
  MetricsLog log(folder_);
  log.write("train", 3, {{"loss", 1.5}, {"alignment_loss", nullptr}, {"kd_loss", std::nan("")}, {"epoch", 2}});
  const auto records = read_metrics(folder_);
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0],
            (json{{"kind", "train"}, {"step", 3}, {"loss", 1.5}, {"alignment_loss", nullptr}, {"kd_loss", nullptr}, {"epoch", 2}}));

  const auto messages = messages_of(folder_ / log.position().events_name);
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_THAT(messages[0], ::testing::HasSubstr("brain.Event:2"));
  // Wall time (9 bytes), step 3, then the summary with one value: tag "train/loss", 1.5F = 0x3fc00000.
  EXPECT_EQ(messages[1].substr(9, 2), std::string("\x10\x03", 2));
  EXPECT_THAT(messages[1], ::testing::HasSubstr(std::string("\x0a\x0atrain/loss\x15\x00\x00\xc0\x3f", 17)));
  EXPECT_THAT(messages[1], ::testing::HasSubstr("train/epoch"));
  EXPECT_THAT(messages[1], ::testing::Not(::testing::HasSubstr("kd_loss")));
}

TEST_F(MetricsTest, ResumingCutsWhatCameAfterTheCheckpoint) {
  MetricsPosition position;
  {
    MetricsLog log(folder_);
    log.write("train", 1, {{"loss", 1.0}});
    position = MetricsPosition::from_json(log.position().to_json(), "test");
    log.write("train", 2, {{"loss", 0.5}});
  }
  {
    MetricsLog log(folder_, position, 1);
    log.write("train", 2, {{"loss", 0.25}});
    EXPECT_EQ(log.position().events_name, position.events_name);
  }
  const auto records = read_metrics(folder_);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1]["loss"], 0.25);
  EXPECT_EQ(messages_of(folder_ / position.events_name).size(), 3u);
}

class MendedMetricsTest : public RunTest {
 protected:
  // Steps 1 to 4 with a skipped one; the checkpoint was made at step 3.
  void SetUp() override {
    RunTest::SetUp();
    metrics_ = folder_ / "metrics.jsonl";
    MetricsLog log(folder_);
    for (const int step : {1, 2}) log.write("train", step, {{"loss", 1.0 / step}});
    log.write("skipped", 2, {{"in_a_row", 1}});
    log.write("skipped", 2, {{"in_a_row", 2}});
    log.write("train", 3, {{"loss", 0.3}});
    log.write("validation", 3, {{"ce_loss", 0.4}});
    position_ = MetricsPosition::from_json(log.position().to_json(), "test");
    log.write("train", 4, {{"loss", 0.25}});
    whole_ = read_file(metrics_);
  }

  // What is left and said when training goes on.
  std::string resume() {
    ::testing::internal::CaptureStderr();
    init_logging();
    MetricsLog log(folder_, position_, 3);
    log.write("train", 4, {{"loss", 0.5}});
    EXPECT_EQ(log.position().metrics_bytes, static_cast<int64_t>(fs::file_size(metrics_)));
    EXPECT_EQ(log.position().metrics_xxh3, io::file_record(metrics_)["xxh3"]);
    EXPECT_EQ(log.position().metrics_records, static_cast<int64_t>(read_metrics(folder_).size()));
    return ::testing::internal::GetCapturedStderr();
  }

  std::vector<int> steps() {
    std::vector<int> steps;
    for (const auto& record : read_metrics(folder_)) steps.push_back(record["step"]);
    return steps;
  }

  fs::path metrics_;
  MetricsPosition position_;
  std::string whole_;
};

TEST_F(MendedMetricsTest, AWholeFileIsCutBack) {
  EXPECT_EQ(resume(), "");
  EXPECT_EQ(steps(), (std::vector<int>{1, 2, 2, 2, 3, 3, 4}));
  EXPECT_EQ(position_.metrics_records, 6);
}

TEST_F(MendedMetricsTest, ACutFileKeepsItsWholeRecords) {
  fs::resize_file(metrics_, whole_.find("{\"kind\":\"skipped\"") + 5);
  EXPECT_THAT(resume(),
              AllOf(HasSubstr("metrics.jsonl: is not what it was at the checkpoint of step 3"), HasSubstr("2 of 6 records are kept"),
                    HasSubstr("the file as it was is"), HasSubstr("metrics.jsonl.damaged")));
  EXPECT_EQ(steps(), (std::vector<int>{1, 2, 4}));
}

TEST_F(MendedMetricsTest, AGarbledFileLosesTheGarbledRecords) {
  std::string garbled = whole_;
  garbled[garbled.find("\"step\":2")] = '\0';
  garbled.replace(garbled.rfind("\"step\":3"), 8, "\"step\":x");
  write_file_atomic(metrics_, garbled);
  EXPECT_THAT(resume(), HasSubstr("4 of 6 records are kept"));
  EXPECT_EQ(steps(), (std::vector<int>{1, 2, 2, 3, 4}));
  EXPECT_EQ(read_file(metrics_.string() + ".damaged"), garbled);
}

TEST_F(MendedMetricsTest, EveryDamagedFileIsKept) {
  for (const char* name : {".damaged", ".damaged-2", ".damaged-3"}) {
    const std::string damaged = std::string("damage before ") + name + "\n";
    write_file_atomic(metrics_, damaged);
    EXPECT_THAT(resume(), HasSubstr(std::string("metrics.jsonl") + name + " now"));
    EXPECT_EQ(read_file(metrics_.string() + name), damaged);
  }
  EXPECT_EQ(read_file(metrics_.string() + ".damaged"), "damage before .damaged\n");
}

TEST_F(MendedMetricsTest, AChangedLengthLeavesNoStepTwice) {
  write_file_atomic(metrics_, whole_.substr(0, whole_.find('\n') + 1) + whole_);  // a line twice: places no longer fit
  EXPECT_THAT(resume(), HasSubstr("6 of 6 records are kept"));
  EXPECT_EQ(steps(), (std::vector<int>{1, 2, 2, 2, 3, 3, 4}));
}

TEST_F(MendedMetricsTest, AMissingFileIsBegunAgain) {
  fs::remove(metrics_);
  EXPECT_THAT(resume(), HasSubstr("0 of 6 records are kept"));
  EXPECT_EQ(steps(), std::vector<int>{4});
}

TEST_F(MendedMetricsTest, PositionsOfOlderVersionsKnowTheSizeAlone) {
  position_.metrics_xxh3 = "";
  position_.metrics_records = -1;
  EXPECT_EQ(resume(), "");
  EXPECT_EQ(steps(), (std::vector<int>{1, 2, 2, 2, 3, 3, 4}));
  fs::resize_file(metrics_, 70);
  EXPECT_THAT(resume(), HasSubstr("records are kept"));
}

TEST_F(MendedMetricsTest, AShorterEventFileIsLeftAsItIs) {
  const fs::path events = folder_ / position_.events_name;
  fs::resize_file(events, 10);
  EXPECT_THAT(resume(), HasSubstr("10 bytes, the checkpoint knew"));
  EXPECT_TRUE(fs::exists(events));
}

TEST_F(MetricsTest, ARunThatVanishesIsAnError) {
  const fs::path run = folder_ / "run";
  fs::create_directories(run);
  MetricsLog log(run);
  log.write("train", 1, {{"loss", 1.0}});
  fs::rename(run, folder_ / "renamed");
  EXPECT_THROW(log.write("train", 2, {{"loss", 1.0}}), IoError);
  fs::create_directories(run);
  try {
    log.check_in_place();
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("the run's directory was removed, renamed or replaced while it was trained"));
  }
  EXPECT_TRUE(fs::is_empty(run));
}

TEST_F(MetricsTest, ARemovedFileIsBegunAgain) {
  MetricsLog log(folder_);
  log.write("train", 1, {{"loss", 1.0}});
  fs::remove(folder_ / "metrics.jsonl");
  ::testing::internal::CaptureStderr();
  init_logging();
  log.write("train", 2, {{"loss", 0.5}});
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("was removed or replaced: its records up to here are lost"));
  EXPECT_EQ(records_of(folder_, "train").size(), 1u);
  EXPECT_EQ(log.position().metrics_records, 1);
}

TEST_F(MetricsTest, RefusesPositionsThatMakeNoSense) {
  EXPECT_THROW(MetricsPosition::from_json({{"metrics_bytes", -1}, {"events_name", "e"}, {"events_bytes", 0}}, "t"), DataError);
  EXPECT_THROW(MetricsPosition::from_json({{"metrics_bytes", 1}, {"events_name", "../e"}, {"events_bytes", 0}}, "t"), DataError);
  EXPECT_THROW(MetricsPosition::from_json({{"metrics_bytes", 1}}, "t"), DataError);
}

}  // namespace
}  // namespace distil_xlstm::train
