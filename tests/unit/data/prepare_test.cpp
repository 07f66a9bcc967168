// The whole way from text to shards: the same bytes whatever was interrupted, and what the index says.
#include <gtest/gtest.h>

#include <csignal>
#include <map>

#include "base/error.h"
#include "base/output_lock.h"
#include "base/random.h"
#include "base/signals.h"
#include "data/prepare.h"
#include "data/prepare_journal.h"
#include "unit/data/data_testing.h"

namespace distil_xlstm::data {
namespace {

PrepareOptions options_of(const fs::path& input, const fs::path& output) {
  PrepareOptions options;
  options.reader.inputs = {input.string()};
  options.output = output;
  options.model = "bytes";
  options.context_length = 16;
  options.document_end = "eos";
  options.validation_fraction = 0.2;
  options.show_progress = false;
  options.shard_bytes = 40 * 2 * 16;
  return options;
}

std::vector<std::string> write_corpus(const Folder& folder, size_t num_documents) {
  Random random(21);
  std::vector<std::string> texts;
  std::string lines;
  for (size_t i = 0; i < num_documents; ++i) {
    std::string text = fmt::format("{} ", i);
    const size_t size = 3 + random.below(200);
    while (text.size() < size) text += static_cast<char>('a' + random.below(26));
    texts.push_back(text);
    lines += json{{"text", text}}.dump() + "\n";
    if (i % 10 == 3) lines += "{broken\n";
  }
  folder.write("corpus/a.jsonl", lines);
  folder.write("corpus/b.txt", "the last one");
  texts.emplace_back("the last one");
  return texts;
}

std::map<std::string, std::string> files_of(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory)) files[entry.path().filename()] = read_file(entry.path());
  return files;
}

std::vector<fs::path> shards_of(const fs::path& directory, const std::string& split) {
  std::vector<fs::path> paths;
  for (const auto& path : find_shards(directory.string())) {
    if (path.filename().string().starts_with(split)) paths.push_back(path);
  }
  return paths;
}

TEST(Prepare, KeepsEveryDocumentInOneOfTheSplits) {
  const Folder folder;
  const auto texts = write_corpus(folder, 300);
  const auto report = prepare(options_of(folder / "corpus", folder / "out"), byte_encoder());
  std::map<std::vector<int32_t>, int> wanted;
  for (const auto& text : texts) {
    std::vector<int32_t> ids = {kTestBos};
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    ids.push_back(kTestEos);
    ++wanted[ids];
  }
  std::map<std::vector<int32_t>, int> got;
  size_t in_validation = 0;
  for (const std::string split : {"train", "validation"}) {
    for (const auto& document : read_stream(shards_of(folder / "out", split)).documents()) {
      ++got[document];
      if (split == "validation") ++in_validation;
    }
  }
  EXPECT_EQ(got, wanted);
  EXPECT_GT(in_validation, 30U);
  EXPECT_LT(in_validation, 95U);
  EXPECT_EQ(report.counts.documents, 301U);
  EXPECT_EQ(report.counts.malformed_rows, 30U);
  EXPECT_GT(report.shards.size(), 10U);
  const json index = read_json(folder / "out" / "prepare.json");
  EXPECT_EQ(index["train_tokens"], report.train_tokens);
  EXPECT_EQ(index["settings"]["context_length"], 16);
  EXPECT_FALSE(fs::exists(folder / "out" / "prepare.journal"));
  const TokenShard shard(folder / "out" / "train-00001.dxts");
  EXPECT_EQ(shard.header().bos_id, kTestBos);
  EXPECT_EQ(shard.header().document_end_id, kTestEos);
  EXPECT_EQ(shard.fingerprint(), "bytes");
  EXPECT_FALSE(shard.is_synthetic());
}

// The fingerprint does not tell them apart: a version that followed add_bos_token began documents otherwise with the same tokenizer.
TEST(Prepare, TakesNoShardsWhoseDocumentsBeginOtherwise) {
  const Folder folder;
  write_corpus(folder, 20);
  const auto options = options_of(folder / "corpus", folder / "out");
  prepare(options, byte_encoder(false));
  EXPECT_TRUE(prepare(options, byte_encoder(false)).was_complete);
  expect_error<ConfigError>([&] { prepare(options, byte_encoder()); },
                            {"documents begin with id -1, where the tokenizer puts 256", "use another --output, or --overwrite"});
  auto encoder = byte_encoder(false);
  encoder.suffix = {kTestEos};
  expect_error<ConfigError>([&] { prepare(options, encoder); }, {"prefix is new"});
}

