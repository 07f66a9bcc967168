// Reading documents from text, JSONL and Parquet files.
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <csignal>
#include <limits>

#include "base/error.h"
#include "base/log.h"
#include "base/random.h"
#include "base/signals.h"
#include "data/byte_stream.h"
#include "data/text_reader.h"
#include "support/source_directory.h"
#include "unit/data/data_testing.h"

namespace distil_xlstm::data {
namespace {

ReaderOptions options_of(const fs::path& input) {
  ReaderOptions options;
  options.inputs = {input.string()};
  return options;
}

std::vector<Document> read_all(TextReader& reader) {
  std::vector<Document> documents;
  for (Document document; reader.next(document);) documents.push_back(document);
  return documents;
}

std::vector<std::string> texts_of(const ReaderOptions& options) {
  TextReader reader(options);
  std::vector<std::string> texts;
  for (const auto& document : read_all(reader)) {
    if (document.begins) texts.emplace_back();
    texts.back() += document.text;
  }
  return texts;
}

std::string gzip(std::string_view text) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()), 0);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string zstd(std::string_view text, int window_log = 0) {
  std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), &ZSTD_freeCCtx);
  if (window_log > 0) {
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_windowLog, window_log);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_contentSizeFlag, 0);
  }
  std::string out(ZSTD_compressBound(text.size()) + 64, 0);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  ZSTD_outBuffer output{out.data(), out.size(), 0};
  ZSTD_inBuffer input{text.data(), text.size(), 0};
  // Two calls, so that the size is unknown and the window stays as wide as asked for.
  EXPECT_EQ(ZSTD_isError(ZSTD_compressStream2(context.get(), &output, &input, ZSTD_e_flush)), 0U);
  EXPECT_EQ(ZSTD_compressStream2(context.get(), &output, &input, ZSTD_e_end), 0U);
  out.resize(output.pos);
  return out;
}

std::string random_text(Random& random, size_t size) {
  std::string text;
  while (text.size() < size) text += static_cast<char>(random.below(5) == 0 ? '\n' : 'a' + random.below(26));
  return text;
}

TEST(ByteStream, DecompressesMembersFramesAndWideWindows) {
  const Folder folder;
  Random random(1);
  const std::string a = random_text(random, 300001);
  const std::string b = random_text(random, 77);
  const auto read = [](const fs::path& path) {
    const auto stream = open_byte_stream(path);
    std::string text;
    std::string part(4099, 0);
    for (size_t got = 0; (got = stream->read(part.data(), part.size())) > 0;) text.append(part, 0, got);
    EXPECT_EQ(stream->bytes_done(), fs::file_size(path));
    return text;
  };
  EXPECT_EQ(read(folder.write("t.txt", a)), a);
  EXPECT_EQ(read(folder.write("t.gz", gzip(a) + gzip(b))), a + b);
  EXPECT_EQ(read(folder.write("t.zst", zstd(a) + zstd(b))), a + b);
  EXPECT_EQ(read(folder.write("wide.zst", zstd(a, 28))), a);  // more than the decoder's usual 2^27
  EXPECT_EQ(read(folder.write("none.gz", gzip(""))), "");
  EXPECT_EQ(read(folder.write("padded.gz", gzip(a) + std::string(3, '\0') + gzip(b) + std::string(600000, '\0'))), a + b);
  EXPECT_EQ(read(folder.write("none.zst", zstd(""))), "");
}

TEST(ByteStream, RefusesBrokenCompression) {
  const Folder folder;
  Random random(2);
  const std::string text = random_text(random, 100000);
  const auto read = [](const fs::path& path) {
    const auto stream = open_byte_stream(path);
    std::string part(1 << 16, 0);
    while (stream->read(part.data(), part.size()) > 0) {
    }
  };
  for (const auto& [name, bytes] : {std::pair<std::string, std::string>{"t.gz", gzip(text)}, {"t.zst", zstd(text)}}) {
    expect_error<DataError>([&] { read(folder.write("cut-" + name, bytes.substr(0, bytes.size() / 2))); }, {"cut-" + name, "cut short"});
    expect_error<DataError>([&] { read(folder.write("cut1-" + name, bytes.substr(0, bytes.size() - 1))); }, {"cut short"});
    expect_error<DataError>([&] { read(folder.write("empty-" + name, "")); }, {"cut short"});
    expect_error<DataError>([&] { read(folder.write("not-" + name, text)); }, {"not-" + name, "broken"});
    std::string damaged = bytes;
    for (size_t i = 20; i < 60; ++i) damaged[i] = static_cast<char>(damaged[i] ^ 0x5a);
    EXPECT_THROW(read(folder.write("damaged-" + name, damaged)), DataError);
  }
  expect_error<IoError>([&] { read(folder / "absent.txt"); }, {"absent.txt"});
}

