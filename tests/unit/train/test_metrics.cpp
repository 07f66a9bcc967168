#include <cstring>

#include "base/error.h"
#include "small_run.h"
#include "train/metrics.h"

namespace distil_xlstm::train {
namespace {

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
    MetricsLog log(folder_, position);
    log.write("train", 2, {{"loss", 0.25}});
    EXPECT_EQ(log.position().events_name, position.events_name);
  }
  const auto records = read_metrics(folder_);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1]["loss"], 0.25);
  EXPECT_EQ(messages_of(folder_ / position.events_name).size(), 3u);
}

TEST_F(MetricsTest, RefusesPositionsThatMakeNoSense) {
  EXPECT_THROW(MetricsPosition::from_json({{"metrics_bytes", -1}, {"events_name", "e"}, {"events_bytes", 0}}, "t"), DataError);
  EXPECT_THROW(MetricsPosition::from_json({{"metrics_bytes", 1}, {"events_name", "../e"}, {"events_bytes", 0}}, "t"), DataError);
  EXPECT_THROW(MetricsPosition::from_json({{"metrics_bytes", 1}}, "t"), DataError);
}

}  // namespace
}  // namespace distil_xlstm::train
