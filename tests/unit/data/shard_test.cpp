// The writer and the reader of token shards.
#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "base/hash.h"
#include "base/random.h"
#include "data/shard_writer.h"
#include "unit/data/data_testing.h"

namespace distil_xlstm::data {
namespace {

ShardSettings settings_of(int64_t context_length, int64_t vocab_size, uint64_t rows_per_shard) {
  ShardSettings settings;
  settings.context_length = context_length;
  settings.vocab_size = vocab_size;
  settings.tokenizer_fingerprint = "0123456789abcdef";
  settings.shard_bytes = rows_per_shard * static_cast<uint64_t>(context_length) * (vocab_size <= 65536 ? 2 : 4);
  settings.source = {{"inputs", {"test"}}};
  return settings;
}

struct Piece {
  std::vector<int32_t> ids;
  std::vector<uint8_t> counts;
};

std::vector<Piece> random_documents(Random& random, int64_t vocab_size, bool masked) {
  std::vector<Piece> documents(1 + random.below(20));
  for (auto& document : documents) {
    document.ids.resize(1 + random.below(random.below(4) == 0 ? 60 : 5));
    for (auto& id : document.ids) id = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab_size)));
    if (!masked || random.below(3) == 0) continue;
    for (size_t i = 0; i < document.ids.size(); ++i) document.counts.push_back(static_cast<uint8_t>(random.below(2)));
  }
  return documents;
}

TEST(ShardWriter, PadsALongRowInParts) {
  const Folder folder;
  ShardWriter writer(folder.path(), settings_of(3'000'001, 65537, 1));
  writer.add(std::vector<int32_t>{7});
  writer.finish();
  const TokenShard shard(folder / "train-00000.dxts");  // checks the padding and the tokens' checksum
  EXPECT_EQ(shard.num_rows(), 1);
  EXPECT_EQ(shard.header().tokens.size, 3'000'002U * 4);
}

TEST(ShardWriter, KeepsEveryTokenBorderAndMaskBitForAnyShape) {
  Random random(11);
  for (int round = 0; round < 300; ++round) {
    const Folder folder;
    const int64_t vocab_size = random.below(2) == 0 ? 65536 : 65537;
    const auto context_length = static_cast<int64_t>(1 + random.below(9));
    const auto documents = random_documents(random, vocab_size, random.below(2) == 0);
    ShardWriter writer(folder.path(), settings_of(context_length, vocab_size, 1 + random.below(6)));
    Stream wanted;
    for (const auto& document : documents) {
      wanted.borders.push_back(wanted.ids.size());
      wanted.ids.insert(wanted.ids.end(), document.ids.begin(), document.ids.end());
      for (size_t i = 0; i < document.ids.size(); ++i) wanted.counts.push_back(document.counts.empty() ? 1 : document.counts[i]);
      // In one go, or in two parts.
      const size_t cut = random.below(document.ids.size() + 1);
      const std::span<const int32_t> ids(document.ids);
      const std::span<const uint8_t> counts(document.counts);
      const size_t mask_cut = counts.empty() ? 0 : cut;
      writer.add(ids.first(cut), counts.first(mask_cut));
      writer.add(ids.subspan(cut), counts.subspan(mask_cut), cut == 0);
    }
    writer.finish();
    const Stream got = read_stream(find_shards(folder.path().string()));
    ASSERT_EQ(got.ids, wanted.ids);
    ASSERT_EQ(got.borders, wanted.borders);
    ASSERT_EQ(got.counts, wanted.counts);
    int64_t tokens = 0;
    int64_t num_documents = 0;
    for (const auto& shard : writer.shards()) {
      tokens += shard.num_tokens;
      num_documents += shard.num_documents;
    }
    ASSERT_EQ(tokens, static_cast<int64_t>(wanted.ids.size()));
    ASSERT_EQ(num_documents, static_cast<int64_t>(documents.size()));
    ASSERT_EQ(writer.num_tokens(), tokens);
    ASSERT_EQ(writer.num_documents(), num_documents);
  }
}