TEST(LineReader, GivesLinesOfAnyLengthAndCutsThoseTooLong) {
  const Folder folder;
  const std::string long_line(3000000, 'x');
  const auto path = folder.write("l.txt", "a\n\n" + long_line + "\nb\r\nlast");
  const auto lines_of = [&](size_t max_bytes) {
    LineReader reader(open_byte_stream(path), max_bytes);
    std::vector<std::pair<std::string, bool>> lines;
    std::string_view line;
    bool too_long = false;
    while (reader.next(line, too_long)) lines.emplace_back(line, too_long);
    return lines;
  };
  using Lines = std::vector<std::pair<std::string, bool>>;
  EXPECT_EQ(lines_of(1 << 30), (Lines{{"a", false}, {"", false}, {long_line, false}, {"b\r", false}, {"last", false}}));
  EXPECT_EQ(lines_of(5), (Lines{{"a", false}, {"", false}, {"xxxxx", true}, {"b\r", false}, {"last", false}}));
}

TEST(TextReader, OneTextFileIsOneDocument) {
  const Folder folder;
  folder.write("c/2.txt", "second\n\n");
  folder.write("c/1.txt",
               "\xEF\xBB\xBF"
               "first");
  folder.write("c/sub/3.md", "third");
  folder.write("c/4.txt.gz", gzip("fourth"));
  folder.write("c/5.txt.zst", zstd("fifth"));
  folder.write("c/6.txt", "");
  folder.write("c/picture.png", "x");
  EXPECT_EQ(texts_of(options_of(folder / "c")), (std::vector<std::string>{"first", "second\n\n", "fourth", "fifth", "third"}));
  EXPECT_EQ(texts_of(options_of(folder / "c/*.txt")), (std::vector<std::string>{"first", "second\n\n"}));
  expect_error<ConfigError>([&] { texts_of(options_of(folder / "c/picture.png")); }, {"picture.png", "--format"});
  expect_error<IoError>([&] { texts_of(options_of(folder / "nothing*")); }, {"nothing*"});
  auto forced = options_of(folder / "c/picture.png");
  forced.format = FileFormat::text;
  EXPECT_EQ(texts_of(forced), std::vector<std::string>{"x"});
}

TEST(TextReader, GivesATextWholeWhereNothingMayBeCut) {
  const Folder folder;
  folder.write("a.txt", "One text.\nStill the same.");
  auto options = options_of(folder / "a.txt");
  options.max_piece_bytes = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(texts_of(options), std::vector<std::string>{"One text.\nStill the same."});
}

TEST(TextReader, CutsLongTextsAndKeepsEveryByte) {
  const Folder folder;
  Random random(9);
  for (int round = 0; round < 50; ++round) {
    std::string text;
    const char* parts[] = {"\n", "\n\n", " ", "word", "\xC3\xA9", "\xF0\x9F\x98\x80", "x"};
    const size_t size = 1 + random.below(900);
    while (text.size() < size) text += parts[random.below(std::size(parts))];
    nlohmann::json row;
    row["text"] = text;
    for (const auto& path : {folder.write("t.txt", text), folder.write("t.jsonl", row.dump() + "\n")}) {
      auto options = options_of(path);
      options.max_piece_bytes = 64 + random.below(60);
      TextReader reader(options);
      std::string joined;
      const auto documents = read_all(reader);
      for (size_t i = 0; i < documents.size(); ++i) {
        EXPECT_LE(documents[i].text.size(), options.max_piece_bytes);
        EXPECT_EQ(documents[i].begins, i == 0);
        EXPECT_EQ(documents[i].ends, i + 1 == documents.size());
        joined += documents[i].text;
      }
      ASSERT_EQ(joined, text);
      ASSERT_EQ(reader.counts().documents, 1U);
      ASSERT_EQ(reader.counts().cut_documents, documents.size() > 1 ? 1U : 0U);
      ASSERT_EQ(reader.counts().invalid_utf8, 0U);  // no character is cut in two

      // Newlines are made one across the cuts as well.
      std::string wanted;
      for (const char c : text) {
        if (c != '\n' || wanted.empty() || wanted.back() != '\n') wanted += c;
      }
      options.normalize_newlines = true;
      ASSERT_EQ(texts_of(options), std::vector<std::string>{wanted});
    }
  }
}

