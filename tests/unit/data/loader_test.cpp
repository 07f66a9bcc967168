// Micro-batches: every row once, the same for the same seed, shared out over ranks and sources, resumed at any place.
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <map>
#include <set>
#include <sstream>

#include "base/error.h"
#include "data/loader.h"
#include "data/shard_writer.h"
#include "unit/data/data_testing.h"

namespace distil_xlstm::data {
namespace {

struct Corpus {
  int64_t context_length = 4;
  int64_t vocab_size = 1000;
  std::string fingerprint = "fp-a";
  Split split = Split::train;
  int32_t first_id = 0;
  bool synthetic = false;
  std::string chat_template;  // with it the first id does not count, as in a conversation
};

// `num_rows` rows of one document, in which row r begins with the id first_id + 4 r.
void write_rows(const fs::path& directory, int64_t num_rows, const Corpus& corpus = {}) {
  ShardSettings settings;
  settings.split = corpus.split;
  settings.context_length = corpus.context_length;
  settings.vocab_size = corpus.vocab_size;
  settings.tokenizer_fingerprint = corpus.fingerprint;
  settings.synthetic = corpus.synthetic;
  settings.source["chat_template"] = corpus.chat_template;
  settings.shard_bytes = 3 * 2 * static_cast<uint64_t>(corpus.context_length);  // three rows a shard
  ShardWriter writer(directory, settings);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < num_rows * corpus.context_length + 1; ++i) ids.push_back(corpus.first_id + static_cast<int32_t>(i));
  std::vector<uint8_t> counts(corpus.chat_template.empty() ? 0 : ids.size(), 1);
  if (!counts.empty()) counts[0] = 0;
  writer.add(ids, counts);
  writer.finish();
}

LoaderOptions options_of(const fs::path& path) {
  LoaderOptions options;
  options.sources = {{path.string(), 1.0}};
  return options;
}

// First tokens of the rows in order; rows without a target as -1.
std::vector<int32_t> rows_of(Loader& loader) {
  std::vector<int32_t> rows;
  for (Batch batch; loader.next(batch);) {
    const auto length = static_cast<size_t>(batch.context_length);
    int64_t targets = 0;
    for (const uint8_t counts : batch.mask) targets += counts;
    EXPECT_EQ(targets, batch.num_targets);
    EXPECT_EQ(batch.tokens.size(), static_cast<size_t>(batch.num_rows) * length);
    for (size_t row = 0; row < static_cast<size_t>(batch.num_rows); ++row) {
      int64_t in_row = 0;
      for (size_t i = 0; i < length; ++i) in_row += batch.mask[row * length + i];
      rows.push_back(in_row > 0 ? batch.tokens[row * length] : -1);
      EXPECT_EQ(batch.is_start[row * length], 1);
    }
  }
  return rows;
}

std::vector<int32_t> every_row(int64_t num_rows) {
  std::vector<int32_t> rows;
  for (int64_t row = 0; row < num_rows; ++row) rows.push_back(static_cast<int32_t>(4 * row));
  return rows;
}

TEST(Loader, GivesEveryRowOnceAnEpochInAnOrderOfItsOwn) {
  const Folder folder;
  write_rows(folder.path(), 50);
  for (const int64_t batch : {1, 7, 50, 64}) {
    auto options = options_of(folder.path());
    options.micro_batch_size = batch;
    options.seed = 5;
    Loader loader(options);
    EXPECT_EQ(loader.rows_per_epoch(), 50);
    EXPECT_EQ(loader.tokens_per_epoch(), 200);
    EXPECT_EQ(loader.context_length(), 4);
    auto first = rows_of(loader);
    loader.begin_epoch(1);
    EXPECT_EQ(loader.epoch(), 1);
    auto second = rows_of(loader);
    EXPECT_NE(first, second);
    Loader again(options);
    EXPECT_EQ(rows_of(again), first);
    options.seed = 6;
    Loader other(options);
    EXPECT_NE(rows_of(other), first);
    EXPECT_NE(first, every_row(50));
    std::sort(first.begin(), first.end());
    std::sort(second.begin(), second.end());
    EXPECT_EQ(first, every_row(50));
    EXPECT_EQ(second, every_row(50));
    options.shuffle = false;
    Loader in_order(options);
    EXPECT_EQ(rows_of(in_order), every_row(50));
  }
}

TEST(Loader, TargetsAreTheNextTokens) {
  const Folder folder;
  write_rows(folder.path(), 2);
  auto options = options_of(folder.path());
  options.shuffle = false;
  options.micro_batch_size = 2;
  Loader loader(options);
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  EXPECT_EQ(batch.tokens, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(batch.mask, std::vector<uint8_t>(8, 1));
  EXPECT_EQ(batch.is_start, (std::vector<uint8_t>{1, 0, 0, 0, 1, 0, 0, 0}));
  EXPECT_EQ(batch.num_targets, 8);
  EXPECT_FALSE(loader.next(batch));
}

TEST(Loader, SharesRowsOverRanksWithoutSeeingATargetTwice) {
  const Folder folder;
  write_rows(folder.path(), 23);
  for (const int world_size : {1, 2, 3, 5, 23, 24}) {
    std::vector<int32_t> all;
    std::set<int64_t> counts;
    int64_t tokens = 0;
    for (int rank = 0; rank < world_size; ++rank) {
      auto options = options_of(folder.path());
      options.ranks.rank = rank;
      options.ranks.world_size = world_size;
      options.micro_batch_size = 2;
      Loader loader(options);
      const auto rows = rows_of(loader);
      counts.insert(static_cast<int64_t>(rows.size()));
      EXPECT_EQ(loader.rows_per_epoch(), static_cast<int64_t>(rows.size()));
      tokens += loader.tokens_per_epoch();
      for (const int32_t row : rows) {
        if (row >= 0) all.push_back(row);
      }
    }
    std::sort(all.begin(), all.end());
    EXPECT_EQ(all, every_row(23));
    EXPECT_EQ(counts.size(), 1U) << "ranks must make the same number of micro-batches";
    EXPECT_EQ(tokens, 92);
  }
}

// A row keeps its identity in every order, on every rank and after a resume, and no two rows share one.
TEST(Loader, RowsHaveIdentities) {
  const Folder folder;
  write_rows(folder / "a", 23);
  write_rows(folder / "b", 9, {.first_id = 500});
  std::map<std::pair<uint64_t, uint64_t>, std::vector<int32_t>> known;
  const auto read = [&](Loader& loader) {
    size_t rows = 0;
    for (Batch batch; loader.next(batch);) {
      ASSERT_EQ(batch.row_ids.size(), static_cast<size_t>(batch.num_rows));
      for (int64_t row = 0; row < batch.num_rows; ++row, ++rows) {
        const auto begin = batch.tokens.begin() + row * batch.context_length;
        const std::vector<int32_t> tokens(begin, begin + batch.context_length);
        const auto& id = batch.row_ids[static_cast<size_t>(row)];
        EXPECT_EQ(known.try_emplace({id.shard, id.row}, tokens).first->second, tokens);
      }
    }
    EXPECT_GT(rows, 0U);
  };
  for (const auto& [seed, micro_batch_size, world_size] : {std::tuple<uint64_t, int64_t, int>{1, 4, 1}, {2, 3, 2}, {3, 1, 5}}) {
    for (int rank = 0; rank < world_size; ++rank) {
      auto options = options_of(folder / "a");
      options.sources.push_back({(folder / "b").string(), 3.0});
      options.seed = seed;
      options.micro_batch_size = micro_batch_size;
      options.ranks = {rank, world_size};
      Loader loader(options);
      read(loader);
      loader.begin_epoch(3);
      Batch first;
      loader.next(first);
      Loader resumed(options);
      resumed.restore(loader.state());
      read(resumed);
    }
  }
  EXPECT_EQ(known.size(), 32U);
}

TEST(Loader, WeightsAreSharesOfAnEpoch) {
  const Folder folder;
  write_rows(folder / "a", 30);
  write_rows(folder / "b", 10, {.first_id = 500});
  auto options = options_of(folder / "a");
  options.sources.push_back({(folder / "b").string(), 1.0});
  {
    Loader loader(options);
    const auto rows = rows_of(loader);
    EXPECT_EQ(std::set<int32_t>(rows.begin(), rows.end()).size(), 40U);  // all 1: every row once
  }
  options.sources[0].weight = 0.25;
  options.sources[1].weight = 0.75;
  Loader loader(options);
  std::map<int32_t, int> seen;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    loader.begin_epoch(epoch);
    const auto rows = rows_of(loader);
    EXPECT_EQ(rows.size(), 40U);
    EXPECT_EQ(std::count_if(rows.begin(), rows.end(), [](int32_t row) { return row >= 500; }), 30);
    for (const int32_t row : rows) ++seen[row];
  }
  // Ten rows an epoch of thirty: three epochs see each once; thirty of ten: nine times.
  EXPECT_EQ(seen.size(), 40U);
  for (const auto& [row, count] : seen) EXPECT_EQ(count, row >= 500 ? 9 : 1) << row;
}

TEST(Loader, GoesOnWhereTheStateSays) {
  const Folder folder;
  write_rows(folder.path(), 17);
  auto options = options_of(folder.path());
  options.micro_batch_size = 3;
  options.ranks.world_size = 2;
  options.ranks.rank = 1;
  for (int stop = 0; stop <= 3; ++stop) {
    Loader first(options);
    first.begin_epoch(4);
    Batch batch;
    for (int i = 0; i < stop; ++i) first.next(batch);
    const json state = json::parse(first.state().dump());
    const auto wanted = rows_of(first);
    Loader second(options);
    second.restore(state);
    EXPECT_EQ(second.epoch(), 4);
    EXPECT_EQ(rows_of(second), wanted);
  }
}

TEST(Loader, RefusesTheStateOfOtherData) {
  const Folder folder;
  write_rows(folder / "a", 5);
  write_rows(folder / "b", 5, {.first_id = 1});
  Loader a(options_of(folder / "a"));
  Loader b(options_of(folder / "b"));
  expect_error<DataError>([&] { b.restore(a.state()); }, {"other shards"});
  auto options = options_of(folder / "a");
  options.seed = 1;
  Loader seeded(options);
  expect_error<DataError>([&] { seeded.restore(a.state()); }, {"seed 0", "1"});
  options.seed = 0;
  options.ranks.world_size = 2;
  Loader wide(options);
  expect_error<DataError>([&] { wide.restore(a.state()); }, {"rank 0 of 1", "rank 0 of 2"});
  json state = a.state();
  state["position"] = 6;
  expect_error<DataError>([&] { a.restore(state); }, {"row 6", "5 rows"});
  state.erase("epoch");
  expect_error<DataError>([&] { a.restore(state); }, {"'epoch'"});
}

TEST(Loader, TakesTheSplitThatIsAskedFor) {
  const Folder folder;
  write_rows(folder.path(), 5);
  write_rows(folder.path(), 2, {.split = Split::validation, .first_id = 100});
  auto options = options_of(folder.path());
  EXPECT_EQ(Loader(options).rows_per_epoch(), 5);
  options.split = "validation";
  EXPECT_EQ(Loader(options).rows_per_epoch(), 2);
  options.split = "any";
  EXPECT_EQ(Loader(options).rows_per_epoch(), 7);
  options.split = "test";
  expect_error<ConfigError>([&] { Loader loader(options); }, {"\"test\"", "validation"});
  const Folder train_only;
  write_rows(train_only.path(), 1);
  auto none = options_of(train_only.path());
  none.split = "validation";
  expect_error<DataError>([&] { Loader loader(none); }, {"validation split", "--validation-fraction"});
}

TEST(Loader, RefusesMismatchesAndNamesBothSides) {
  const Folder folder;
  write_rows(folder / "a", 5);
  auto options = options_of(folder / "a");
  options.tokenizer_fingerprint = "fp-model";
  expect_error<DataError>([&] { Loader loader(options); }, {"fp-a", "fp-model", "prepare the text again"});
  options.tokenizer_fingerprint = "fp-a";
  options.vocab_size = 20;  // rows of the model; the shards hold ids up to 20
  expect_error<DataError>([&] { Loader loader(options); }, {"holds id 20", "20 rows"});
  options.vocab_size = 1000;
  options.context_length = 8;
  expect_error<DataError>([&] { Loader loader(options); }, {"context_length 4", "8"});
  options.context_length = 4;
  EXPECT_EQ(Loader(options).rows_per_epoch(), 5);

  write_rows(folder / "b", 5, {.fingerprint = "fp-b"});
  write_rows(folder / "c", 5, {.context_length = 3});
  auto mixed = options_of(folder / "a");
  mixed.sources.push_back({(folder / "b").string(), 1.0});
  expect_error<DataError>([&] { Loader loader(mixed); }, {"fp-a", "fp-b"});
  mixed.sources[1].path = (folder / "c").string();
  expect_error<DataError>([&] { Loader loader(mixed); }, {"context_length 3", "4"});
  mixed.sources[1] = {(folder / "a").string(), -1.0};
  expect_error<ConfigError>([&] { Loader loader(mixed); }, {"weight -1"});

  expect_error<ConfigError>([] { Loader loader(LoaderOptions{}); }, {"data.sources"});
  auto wrong = options_of(folder / "a");
  wrong.micro_batch_size = 0;
  expect_error<ConfigError>([&] { Loader loader(wrong); }, {"micro_batch_size = 0"});
  wrong.micro_batch_size = 1;
  wrong.ranks.rank = 1;
  expect_error<ConfigError>([&] { Loader loader(wrong); }, {"rank 1 of 1"});
  expect_error<IoError>([&] { Loader loader(options_of(folder / "nowhere")); }, {"nowhere"});
}

TEST(Loader, WarnsOnceOfDocumentsThatBeginOtherwise) {
  const Folder folder;
  write_rows(folder.path(), 10);  // several shards, whose documents begin without BOS
  auto options = options_of(folder.path());
  const auto warnings = [&](std::optional<int32_t> begin_id) {
    std::ostringstream log;
    const auto previous = spdlog::default_logger();
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
    options.begin_id = begin_id;
    const Loader loader(options);
    spdlog::set_default_logger(previous);
    return log.str();
  };
  EXPECT_EQ(warnings(std::nullopt), "");
  EXPECT_EQ(warnings(-1), "");
  const std::string other = warnings(1);
  EXPECT_NE(other.find("begin with id -1, but the tokenizer puts id 1 before a text"), std::string::npos) << other;
  EXPECT_EQ(other.find("warning"), other.rfind("warning"));
}

TEST(Loader, LeavesOutRowsWithoutTargetsAndTellsSyntheticText) {
  const Folder folder;
  ShardSettings settings;
  settings.context_length = 2;
  settings.vocab_size = 100;
  settings.synthetic = true;
  ShardWriter writer(folder.path(), settings);
  writer.add(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7}, std::vector<uint8_t>{0, 0, 0, 0, 0, 1, 1});
  writer.finish();
  Loader loader(options_of(folder.path()));
  EXPECT_TRUE(loader.is_synthetic());
  EXPECT_EQ(loader.rows_per_epoch(), 1);
  EXPECT_EQ(loader.tokens_per_epoch(), 2);
  EXPECT_EQ(rows_of(loader), std::vector<int32_t>{5});
}

