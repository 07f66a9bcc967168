#include "eval/unigram.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "data/shard_writer.h"
#include "unit/data/data_testing.h"

namespace distil_xlstm::eval {
namespace {

using data::Folder;

data::ShardSettings settings(data::Split split) {
  data::ShardSettings settings;
  settings.split = split;
  settings.context_length = 4;
  settings.vocab_size = 5;
  settings.tokenizer_fingerprint = "test";
  settings.shard_bytes = 16;  // several shards
  return settings;
}

void write(const fs::path& folder, data::Split split, const std::vector<int32_t>& ids, const std::vector<uint8_t>& counts = {}) {
  data::ShardWriter writer(folder, settings(split));
  writer.add(ids, counts);
  writer.finish();
}

TEST(Unigram, CountsWhatTheTrainingShardsCountOnce) {
  const Folder folder;
  const std::vector<int32_t> ids = {0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 1, 2, 3};
  write(folder.path(), data::Split::train, ids, {1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1});  // one 3 is left out
  write(folder.path(), data::Split::validation, {4, 4, 4, 4});
  const Unigram unigram({folder.path().string()});
  // Counts 0, 3, 4, 4, 0 of 11 (the first id is no target), one more for each of 5 ids.
  double nats = 0;
  for (const std::vector<int32_t>& targets : {std::vector<int32_t>{1, 2}, {4}, {}}) unigram.add_nats(targets, nats);
  EXPECT_NEAR(nats, -(std::log(4.0 / 16) + std::log(5.0 / 16) + std::log(1.0 / 16)), 1e-12);
}

TEST(Unigram, RefusesWhatItCannotCount) {
  const Folder folder;
  write(folder.path(), data::Split::validation, {1, 2});
  EXPECT_THROW(Unigram({folder.path().string()}), DataError) << "no training shard";
  write(folder.path(), data::Split::train, {1, 2});
  double nats = 0;
  EXPECT_THROW(Unigram({folder.path().string()}).add_nats(std::vector<int32_t>{1, 5}, nats), ValueError);
}

}  // namespace
}  // namespace distil_xlstm::eval