TEST(TextReader, CutsWhatIsNoUtf8IntoPiecesOfFullSize) {
  const Folder folder;
  auto options = options_of(folder.write("t.txt", std::string(10000, '\x80')));
  options.max_piece_bytes = 1000;
  options.bad_rows = BadRowPolicy::replace;
  TextReader reader(options);
  EXPECT_EQ(read_all(reader).size(), 10U);
  EXPECT_EQ(piece_end("abc\xF0\x9F\x98\x80", 6), 3U);
  EXPECT_EQ(piece_end("a\x80\x80\x80\x80\x80\x80", 5), 5U);
}

TEST(TextReader, StopsAtASignalAmongRowsThatAreLeftOut) {
  const Folder folder;
  TextReader reader(options_of(folder.write("t.jsonl", "{broken\n{broken\n")));
  {
    const SignalGuard guard;
    std::raise(SIGTERM);
    Document document;
    EXPECT_THROW(reader.next(document), Interrupted);
  }
  const SignalGuard forgets_the_signal;
}

TEST(TextReader, PassesOverWhatIsNoCorpusAndTakesAFileOnce) {
  const Folder folder;
  folder.write("c/1.txt", "one");
  folder.write("c/README.md", "about");
  folder.write("c/LICENSE.txt", "terms");
  folder.write("c/.hidden.txt", "no");
  folder.write("c/.cache/2.txt", "no");
  EXPECT_EQ(texts_of(options_of(folder / "c")), std::vector<std::string>{"one"});
  EXPECT_EQ(texts_of(options_of(folder / "c/README.md")), std::vector<std::string>{"about"});  // named: wanted
  auto twice = options_of(folder / "c");
  twice.inputs.push_back((folder / "c" / ".." / "c" / "1.txt").string());
  EXPECT_EQ(texts_of(twice), std::vector<std::string>{"one"});
  expect_error<IoError>([] { texts_of(options_of("/dev/null")); }, {"/dev/null", "not a regular file"});
}

TEST(TextReader, KeepsRowsBesideNumbersThatJsonDoesNotHave) {
  const Folder folder;
  auto options = options_of(folder.write("t.jsonl", R"({"a": NaN, "b": [-Infinity, 1e999, -2.5E+4000, "NaN \" 1e999"], "text": "one"}
{"score": Infinity, "prompt": "p", "response": "NaN"}

{"a": Nan, "text": "three"}
{"a": 0x1, "text": "four"}
)"));
  TextReader reader(options);
  const auto documents = read_all(reader);
  ASSERT_EQ(documents.size(), 2U);
  EXPECT_EQ(documents[0].text, "one");
  EXPECT_EQ(documents[1].conversation.messages.at(1).at("content"), "NaN");
  EXPECT_EQ(reader.counts().malformed_rows, 2U);
  options.bad_rows = BadRowPolicy::fail;
  expect_error<DataError>([&] { texts_of(options); }, {"line 4", "not JSON"});
}

TEST(TextReader, ReadsRowsOfManyKeysInTime) {
  const Folder folder;
  std::string row = "{";
  for (int i = 0; i < 60000; ++i) row += fmt::format("\"key{}\": {}, ", i, i);
  row += R"("prompt": "p", "response": "r"})";
  TextReader reader(options_of(folder.write("t.jsonl", row)));
  const double begin = monotonic_seconds();
  EXPECT_EQ(read_all(reader).size(), 1U);
  EXPECT_LT(monotonic_seconds() - begin, 5.0);
}

TEST(TextReader, GoesOnAtAnyPlace) {
  const Folder folder;
  folder.write(
      "a.jsonl",
      "{\"text\": \"one\"}\n\nbroken\n{\"text\": \"two, which is longer than a piece may be\"}\n{\"text\": \"\"}\n{\"text\": \"three\"}");
  folder.write("b.txt", "four four four four four four four");
  folder.write("c.jsonl.gz", gzip("{\"text\": \"five\"}\n{\"text\": \"six\"}\n"));
  auto options = options_of(folder.path());
  options.max_piece_bytes = 10;
  TextReader whole(options);
  const auto documents = read_all(whole);
  ASSERT_EQ(documents.size(), 14U);
  for (size_t stop = 0; stop <= documents.size(); ++stop) {
    TextReader first(options);
    Document document;
    for (size_t i = 0; i < stop; ++i) ASSERT_TRUE(first.next(document));
    TextReader second(options);
    second.restore(first.place(), first.counts());
    for (size_t i = stop; i < documents.size(); ++i) {
      ASSERT_TRUE(second.next(document));
      EXPECT_EQ(document.text, documents[i].text);
      EXPECT_EQ(document.begins, documents[i].begins);
      EXPECT_EQ(document.ends, documents[i].ends);
    }
    EXPECT_FALSE(second.next(document));
    EXPECT_EQ(second.counts().documents, whole.counts().documents);
    EXPECT_EQ(second.counts().text_bytes, whole.counts().text_bytes);
    EXPECT_EQ(second.counts().malformed_rows, 1U);
    EXPECT_EQ(second.counts().empty_documents, 1U);
    EXPECT_EQ(second.bytes_done(), second.total_bytes());
  }
}