TEST(ShardWriter, GoesOnAfterAnInterruptionWithTheSameBytes) {
  Random random(5);
  for (int round = 0; round < 60; ++round) {
    const Folder whole;
    const Folder broken;
    const auto documents = random_documents(random, 300, true);
    const auto settings = settings_of(3, 300, 2);
    const auto feed = [&](ShardWriter& writer, size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) writer.add(documents[i].ids, documents[i].counts);
    };
    ShardWriter once(whole.path(), settings);
    feed(once, 0, documents.size());
    once.finish();
    const size_t cut = random.below(documents.size() + 1);
    const size_t lost = cut + random.below(documents.size() - cut + 1);
    json state;
    {
      ShardWriter first(broken.path(), settings);
      feed(first, 0, cut);
      state = json::from_cbor(json::to_cbor(first.save()));
      feed(first, cut, lost);  // written after the save: to be made again
      if (random.below(2) == 0) first.finish();
    }
    ShardWriter second(broken.path(), settings);
    second.restore(state);
    feed(second, cut, documents.size());
    second.finish();
    std::vector<std::string> names[2];
    for (const auto& entry : fs::directory_iterator(whole.path())) names[0].push_back(entry.path().filename());
    for (const auto& entry : fs::directory_iterator(broken.path())) names[1].push_back(entry.path().filename());
    std::sort(names[0].begin(), names[0].end());
    std::sort(names[1].begin(), names[1].end());
    ASSERT_EQ(names[0], names[1]);
    for (const auto& name : names[0]) ASSERT_EQ(read_file(whole / name), read_file(broken / name)) << name;
  }
}

TEST(ShardWriter, RefusesStatesThatDoNotFit) {
  const Folder folder;
  const auto settings = settings_of(3, 300, 1000);
  json state;
  {
    ShardWriter writer(folder.path(), settings);
    writer.add(std::vector<int32_t>{7, 8, 9}, std::vector<uint8_t>{0, 1, 1});
    state = writer.save();
  }
  const auto refused = [&](const char* key, const json& value) {
    json other = state;
    other["open"][key] = value;
    expect_error<DataError>([&] { ShardWriter(folder.path(), settings).restore(other); }, {"damaged: begin again with --overwrite"});
  };
  refused("num_stored", 0);
  refused("num_stored", uint64_t{1} << 63);  // twice that is 0 bytes
  refused("num_stored", 20);
  refused("borders", json::array({0}));
  refused("mask_bits", "text");
  refused("mask_bits", json::binary({1, 2}));
  EXPECT_NO_THROW(ShardWriter(folder.path(), settings).restore(state));
}

TEST(ShardWriter, WritesTheDocumentedBytes) {
  const Folder folder;
  auto settings = settings_of(2, 300, 100);
  settings.bos_id = 7;
  settings.document_end_id = 9;
  settings.synthetic = true;
  settings.source = json::object();
  ShardWriter writer(folder.path(), settings);
  writer.add(std::vector<int32_t>{7, 258, 9}, std::vector<uint8_t>{0, 1, 1});
  writer.add(std::vector<int32_t>{7});
  writer.finish();
  const std::string bytes = read_file(folder / "train-00000.dxts");
  const auto word = [&](size_t at, size_t size) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, size);
    return value;
  };
  EXPECT_EQ(bytes.substr(0, 8), "DXTOKENS");
  EXPECT_EQ(word(8, 4), 1U);     // version
  EXPECT_EQ(word(12, 4), 256U);  // header size
  EXPECT_EQ(word(16, 4), 2U);    // bytes an id
  EXPECT_EQ(word(20, 4), 3U);    // synthetic, masked
  EXPECT_EQ(word(24, 8), 2U);    // context length
  EXPECT_EQ(word(32, 8), 300U);
  EXPECT_EQ(word(40, 8), 2U);  // rows: ids 0 1 2 and 2 3 and padding
  EXPECT_EQ(word(48, 8), 4U);
  EXPECT_EQ(word(56, 8), 2U);
  EXPECT_EQ(word(64, 4), 7U);
  EXPECT_EQ(word(68, 4), 9U);
  EXPECT_EQ(bytes.substr(80, 17), std::string("0123456789abcdef") + '\0');
  EXPECT_EQ(word(144, 8), 256U);  // metadata "{}"
  EXPECT_EQ(bytes.substr(256, 2), "{}");
  EXPECT_EQ(word(168, 8), 320U);
  EXPECT_EQ(word(176, 8), 10U);
  EXPECT_EQ(bytes.substr(320, 10), std::string("\x07\0\x02\x01\x09\0\x07\0\0\0", 10));
  EXPECT_EQ(word(192, 8), 384U);
  EXPECT_EQ(word(384, 8), 0U);
  EXPECT_EQ(word(392, 8), 3U);
  EXPECT_EQ(word(216, 8), 448U);
  EXPECT_EQ(word(224, 8), 1U);
  EXPECT_EQ(bytes.size(), 449U);
  EXPECT_EQ(word(448, 1), 0b01110U);
  EXPECT_EQ(word(248, 8), xxh3_64(std::as_bytes(std::span(bytes.data(), 248))));
}