TEST(Prepare, GivesTheSameBytesForAnyBatchSize) {
  const Folder folder;
  write_corpus(folder, 120);
  auto options = options_of(folder / "corpus", folder / "whole");
  options.reader.max_piece_bytes = 64;
  prepare(options, byte_encoder());
  for (const uint64_t batch_bytes : {1, 100, 5000}) {
    options.output = folder / fmt::format("batches-{}", batch_bytes);
    options.batch_bytes = batch_bytes;
    prepare(options, byte_encoder());
    EXPECT_EQ(files_of(options.output), files_of(folder / "whole"));
  }
}

// A crash (the encoder throws) or a signal after some batches, again and again, then on to the end.
TEST(Prepare, GoesOnAfterInterruptionsWithTheSameBytes) {
  const Folder folder;
  write_corpus(folder, 200);
  for (const int64_t max_tokens : {0, 9000}) {
    auto options = options_of(folder / "corpus", folder / fmt::format("whole-{}", max_tokens));
    options.max_tokens = max_tokens;
    options.reader.max_piece_bytes = 100;
    options.batch_bytes = 700;
    prepare(options, byte_encoder());
    const auto wanted = files_of(options.output);
    for (const bool by_signal : {false, true}) {
      options.output = folder / fmt::format("broken-{}-{}", max_tokens, by_signal);
      options.journal_seconds = 0;
      int stops = 0;
      for (bool complete = false; !complete; ++stops) {
        ASSERT_LT(stops, 200);
        int batches = 0;
        auto encoder = byte_encoder();
        const SignalGuard guard;
        encoder.encode_batch = [&, inner = encoder.encode_batch](std::span<const std::string_view> texts) {
          if (++batches == 4) {
            if (!by_signal) throw std::runtime_error("crash");
            std::raise(SIGTERM);
          }
          return inner(texts);
        };
        try {
          const auto report = prepare(options, encoder);
          EXPECT_EQ(report.was_resumed, stops > 0);
          complete = true;
        } catch (const Interrupted& error) {
          EXPECT_TRUE(by_signal);
          EXPECT_EQ(error.exit_code(), 128 + SIGTERM);
          expect_error<DataError>([&] { find_shards(options.output.string()); }, {"unfinished"});
        } catch (const std::runtime_error& error) {
          EXPECT_STREQ(error.what(), "crash");
        }
      }
      EXPECT_GT(stops, 1);
      EXPECT_EQ(files_of(options.output), wanted);
    }
  }
  const SignalGuard forgets_the_signal;  // other tests look at the flag too
}

TEST(Prepare, StopsAtTheBudget) {
  const Folder folder;
  write_corpus(folder, 100);
  for (const int64_t max_tokens : {1, 17, 1000}) {
    auto options = options_of(folder / "corpus", folder / fmt::format("out-{}", max_tokens));
    options.max_tokens = max_tokens;
    const auto report = prepare(options, byte_encoder());
    EXPECT_TRUE(report.reached_max_tokens);
    EXPECT_EQ(report.train_tokens + report.validation_tokens, max_tokens);
  }
  auto options = options_of(folder / "corpus", folder / "all");
  options.max_tokens = 1000000;
  EXPECT_FALSE(prepare(options, byte_encoder()).reached_max_tokens);
}

TEST(Prepare, IsDoneWhenItIsDone) {
  const Folder folder;
  write_corpus(folder, 30);
  auto options = options_of(folder / "corpus", folder / "out");
  const auto first = prepare(options, byte_encoder());
  const auto files = files_of(options.output);
  const auto second = prepare(options, byte_encoder());
  EXPECT_TRUE(second.was_complete);
  EXPECT_EQ(second.train_tokens, first.train_tokens);
  EXPECT_EQ(second.shards.size(), first.shards.size());
  EXPECT_EQ(files_of(options.output), files);

  options.context_length = 17;
  expect_error<ConfigError>([&] { prepare(options, byte_encoder()); },
                            {"other settings", "context_length is 17, it was 16", "--overwrite"});
  options.overwrite = true;
  folder.write("out/notes.txt", "kept");
  EXPECT_FALSE(prepare(options, byte_encoder()).was_complete);
  EXPECT_EQ(TokenShard(folder / "out" / "train-00000.dxts").context_length(), 17);
  EXPECT_EQ(read_file(folder / "out" / "notes.txt"), "kept");
  options.overwrite = false;
  folder.write("corpus/c.txt", "more");
  expect_error<ConfigError>([&] { prepare(options, byte_encoder()); }, {"input files"});
}