TEST(TextReader, CleansAsAsked) {
  const Folder folder;
  auto options = options_of(folder.write("t.jsonl", R"({"id": {"text": "inner"}, "text": " \n a\n\n\n b \n"})"
                                                    "\n"
                                                    R"({"text": " \n "})"));
  EXPECT_EQ(texts_of(options), (std::vector<std::string>{" \n a\n\n\n b \n", " \n "}));
  options.normalize_newlines = true;
  EXPECT_EQ(texts_of(options), (std::vector<std::string>{" \n a\n b \n", " \n "}));
  options.strip = true;
  TextReader reader(options);
  const auto documents = read_all(reader);
  ASSERT_EQ(documents.size(), 1U);
  EXPECT_EQ(documents[0].text, "a\n b");
  EXPECT_EQ(reader.counts().empty_documents, 1U);
}

TEST(TextReader, CountsBadRowsAndDoesWithThemWhatIsAsked) {
  const Folder folder;
  const auto path = folder.write("t.jsonl",
                                 "{\"text\": \"good\"}\n{\"text\": 5}\n[1]\n{\"other\": \"x\"}\n{\"text\": \"cut\n{\"text\": \"a\xFF"
                                 "b\"}\n"
                                 "{\"text\": \"\\ud800\"}\n{\"text\": null}\n{\"text\": \"end\"}\n");
  auto options = options_of(path);
  {
    TextReader reader(options);
    EXPECT_EQ(read_all(reader).size(), 2U);
    EXPECT_EQ(reader.counts().malformed_rows, 6U);
    EXPECT_EQ(reader.counts().invalid_utf8, 1U);
  }
  options.bad_rows = BadRowPolicy::replace;
  {
    TextReader reader(options);
    const auto documents = read_all(reader);
    ASSERT_EQ(documents.size(), 3U);
    EXPECT_EQ(documents[1].text,
              "a\xEF\xBF\xBD"
              "b");
    EXPECT_EQ(reader.counts().malformed_rows, 6U);
    EXPECT_EQ(reader.counts().invalid_utf8, 1U);
  }
  options.bad_rows = BadRowPolicy::fail;
  expect_error<DataError>([&] { texts_of(options); }, {"t.jsonl", "line 2", "'text' is not a string"});
  auto text = options_of(folder.write("bad.txt", "ab\xC3"));
  EXPECT_TRUE(texts_of(text).empty());
  text.bad_rows = BadRowPolicy::replace;
  EXPECT_EQ(texts_of(text), std::vector<std::string>{"ab\xEF\xBF\xBD"});
  text.bad_rows = BadRowPolicy::fail;
  expect_error<DataError>([&] { texts_of(text); }, {"bad.txt", "byte 2"});
}

using Messages = std::vector<std::pair<std::string, std::string>>;

std::vector<Messages> conversations_of(const ReaderOptions& options) {
  TextReader reader(options);
  std::vector<Messages> all;
  for (const auto& document : read_all(reader)) {
    all.emplace_back();
    for (const auto& message : document.conversation.messages) all.back().emplace_back(message.at("role"), message.at("content"));
  }
  return all;
}