TEST(ShardWriter, RefusesWrongInput) {
  const Folder folder;
  expect_error<ConfigError>([&] { ShardWriter(folder.path(), settings_of(0, 10, 1)); }, {"context_length = 0"});
  expect_error<ConfigError>([&] { ShardWriter(folder.path(), settings_of(4, 0, 1)); }, {"vocab_size = 0"});
  ShardWriter writer(folder.path(), settings_of(4, 10, 1));
  expect_error<ValueError>([&] { writer.add(std::vector<int32_t>{1, 10}); }, {"id 10", "vocabulary of 10"});
  expect_error<ValueError>([&] { writer.add(std::vector<int32_t>{-1}); }, {"id -1"});
  expect_error<ValueError>([&] { writer.add(std::vector<int32_t>{1, 2}, std::vector<uint8_t>{1}); }, {"2 ids", "1 mask"});
  writer.finish();
  expect_error<ValueError>([&] { writer.add(std::vector<int32_t>{1}); }, {"after finish"});
  EXPECT_TRUE(writer.shards().empty());  // nothing was added, so nothing is written
}

// Rows 0 1 2 | 2 3 4 | 4 5 6 | 6 7 8 of context 2; documents begin at 0, 3, 4; the last two ids of row 3 are padding.
TEST(TokenShard, CutsRowsAsTheIsolationSays) {
  const Folder folder;
  ShardWriter writer(folder.path(), settings_of(2, 300, 100));
  writer.add(std::vector<int32_t>{10, 11, 12});
  writer.add(std::vector<int32_t>{13});
  writer.add(std::vector<int32_t>{14, 15, 16}, std::vector<uint8_t>{1, 0, 1});
  writer.finish();
  const TokenShard shard(folder / "train-00000.dxts");
  ASSERT_EQ(shard.num_rows(), 3);
  struct Row {
    std::vector<int32_t> tokens, targets;
    std::vector<uint8_t> mask, is_start;
    bool operator==(const Row&) const = default;
  };
  const auto read = [&](int64_t number, DocumentIsolation isolation) {
    Row row{std::vector<int32_t>(2), std::vector<int32_t>(2), std::vector<uint8_t>(2), std::vector<uint8_t>(2)};
    const int64_t count = shard.read_row(number, isolation, row.tokens, row.targets, row.mask, row.is_start);
    EXPECT_EQ(count, row.mask[0] + row.mask[1]);
    EXPECT_EQ(count, shard.count_targets(number, isolation));
    return row;
  };
  EXPECT_EQ(read(0, DocumentIsolation::full), (Row{{10, 11}, {11, 12}, {1, 1}, {1, 0}}));
  EXPECT_EQ(read(1, DocumentIsolation::full), (Row{{12, 13}, {0, 0}, {0, 0}, {1, 1}}));
  EXPECT_EQ(read(1, DocumentIsolation::loss), (Row{{12, 13}, {0, 0}, {0, 0}, {1, 0}}));
  EXPECT_EQ(read(1, DocumentIsolation::none), (Row{{12, 13}, {13, 14}, {1, 1}, {1, 0}}));
  EXPECT_EQ(read(2, DocumentIsolation::full), (Row{{14, 15}, {0, 16}, {0, 1}, {1, 0}}));
}