// Stops after a few batches and leaves a journal.
void interrupt(PrepareOptions options) {
  options.batch_bytes = 700;
  options.journal_seconds = 0;
  auto encoder = byte_encoder();
  encoder.encode_batch = [batches = 0, inner = encoder.encode_batch](std::span<const std::string_view> texts) mutable {
    if (++batches == 4) throw std::runtime_error("crash");
    return inner(texts);
  };
  EXPECT_THROW(prepare(options, encoder), std::runtime_error);
}

TEST(Prepare, OverwriteGoesOnWithItsOwnInterruptedRun) {
  const Folder folder;
  write_corpus(folder, 100);
  auto options = options_of(folder / "corpus", folder / "out");
  options.overwrite = true;
  interrupt(options);
  EXPECT_TRUE(prepare(options, byte_encoder()).was_resumed);
  EXPECT_FALSE(prepare(options, byte_encoder()).was_complete) << "a finished result is replaced";

  interrupt(options);
  for (const auto& entry : fs::directory_iterator(folder / "out")) {
    if (entry.path().extension() == ".partial") fs::resize_file(entry.path(), 10);  // the journal says more
  }
  const auto anew = prepare(options, byte_encoder());
  EXPECT_FALSE(anew.was_resumed);
  interrupt(options);
  folder.write("out/prepare.journal", "DXJOURN1 damaged");
  EXPECT_EQ(prepare(options, byte_encoder()).train_tokens, anew.train_tokens);
}

TEST(Prepare, ReusesWhatIsTheSameAndReplacesTheRest) {
  const Folder folder;
  write_corpus(folder, 100);
  auto options = options_of(folder / "corpus", folder / "out");
  options.reuse = true;
  interrupt(options);
  EXPECT_TRUE(prepare(options, byte_encoder()).was_resumed);
  EXPECT_TRUE(prepare(options, byte_encoder()).was_complete);
  options.context_length = 8;
  EXPECT_FALSE(prepare(options, byte_encoder()).was_complete);
  fs::remove(folder / "out" / "train-00000.dxts");
  EXPECT_FALSE(prepare(options, byte_encoder()).was_complete);
  EXPECT_TRUE(prepare(options, byte_encoder()).was_complete);
}

TEST(Prepare, BelievesNoIndexWhoseShardsOrInputsChanged) {
  const Folder folder;
  write_corpus(folder, 100);
  const auto options = options_of(folder / "corpus", folder / "out");
  prepare(options, byte_encoder());
  const fs::path first = folder / "out" / "train-00000.dxts", second = folder / "out" / "train-00001.dxts";
  const std::string bytes = read_file(first);
  const auto refused = [&](const std::string& reason) {
    expect_error<DataError>([&] { prepare(options, byte_encoder()); }, {"prepare.json", "train-00000.dxts", reason, "--overwrite"});
  };
  fs::remove(first);
  refused("cannot open");
  fs::copy_file(second, first);
  refused("not the shard");
  write_file_atomic(first, bytes.substr(0, bytes.size() - 1));
  refused("cut short");
  std::string flipped = bytes;
  flipped[300] = static_cast<char>(flipped[300] ^ 4);
  write_file_atomic(first, flipped);
  refused("checksum of its");
  write_file_atomic(first, bytes);
  EXPECT_TRUE(prepare(options, byte_encoder()).was_complete);
  fs::copy_file(second, folder / "out" / "train-00077.dxts");
  expect_error<DataError>([&] { prepare(options, byte_encoder()); }, {"train-00077.dxts: a shard that was not written with the others"});
  fs::remove(folder / "out" / "train-00077.dxts");
  const fs::path input = folder / "corpus" / "b.txt";
  write_file_atomic(input, "the LAST one");  // of the same size
  fs::last_write_time(input, fs::last_write_time(input) + std::chrono::seconds(2));
  expect_error<ConfigError>([&] { prepare(options, byte_encoder()); }, {"modification times"});
}