TEST(Loader, SaysWhyConversationsHoldNoTarget) {
  const Folder folder;
  ShardSettings settings;
  settings.context_length = 4;
  settings.vocab_size = 10;
  ShardWriter writer(folder.path(), settings);
  const std::vector<int32_t> ids = {1, 2, 3, 4, 5};
  writer.add(ids, std::vector<uint8_t>(ids.size(), 0));
  writer.finish();
  expect_error<DataError>([&] { Loader loader(options_of(folder.path())); }, {"not a single target", "no answer that counts", "assistant"});
}

TEST(Loader, TakesConversationsOfTheModelsOwnTemplateAlone) {
  const Folder folder;
  write_rows(folder / "chat", 2, {.chat_template = "template-a"});
  write_rows(folder / "text", 2);
  auto options = options_of(folder / "chat");
  EXPECT_EQ(Loader(options).rows_per_epoch(), 2);  // not asked
  for (const char* own : {"template-a", ""}) {     // the same, or none: then it warns
    options.chat_template_fingerprint = own;
    EXPECT_EQ(Loader(options).rows_per_epoch(), 2);
  }
  options.chat_template_fingerprint = "template-b";
  expect_error<DataError>([&] { Loader loader(options); }, {"chat/train-00000.dxts", "template-a", "template-b", "prepare the text again"});
  options.sources = {{(folder / "text").string(), 1.0}};  // plain text fits any
  EXPECT_EQ(Loader(options).rows_per_epoch(), 2);
}

}  // namespace
}  // namespace distil_xlstm::data