TEST(TextReader, ReadsConversations) {
  const Folder folder;
  auto options =
      options_of(folder.write("t.jsonl", R"({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
{"prompt": "p", "response": "r"}
{"instruction": "i", "input": "more", "output": "o"}
{"instruction": "i", "input": "", "output": "o"}
{"question": "q", "answer": "n", "text": 1}
{"question": "q", "answer": "n"}
{"messages": []}
{"messages": [{"role": "user"}]}
{"prompt": "lonely"}
)"));
  const std::vector<Messages> wanted = {{{"user", "u"}, {"assistant", "a"}},
                                        {{"user", "p"}, {"assistant", "r"}},
                                        {{"user", "i\n\nmore"}, {"assistant", "o"}},
                                        {{"user", "i"}, {"assistant", "o"}},
                                        {{"user", "q"}, {"assistant", "n"}}};
  EXPECT_EQ(conversations_of(options), wanted);
  options.rows = RowKind::chat;
  EXPECT_EQ(conversations_of(options).size(), 6U);  // the row whose text is a number is a conversation as well
  options.rows = RowKind::text;
  EXPECT_TRUE(conversations_of(options).empty());

  auto named = options_of(folder.write("n.jsonl", R"({"ask": "x", "say": "y", "messages": 3})"));
  named.prompt_key = "ask";
  expect_error<ConfigError>([&] { TextReader reader(named); }, {"prompt_key", "answer_key"});
  named.answer_key = "say";
  EXPECT_EQ(conversations_of(named), (std::vector<Messages>{{{"user", "x"}, {"assistant", "y"}}}));
}

// All of a row that `transformers` hands to a template, in the order of its keys.
TEST(TextReader, KeepsWhatAMessageHoldsBesideItsContent) {
  const Folder folder;
  const std::string messages =
      R"([{"role":"user","content":[{"type":"text","text":"u"}]},{"role":"assistant","content":null,"tool_calls":[{"z":1,"a":{"x":[1.5,true,null]}}],"reasoning_content":"r"}])";
  TextReader reader(
      options_of(folder.write("t.jsonl", R"({"id": 1, "tools": "[{\"name\": \"f\"}]", "messages": )" + messages +
                                             R"(, "documents": [{"title": "t"}], "chat_template_kwargs": {"enable_thinking": false}})" +
                                             "\n" + R"({"prompt": "p", "response": "r", "tools": [{"b": 1, "a": 2, "b": 3}]})")));
  const auto documents = read_all(reader);
  ASSERT_EQ(documents.size(), 2U);
  // As `transformers`: what is null is not there, and reasoning has two names.
  EXPECT_EQ(documents[0].conversation.messages.dump(),
            R"([{"role":"user","content":[{"type":"text","text":"u"}]},{"thinking":"r","role":"assistant",)"
            R"("tool_calls":[{"z":1,"a":{"x":[1.5,true,null]}}],"reasoning_content":"r"}])");
  EXPECT_EQ(documents[0].conversation.variables.dump(), R"({"enable_thinking":false,"tools":[{"name":"f"}],"documents":[{"title":"t"}]})");
  EXPECT_EQ(documents[0].row_name, (folder / "t.jsonl").string() + ": line 1");
  EXPECT_EQ(documents[1].conversation.variables.dump(), R"({"tools":[{"b":3,"a":2}]})");
}

TEST(TextReader, SaysWhatIsWrongWithAConversation) {
  const Folder folder;
  const std::pair<std::string, std::string> cases[] = {
      {R"({"messages": "x"})", "'messages' is not a list of messages"},
      {R"({"messages": [5]})", "message 1 of 'messages' is not an object"},
      {R"({"messages": [{"role": "user", "content": "a"}, {"role": "user"}]})", "message 2 of 'messages' has nothing but a role"},
      {R"({"conversations": [{"from": "human", "value": "a"}]})",
       "message 1 of 'conversations' lacks the string 'role' (it has 'from', 'value'): rename"},
      {R"({"messages": [{"role": "user", "content": 5}]})", "'content' of message 1 of 'messages' is neither a string nor a list of parts"},
      {R"({"messages": [{"role": "user", "content": "a"}], "tools": ["f"]})", "'tools' is not a list of objects"},
      {R"({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": 1})", "'chat_template_kwargs' is not an object"},
      {R"({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"tools": 1}})", "'chat_template_kwargs' holds 'tools'"},
      {R"({"prompt": null, "response": "r"})", "'prompt' is null"},
      {R"({"messages": [{"role": "user", "content": "a", "x": )" + std::string(200, '[') + std::string(200, ']') + "}]}",
       "more than 100 levels of lists and objects"},
      {R"({"messages": [{"role": "user", "content": "a", "x": )" + std::string(100000, '['), "more than 100 levels of lists and objects"}};
  for (const auto& [row, problem] : cases) {
    auto options = options_of(folder.write("t.jsonl", row));
    options.bad_rows = BadRowPolicy::fail;
    options.rows = RowKind::chat;
    expect_error<DataError>([&] { texts_of(options); }, {"t.jsonl", "line 1", problem});
  }
}

TEST(TextReader, ReadsConversationsUnderBothNames) {
  const Folder folder;
  const auto options = options_of(folder.write("t.jsonl", R"({"conversations": [{"role": "user", "content": "u"}]})"));
  EXPECT_EQ(conversations_of(options), (std::vector<Messages>{{{"user", "u"}}}));
}

TEST(TextReader, ReadsAJsonArray) {
  const Folder folder;
  const std::string array = "\xEF\xBB\xBF [\n  {\"text\": \"a ] , \\\" [ b\"},\n  {\"x\": [1, {\"y\": []}], \"text\": \"c\"}, 7\n]\n";
  for (const auto& path : {folder.write("t.json", array), folder.write("t.jsonl", array), folder.write("t.json.gz", gzip(array))}) {
    TextReader reader(options_of(path));
    const auto documents = read_all(reader);
    ASSERT_EQ(documents.size(), 2U);
    EXPECT_EQ(documents[0].text, "a ] , \" [ b");
    EXPECT_EQ(documents[1].text, "c");
    EXPECT_EQ(reader.counts().malformed_rows, 1U);
    TextReader second(options_of(path));
    second.restore({0, 1, 0}, {});
    Document document;
    ASSERT_TRUE(second.next(document));
    EXPECT_EQ(document.text, "c");
  }
  EXPECT_TRUE(texts_of(options_of(folder.write("none.json", "[]"))).empty());
  auto options = options_of(folder.write("cut.json", R"([{"text": "a"}, {"text": "b"})"));
  expect_error<DataError>([&] { texts_of(options); }, {"cut.json", "does not end", "cut short"});
  options = options_of(folder.write("more.json", "[{\"text\": \"a\"}]\n[{\"text\": \"b\"}]"));
  options.bad_rows = BadRowPolicy::fail;
  expect_error<DataError>([&] { texts_of(options); }, {"more.json", "element 2", "not a JSON object"});
  folder.write("d/a.txt", "one");
  folder.write("d/dataset_info.json", "{}");
  EXPECT_EQ(texts_of(options_of(folder / "d")), std::vector<std::string>{"one"});  // beside the texts, not one of them
}

TEST(TextReader, ReadsCompressedContentUnderAnyName) {
  const Folder folder;
  EXPECT_EQ(texts_of(options_of(folder.write("g.jsonl", gzip("{\"text\": \"one\"}\n")))), std::vector<std::string>{"one"});
  EXPECT_EQ(texts_of(options_of(folder.write("z.jsonl", zstd("{\"text\": \"two\"}\n")))), std::vector<std::string>{"two"});
  EXPECT_EQ(texts_of(options_of(folder.write("g.txt", gzip("three")))), std::vector<std::string>{"three"});
  EXPECT_EQ(texts_of(options_of(folder.write("z.txt", zstd("four")))), std::vector<std::string>{"four"});
}

TEST(TextReader, ReadsLinesThatEndInACarriageReturn) {
  const Folder folder;
  const std::string rows = "{\"text\": \"a\"}\r\r{\"text\": \"b\"}\r";
  EXPECT_EQ(texts_of(options_of(folder.write("cr.jsonl", rows))), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(texts_of(options_of(folder.write("crlf.jsonl", "{\"text\":\r \"a\"}\r\n{\"text\": \"b\"}\r\n"))),
            (std::vector<std::string>{"a", "b"}));
}

TEST(TextReader, TellsWhatIsNoUtf8Text) {
  using namespace std::string_literals;
  const Folder folder;
  const std::string wide = "{\0\"\0t\0e\0x\0t\0\"\0"s;
  const std::pair<std::string, std::string> cases[] = {{"\xFF\xFE" + wide, "UTF-16"},
                                                       {"\xFE\xFF\0{\0\"\0t"s, "UTF-16"},
                                                       {wide, "UTF-16"},
                                                       {"\xFF\xFE\0\0{\0\0\0"s, "UTF-32"},
                                                       {"PAR1xxxx", "--format parquet"},
                                                       {"BZh91AY&SY\0\x01"s, "bzip2"},
                                                       {"\xFD"
                                                        "7zXZ\0\0\x04"s,
                                                        "xz"},
                                                       {"PK\x03\x04\x14\0"s, "zip"}};
  for (const auto& [bytes, what] : cases) {
    for (const char* name : {"t.txt", "t.jsonl"}) {
      expect_error<DataError>([&, &bytes = bytes] { texts_of(options_of(folder.write(name, bytes))); }, {name, what});
    }
  }
  EXPECT_EQ(texts_of(options_of(folder.write("pk.txt", "PK is a name, BZh another"))).size(), 1U);
}

TEST(TextReader, RefusesUnknownNames) {
  expect_error<ConfigError>([] { parse_bad_row_policy("skp"); }, {"skp", "skip", "did you mean"});
  expect_error<ConfigError>([] { parse_file_format("csv"); }, {"csv", "parquet"});
  expect_error<ConfigError>([] { parse_row_kind("chats"); }, {"chats", "chat"});
}

// tests/golden/make_parquet.py wrote these: rows "document N" with accents, a null in row 5, three row groups of 7 rows.
TEST(TextReader, ReadsParquet) {
  if (!fs::exists(fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "libdistil_xlstm_parquet.so")) {
    GTEST_SKIP() << "libdistil_xlstm_parquet.so is not built: no pyarrow in the environment";
  }
  const fs::path golden = golden_directory();
  TextReader reader(options_of(golden / "documents.parquet"));
  const auto documents = read_all(reader);
  ASSERT_EQ(documents.size(), 20U);
  EXPECT_EQ(reader.counts().malformed_rows, 1U);
  EXPECT_EQ(documents[0].text, "document 0 caf\xC3\xA9");
  EXPECT_EQ(documents[19].text, "document 20 caf\xC3\xA9 caf\xC3\xA9 caf\xC3\xA9");
  EXPECT_EQ(reader.bytes_done(), reader.total_bytes());
  for (uint64_t stop = 0; stop <= 21; ++stop) {
    TextReader other(options_of(golden / "documents.parquet"));
    other.restore({0, stop, 0}, {});
    Document document;
    size_t count = 0;
    while (other.next(document)) ++count;
    EXPECT_EQ(count, 21 - stop - (stop <= 5 ? 1 : 0));
  }
  auto fail = options_of(golden / "documents.parquet");
  fail.bad_rows = BadRowPolicy::fail;
  expect_error<DataError>([&] { texts_of(fail); }, {"documents.parquet", "row 6", "null"});
  auto missing = options_of(golden / "documents.parquet");
  missing.text_key = "content";
  expect_error<DataError>([&] { texts_of(missing); }, {"documents.parquet", "'content'", "--text-key"});
  missing.text_key = "score";
  expect_error<DataError>([&] { texts_of(missing); }, {"'score' is double", "no strings"});
  EXPECT_EQ(conversations_of(options_of(golden / "pairs.parquet")),
            (std::vector<Messages>{{{"user", "p0"}, {"assistant", "r0"}}, {{"user", "p1"}, {"assistant", "r1"}}}));
  const Folder folder;
  expect_error<DataError>([&] { texts_of(options_of(folder.write("not.parquet", "PAR1 no"))); }, {"not.parquet", "Parquet"});
  const std::string bytes = read_file(golden / "documents.parquet");
  expect_error<DataError>([&] { texts_of(options_of(folder.write("cut.parquet", bytes.substr(0, bytes.size() / 2)))); }, {"cut.parquet"});
}

TEST(TextReader, KnowsWhatLiesInThePlaceOfAText) {
  const Folder folder;
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
  for (const char* name : {"a.txt", "a.jsonl", "a.parquet", "a.txt.gz"}) {
    const fs::path path = folder.write(name, pointer);
    expect_error<DataError>([&] { (void)texts_of(options_of(path)); }, {path.string(), "git-lfs pointer", "git lfs pull"});
  }
  const fs::path page = folder.write("b.jsonl", "<!DOCTYPE html><html></html>");
  expect_error<DataError>([&] { (void)texts_of(options_of(page)); }, {page.string(), "a web page", "download it again"});
  EXPECT_EQ(texts_of(options_of(folder.write("c.txt", "<html>\n"))), std::vector<std::string>{"<html>\n"});
}

TEST(TextReader, RefusesLongTextsWhereTheyMayNotBeCut) {
  const Folder folder;
  const std::string text(5000, 'a');
  const std::string rows = "{\"text\": \"a\"}\n\n{\"text\": \"" + text + "\"}\n";
  struct Case {
    fs::path path;
    const char* row;
  };
  for (const auto& [path, row] : {Case{folder.write("a.txt", text), "row 1"}, Case{folder.write("a.txt.gz", gzip(text)), "row 1"},
                                  Case{folder.write("a.txt.zst", zstd(text)), "row 1"}, Case{folder.write("a.jsonl", rows), "line 3"},
                                  Case{folder.write("a.jsonl.gz", gzip(rows)), "line 3"}}) {
    ReaderOptions options = options_of(path);
    options.cuts_long_texts = false;
    options.max_piece_bytes = 4999;
    expect_error<DataError>([&] { (void)texts_of(options); },
                            {path.string() + ": " + row, "a text of more than 4.9 KiB", "--max-document-size"});
    options.max_piece_bytes = 5000;
    EXPECT_EQ(texts_of(options).back(), text);
  }
}

TEST(TextReader, LeavesOutConversationsThatAreTooLong) {
  const Folder folder;
  const std::string content(600, 'a');
  const std::string row =
      R"({"messages": [{"role": "user", "content": ")" + content + R"("}, {"role": "assistant", "content": ")" + content + R"("}]})";
  ReaderOptions options = options_of(folder.write("a.jsonl", row + "\n"));
  options.rows = RowKind::chat;
  options.max_piece_bytes = 1200;
  EXPECT_EQ(texts_of(options).size(), 1U);
  options.max_piece_bytes = 1199;
  EXPECT_TRUE(texts_of(options).empty());
  options.bad_rows = BadRowPolicy::fail;
  expect_error<DataError>([&] { (void)texts_of(options); }, {"line 1: a conversation of more than 1.2 KiB, which cannot be cut"});
}

TEST(TextReader, DeepRowsAreMalformed) {
  const Folder folder;
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  const fs::path path = folder.write("a.jsonl", "{\"messages\": " + deep + "}\n{\"text\": \"a\", \"other\": " + deep + "}\n");
  EXPECT_EQ(texts_of(options_of(path)), std::vector<std::string>{"a"}) << "what is passed over may be as deep as it likes";
  ReaderOptions options = options_of(path);
  options.bad_rows = BadRowPolicy::fail;
  expect_error<DataError>([&] { (void)texts_of(options); }, {"line 1: more than 100 levels of lists and objects inside each other"});
}

// tests/golden/make_parquet.py: strings of every kind that Arrow has, and conversations as `datasets` stores them.
TEST(TextReader, ReadsEveryKindOfStringFromParquet) {
  if (!fs::exists(fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "libdistil_xlstm_parquet.so")) {
    GTEST_SKIP() << "libdistil_xlstm_parquet.so is not built: no pyarrow in the environment";
  }
  auto options = options_of(golden_directory() / "strings.parquet");
  for (const char* kind : {"string", "large_string", "string_view", "dictionary", "large_dictionary", "binary"}) {
    SCOPED_TRACE(kind);
    options.text_key = kind;
    EXPECT_EQ(texts_of(options), (std::vector<std::string>{"a", "b\xC3\xA9", "a"}));
  }
  options.prompt_key = "string_view";
  options.answer_key = "dictionary";
  options.rows = RowKind::chat;
  EXPECT_EQ(conversations_of(options).at(1), (Messages{{"user", "b\xC3\xA9"}, {"assistant", "b\xC3\xA9"}}));
  options.answer_key = "number";
  expect_error<DataError>([&] { texts_of(options); }, {"strings.parquet", "column 'number' is int64", "--answer-key"});
}

TEST(TextReader, ReadsMessagesFromParquet) {
  if (!fs::exists(fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "libdistil_xlstm_parquet.so")) {
    GTEST_SKIP() << "libdistil_xlstm_parquet.so is not built: no pyarrow in the environment";
  }
  for (const char* key : {"messages", "large", "text"}) {
    SCOPED_TRACE(key);
    auto options = options_of(golden_directory() / "messages.parquet");
    options.rows = RowKind::chat;
    options.messages_key = key;
    TextReader reader(options);
    const auto documents = read_all(reader);
    ASSERT_EQ(documents.size(), 2U);  // the third row is null
    EXPECT_EQ(reader.counts().malformed_rows, 1U);
    EXPECT_EQ(documents[0].conversation.messages.dump(),
              R"([{"role":"user","content":"q \"1\"\n"},)"
              R"({"role":"assistant","tool_calls":[{"name":"f","arguments":{"x":1,"y":[true,null]}}],"score":0.5}])");
    EXPECT_EQ(documents[1].conversation.messages.dump(),
              R"([{"role":"user","content":"u"},{"role":"assistant","content":"a","tool_calls":[],"score":2.0}])");
    EXPECT_EQ(documents[0].conversation.variables.dump(), R"({"tools":[{"name":"f"}]})");
    EXPECT_TRUE(documents[1].conversation.variables.is_null());
  }
}

}  // namespace
}  // namespace distil_xlstm::data