TEST(Prepare, OneProcessAtATimeWritesToADirectory) {
  const Folder folder;
  write_corpus(folder, 10);
  const auto options = options_of(folder / "corpus", folder / "out");
  auto encoder = byte_encoder();
  bool was_tried = false;
  encoder.encode_batch = [&, inner = encoder.encode_batch](std::span<const std::string_view> texts) {
    if (!std::exchange(was_tried, true)) {
      expect_error<ConfigError>([&] { prepare(options, byte_encoder()); },
                                {"out", "process " + std::to_string(::getpid()) + " is writing there"});
    }
    return inner(texts);
  };
  prepare(options, encoder);
  EXPECT_TRUE(was_tried);
  for (const auto& entry : fs::directory_iterator(folder / "out")) EXPECT_FALSE(is_lock_name(entry.path().filename().string()));
}

TEST(Prepare, WritesOnlyWhereItsOwnTextOrNothingIs) {
  const Folder folder;
  write_corpus(folder, 30);
  auto options = options_of(folder / "corpus", folder / "out");
  for (const bool overwrite : {false, true}) {
    options.overwrite = overwrite;
    for (const char* name : {"notes.txt", "train-00000.dxts", "prepare.json", "synthesize.cbor"}) {
      SCOPED_TRACE(name);
      fs::remove_all(folder / "out");
      folder.write(std::string("out/") + name, "{}");
      expect_error<ConfigError>([&] { prepare(options, byte_encoder()); },
                                {"--output ", name, "is not empty and no text that `prepare` wrote"});
      EXPECT_EQ(files_of(options.output).size(), 1u) << "nothing was made or removed";
    }
  }
  options.output = folder / "corpus" / "shards";
  expect_error<ConfigError>([&] { prepare(options, byte_encoder()); }, {"lies inside ", "corpus"});
  EXPECT_FALSE(fs::exists(options.output));
  // What a call leaves that was killed before its first journal.
  options = options_of(folder / "corpus", folder / "killed");
  for (const char* name :
       {".distil-xlstm.lock", "prepare.journal.distil-xlstm-tmp-1-0", "train-00000.dxts.partial", "train-00007.dxts.partial"})
    folder.write(std::string("killed/") + name, "half");
  prepare(options, byte_encoder());
  prepare(options_of(folder / "corpus", folder / "whole"), byte_encoder());
  EXPECT_EQ(files_of(folder / "killed"), files_of(folder / "whole"));
}

TEST(Prepare, GoesOnFromNoDamagedShard) {
  const Folder folder;
  write_corpus(folder, 300);
  auto options = options_of(folder / "corpus", folder / "out");
  options.shard_bytes = 400;
  interrupt(options);
  for (const char* ending : {".dxts", ".partial"}) {  // a closed shard, then the open one
    SCOPED_TRACE(ending);
    interrupt(options);
    fs::path damaged;
    for (const auto& entry : fs::directory_iterator(folder / "out")) {
      if (entry.path().extension() == ending) damaged = entry.path();
    }
    ASSERT_FALSE(damaged.empty());
    const std::string bytes = read_file(damaged);
    std::string other = bytes;
    other[bytes.size() - 2] = static_cast<char>(other[bytes.size() - 2] ^ 1);
    write_file_atomic(damaged, other);
    expect_error<DataError>([&] { prepare(options, byte_encoder()); }, {damaged.filename().string(), "damaged", "--overwrite"});
    write_file_atomic(damaged, bytes);
  }
}