TEST(TokenShard, DetectsEveryFlippedByteAndEveryCut) {
  const Folder folder;
  ShardWriter writer(folder.path(), settings_of(5, 300, 100));
  writer.add(std::vector<int32_t>{1, 2, 3, 4}, std::vector<uint8_t>{0, 1, 0, 1});
  writer.add(std::vector<int32_t>{5, 6, 7, 299});
  writer.finish();
  const std::string good = read_file(folder / "train-00000.dxts");
  const fs::path bad = folder / "bad.dxts";
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bytes = good;
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i % 8)));
    std::ofstream(bad, std::ios::binary) << bytes;
    EXPECT_THROW(TokenShard{bad}, DataError) << "byte " << i;
  }
  for (size_t size = 0; size < good.size(); size += 7) {
    std::ofstream(bad, std::ios::binary) << good.substr(0, size);
    EXPECT_THROW(TokenShard{bad}, Error) << "size " << size;
  }
  std::ofstream(bad, std::ios::binary) << good << 'x';
  EXPECT_THROW(TokenShard{bad}, DataError);
}

// Headers that lie, with a right checksum: either refused, or everything that can be read stays in the file.
TEST(TokenShard, NeverTrustsALength) {
  const Folder folder;
  ShardWriter writer(folder.path(), settings_of(5, 300, 100));
  writer.add(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8}, std::vector<uint8_t>{0, 1, 0, 1, 1, 1, 1, 1});
  writer.add(std::vector<int32_t>{5, 6, 7, 299});
  writer.finish();
  const std::string good = read_file(folder / "train-00000.dxts");
  const fs::path bad = folder / "bad.dxts";
  Random random(3);
  const uint64_t extremes[] = {0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, 1ULL << 48, 1ULL << 62, 1ULL << 63, ~0ULL};
  int accepted = 0;
  for (int round = 0; round < 15000; ++round) {
    std::string bytes = good;
    for (uint64_t change = 0; change <= random.below(3); ++change) {
      const size_t size = random.below(2) == 0 ? 4 : 8;
      const size_t at = 8 + random.below((248 - 8) / size) * size;
      uint64_t value = 0;
      std::memcpy(&value, bytes.data() + at, size);
      value = random.below(2) == 0 ? extremes[random.below(std::size(extremes))] : value + random.below(129) - 64;
      if (at + size <= 248) std::memcpy(bytes.data() + at, &value, size);
    }
    const uint64_t checksum = xxh3_64(std::as_bytes(std::span(bytes.data(), 248)));
    std::memcpy(bytes.data() + 248, &checksum, sizeof checksum);
    std::ofstream(bad, std::ios::binary) << bytes;
    try {
      const TokenShard shard(bad, random.below(2) == 0);
      ++accepted;
      const auto length = static_cast<size_t>(shard.context_length());
      std::vector<int32_t> tokens(length), targets(length);
      std::vector<uint8_t> mask(length), is_start(length);
      for (int64_t row = 0; row < shard.num_rows(); ++row) {
        const int64_t count = shard.read_row(row, DocumentIsolation::full, tokens, targets, mask, is_start);
        EXPECT_EQ(count, shard.count_targets(row, DocumentIsolation::full));
      }
    } catch (const DataError&) {
    }
  }
  EXPECT_GT(accepted, 0);  // changes of BOS and the like are believable
}

TEST(TokenShard, NamesWhatIsWrong) {
  const Folder folder;
  expect_error<DataError>([&] { TokenShard shard(folder.write("a.dxts", "short")); }, {"a.dxts", "5 bytes", "256"});
  expect_error<DataError>([&] { TokenShard shard(folder.write("b.dxts", std::string(300, 'x'))); }, {"not a token shard"});
  expect_error<IoError>([&] { TokenShard shard(folder / "none.dxts"); }, {"none.dxts"});
  expect_error<DataError>([&] { TokenShard shard(folder.write("empty.dxts", "")); }, {"empty.dxts"});
  fs::create_directories(folder / "void");
  folder.write("void/readme.txt", "x");
  expect_error<IoError>([&] { find_shards((folder / "void").string()); }, {"no token shards", "prepare"});
  folder.write("unfinished/prepare.journal", "x");
  expect_error<DataError>([&] { find_shards((folder / "unfinished").string()); }, {"unfinished", "run the same command again"});
}

}  // namespace
}  // namespace distil_xlstm::data