TEST(Prepare, RefusesWhatItCannotDo) {
  const Folder folder;
  write_corpus(folder, 3);
  const auto with = [&](auto&& change) {
    auto options = options_of(folder / "corpus", folder / "out");
    change(options);
    prepare(options, byte_encoder());
  };
  expect_error<ConfigError>([&] { with([](auto& o) { o.reader.inputs.clear(); }); }, {"at least one"});
  expect_error<ConfigError>([&] { with([](auto& o) { o.output.clear(); }); }, {"--output"});
  expect_error<ConfigError>([&] { with([](auto& o) { o.validation_fraction = 1.5; }); }, {"1.5", "between 0 and 1"});
  expect_error<ConfigError>([&] { with([](auto& o) { o.context_length = 0; }); }, {"context_length = 0"});
  expect_error<ConfigError>([&] { with([](auto& o) { o.context_length = int64_t{1} << 30; }); },
                            {"context_length = 1073741824", "16777216"});
  expect_error<ConfigError>([&] { with([](auto& o) { o.document_end = "</x>"; }); }, {"</x>"});
  expect_error<ConfigError>([&] { with([](auto& o) { o.max_tokens = -1; }); }, {"-1"});
  expect_error<DataError>(
      [&] {
        with([&](auto& o) {
          o.reader.inputs = {folder.write("empty/e.txt", " \n").string()};
          o.reader.strip = true;
        });
      },
      {"not a single document", "1 empty"});
  fs::remove_all(folder / "out");
  folder.write("out/prepare.journal", "DXJOURN1 damaged");
  expect_error<DataError>([&] { with([](auto&) {}); }, {"prepare.journal", "damaged", "--overwrite"});
}

TEST(Prepare, MasksConversations) {
  const Folder folder;
  folder.write("chat/c.jsonl", R"({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "yes"}]}
{"messages": [{"role": "refused", "content": "u"}]}
{"text": "plain"}
)");
  auto options = options_of(folder / "chat", folder / "out");
  options.validation_fraction = 0;
  const auto report = prepare(options, byte_encoder());
  EXPECT_EQ(report.refused_conversations, 1U);
  const auto stream = read_stream(shards_of(folder / "out", "train"));
  std::string counted;
  for (size_t i = 0; i < stream.ids.size(); ++i) {
    if (stream.counts[i] != 0 && stream.ids[i] < 256) counted += static_cast<char>(stream.ids[i]);
  }
  EXPECT_EQ(counted, "yes;plain");
  EXPECT_EQ(stream.borders.size(), 2U);
  EXPECT_EQ(report.targets.conversations, 1U);
  EXPECT_EQ(report.targets.without_answer, 0U);
}

TEST(Prepare, CountsAnswersThatAreNotFoundAndTellsOfThem) {
  const Folder folder;
  folder.write("chat/c.jsonl", R"({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "yes"}]}
{"messages": [{"role": "lost", "content": "x"}, {"role": "assistant", "content": "no"}, {"role": "lost", "content": "y"}]}
)");
  auto options = options_of(folder / "chat", folder / "out");
  options.validation_fraction = 0;
  EXPECT_EQ(prepare(options, byte_encoder(false)).targets.missing_answers, 2U);
  EXPECT_EQ(prepare(options, byte_encoder(false)).targets.missing_answers, 2U) << "of what lies there";
}

TEST(Prepare, CountsWhatConversationsTeach) {
  const Folder folder;
  folder.write("chat/c.jsonl", R"({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "yes"}]}
{"messages": [{"role": "user", "content": "u"}, {"role": "model", "content": "no"}]}
{"messages": [{"role": "human", "content": "u"}]}
{"messages": [{"role": "user", "content": "v"}, {"role": "model", "content": "no"}]}
)");
  auto options = options_of(folder / "chat", folder / "out");
  options.validation_fraction = 0;
  auto encoder = byte_encoder(false);
  encoder.chat_template_fingerprint = "template-a";
  const auto check = [](const PrepareReport& report) {
    EXPECT_EQ(report.targets.conversations, 4U);
    EXPECT_EQ(report.targets.without_answer, 3U);
    EXPECT_EQ(report.targets.roles, json({"user, model", "human"}));
    EXPECT_EQ(report.targets.target_tokens, 5);  // yes; and the end of the document
  };
  check(prepare(options, encoder));
  const auto again = prepare(options, encoder);
  EXPECT_TRUE(again.was_complete);
  check(again);
  const auto shards = shards_of(folder / "out", "train");
  EXPECT_EQ(TokenShard(shards.at(0)).metadata().at("chat_template"), "template-a");
  encoder.chat_template_fingerprint = "template-b";
  expect_error<ConfigError>([&] { prepare(options, encoder); }, {"other settings", "chat_template"});

  // An output of a version that did not write the template down is taken as it is.
  json index = read_json(folder / "out/prepare.json");
  index["settings"].erase("chat_template");
  index.erase("targets");
  write_json(folder / "out/prepare.json", index);
  EXPECT_TRUE(prepare(options, encoder).was_complete);
}

}  // namespace
}  // namespace distil_xlstm::data
