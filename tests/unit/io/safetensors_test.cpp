// safetensors: what is written is read back; every kind of broken file is refused with its reason.
#include "io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/log.h"
#include "base/random.h"
#include "unit/io/io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::HasSubstr;

std::string with_length(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + data;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string error_for(const std::string& content) {
    write_text(path_, content);
    return error_of<DataError>([&] { SafetensorsFile file(path_); });
  }
  std::string header_error(const std::string& header, const std::string& data = "") { return error_for(with_length(header, data)); }

  TemporaryDirectory directory_;
  fs::path path_ = directory_ / "model.safetensors";
};

TEST_F(SafetensorsTest, RefusesDeepHeadersAndOtherFiles) {
  const std::string lists = std::string(100'000, '[') + std::string(100'000, ']');
  const std::string deep = R"({"a":{"dtype":"F32","shape":)" + lists + R"(,"data_offsets":[0,0]}})";
  EXPECT_THAT(header_error(deep), HasSubstr("the header has more than 100 levels of lists and objects inside each other"));
  EXPECT_THAT(error_for("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
              HasSubstr("model.safetensors: this is a git-lfs pointer, not the file itself: run `git lfs pull`"));
  EXPECT_THAT(error_for("<!doctype html><html>"), HasSubstr("this is a web page"));
  EXPECT_THAT(error_for("{\"error\":\"Entry not found\"}"), HasSubstr("this is a server's message"));
}

TEST_F(SafetensorsTest, RoundTrip) {
  const std::vector<uint8_t> bytes = {1, 2, 3};
  const std::vector<double> doubles = {1.5};
  const std::vector<float> floats = {1, 2, 3, 4, 5, 6};
  write_safetensors(path_,
                    {{"bytes \"quoted\" ü", DType::u8, {3}, std::as_bytes(std::span(bytes))},
                     {"floats", DType::f32, {2, 3}, std::as_bytes(std::span(floats))},
                     {"empty", DType::f32, {0, 7}, {}},
                     {"scalar", DType::f64, {}, std::as_bytes(std::span(doubles))}},
                    {{"format", "pt"}});
  const SafetensorsFile file(path_);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensors().size(), 4U);
  const std::byte* begin = file.tensors().front().bytes.data();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(begin) % 8, 0U);
  EXPECT_EQ(file.tensors().front().name, "scalar");  // wider types first
  EXPECT_EQ(file.at("floats").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_TRUE(std::ranges::equal(file.at("floats").bytes, std::as_bytes(std::span(floats))));
  EXPECT_EQ(file.at("bytes \"quoted\" ü").bytes.size(), 3U);
  EXPECT_TRUE(file.at("empty").bytes.empty());
  EXPECT_TRUE(file.at("scalar").shape.empty());
  EXPECT_EQ(file.find("none"), nullptr);
  EXPECT_THAT(error_of<DataError>([&] { (void)file.at("none"); }), HasSubstr("model.safetensors: tensor 'none' is missing"));
}

TEST_F(SafetensorsTest, WritesNothingThatItCouldNotRead) {
  const std::vector<float> floats = {1, 2};
  const auto bytes = std::as_bytes(std::span(floats));
  EXPECT_THAT(error_of<ValueError>([&] { write_safetensors(path_, {{"a", DType::f32, {2}, bytes}, {"a", DType::f32, {2}, bytes}}); }),
              HasSubstr("'a' is given twice"));
  EXPECT_THAT(error_of<ValueError>([&] { write_safetensors(path_, {{"a", DType::f32, {3}, bytes}}); }),
              HasSubstr("'a' [3] takes 12 bytes, 8 are given"));
  EXPECT_THAT(error_of<ValueError>([&] { write_safetensors(path_, {{"a", DType::q8_0, {32}, bytes}}); }),
              HasSubstr("Q8_0, which safetensors does not have"));
  EXPECT_THAT(error_of<ValueError>([&] { write_safetensors(path_, {{"__metadata__", DType::f32, {2}, bytes}}); }),
              HasSubstr("cannot be named"));
  EXPECT_THAT(error_of<IoError>([&] { write_safetensors(directory_ / "no" / "dir", {}); }), HasSubstr("cannot create it"));
}

TEST_F(SafetensorsTest, FullDisk) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  EXPECT_THAT(error_of<IoError>([&] { write_safetensors("/dev/full", {}); }), HasSubstr("No space left on device"));
}

TEST_F(SafetensorsTest, CutShort) {
  EXPECT_THAT(error_for(""), HasSubstr("the file has 0 bytes"));
  EXPECT_THAT(error_for("1234567"), HasSubstr("the file has 7 bytes"));
  const std::string whole = with_length(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678");
  for (size_t size = 8; size < whole.size(); ++size) {
    EXPECT_THAT(error_for(whole.substr(0, size)), HasSubstr(fmt::format("bytes, the file has {}: the download is incomplete", size)));
  }
  EXPECT_THAT(error_for(whole.substr(0, 63)), HasSubstr(fmt::format("header says {} bytes, the file has 63", whole.size())));
  EXPECT_THAT(error_for(whole + "9"), HasSubstr("1 bytes follow the last tensor"));
}

TEST_F(SafetensorsTest, BrokenHeaders) {
  EXPECT_THAT(error_for(std::string(8, '\xff')), HasSubstr("above the limit of 100000000"));
  EXPECT_THAT(header_error("{"), HasSubstr("the header is not JSON"));
  EXPECT_THAT(header_error("\xff{}"), HasSubstr("the header is not JSON"));
  EXPECT_THAT(header_error("[]"), HasSubstr("the header is not a JSON object"));
  EXPECT_THAT(header_error(R"({"x":1})"), HasSubstr("tensor 'x': its entry is not an object"));
  EXPECT_THAT(header_error(R"({"__metadata__":[]})"), HasSubstr("__metadata__ is not an object"));
  EXPECT_THAT(header_error(R"({"__metadata__":{"a":1}})"), HasSubstr("__metadata__ key 'a' is not a string"));
  EXPECT_THAT(
      header_error(R"({"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", "1234"),
      HasSubstr("tensor 'x' is in the header twice"));
}

TEST_F(SafetensorsTest, BrokenEntries) {
  EXPECT_THAT(header_error(R"({"x":{"shape":[],"data_offsets":[0,4]}})", "1234"), HasSubstr("'x': key 'dtype' is missing"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","data_offsets":[0,4]}})", "1234"), HasSubstr("'x': key 'shape' is missing"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[]}})", "1234"), HasSubstr("'x': key 'data_offsets' is missing"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}})", "1234"),
              HasSubstr("dtype 'F4' is not supported: F64, F32,"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":"1","data_offsets":[0,4]}})", "1234"), HasSubstr("shape is not a list"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "1234"),
              HasSubstr("shape holds -1, which is not a size"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", "1234"), HasSubstr("shape holds 1.5"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", "1234"),
              HasSubstr("which is not a size"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})"), HasSubstr("overflows"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "1234"), HasSubstr("begin <= end"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", "1234"),
              HasSubstr("data_offsets must be [begin, end]"));
  EXPECT_THAT(header_error(R"({"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,4]}})", "1234"),
              HasSubstr("F32 [2, 3] takes 24 bytes, its data_offsets hold 4"));
}

TEST_F(SafetensorsTest, BrokenLayouts) {
  const auto two = [](int begin, int end) {
    return fmt::format(
        R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
        end - begin, begin, end);
  };
  EXPECT_THAT(header_error(two(2, 8), "12345678"), HasSubstr("tensor 'b': its data begin at 2, where 4 is expected: it overlaps"));
  EXPECT_THAT(header_error(two(6, 8), "12345678"), HasSubstr("tensor 'b': its data begin at 6, where 4 is expected: there is a gap"));
  EXPECT_THAT(header_error(two(4, 7), "12345678"), HasSubstr("1 bytes follow the last tensor"));
  write_text(path_, with_length(two(4, 8), "12345678"));
  EXPECT_EQ(SafetensorsFile(path_).tensors().size(), 2U);
}

TEST_F(SafetensorsTest, ReadFloatTakesWholeRows) {
  std::vector<float> values(12);
  std::iota(values.begin(), values.end(), 0.0F);
  write_safetensors(
      path_, {{"x", DType::f32, {4, 3}, std::as_bytes(std::span(values))}, {"v", DType::f32, {12}, std::as_bytes(std::span(values))}});
  const std::shared_ptr<WeightSource> weights = open_safetensors_directory(directory_.path());
  std::vector<float> out(6, -1.0F);
  weights->read_float("x", 3, 9, out.data());
  EXPECT_EQ(out, (std::vector<float>{3, 4, 5, 6, 7, 8}));
  weights->read_float("v", 5, 7, out.data());
  EXPECT_EQ(out[0], 5.0F);
  weights->read_float("x", 6, 6, out.data());
  EXPECT_TRUE(weights->is_plain("x"));
  EXPECT_FALSE(weights->is_plain("y"));
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{1, 3}, {0, 4}, {-3, 3}, {6, 3}, {0, 15}}) {
    EXPECT_THAT(error_of<ValueError>([&, b = begin, e = end] { weights->read_float("x", b, e, out.data()); }),
                HasSubstr("the tensor has 12 in rows of 3"));
  }
  EXPECT_THAT(error_of<DataError>([&] { (void)weights->view("y"); }), HasSubstr("tensor 'y' is missing"));
}

class ShardsTest : public ::testing::Test {
 protected:
  void write_shard(const std::string& file, const std::string& tensor) {
    const float value = 1.0F;
    write_safetensors(directory_ / file, {{tensor, DType::f32, {1}, std::as_bytes(std::span(&value, 1))}});
  }
  void write_index(const std::string& content) { write_text(directory_ / "model.safetensors.index.json", content); }
  std::string error() {
    return error_of<DataError>([&] { open_safetensors_directory(directory_.path()); });
  }
  TemporaryDirectory directory_;
};

TEST_F(ShardsTest, Whole) {
  write_shard("one.safetensors", "a");
  write_shard("two.safetensors", "b");
  write_index(R"({"metadata": {"total_size": 8}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  const std::shared_ptr<WeightSource> weights = open_safetensors_directory(directory_.path());
  EXPECT_EQ(weights->names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(weights->contains("b"));
}

TEST_F(ShardsTest, Broken) {
  EXPECT_THAT(error(), HasSubstr("no model.safetensors and no model.safetensors.index.json"));
  write_index("[]");
  EXPECT_THAT(error(), HasSubstr("not a JSON object"));
  write_index("{}");
  EXPECT_THAT(error(), HasSubstr("key 'weight_map' is missing"));
  write_index(R"({"weight_map": {}})");
  EXPECT_THAT(error(), HasSubstr("weight_map is empty"));
  write_index(R"({"weight_map": {"a": "../one.safetensors"}})");
  EXPECT_THAT(error(), HasSubstr("'../one.safetensors' of tensor 'a' is not the name of a file in the same directory"));
  write_index(R"({"weight_map": {"a": "one.safetensors"}})");
  EXPECT_THAT(error(), HasSubstr("none of the 1 files that it names is there ('one.safetensors'): the download is incomplete"));
  write_index(R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  write_shard("two.safetensors", "b");
  EXPECT_THAT(error(), HasSubstr("1 of the 2 files that it names are missing ('one.safetensors'): the download is incomplete"));
  write_shard("other.safetensors", "a");
  EXPECT_THAT(error(),
              HasSubstr("'other.safetensors' is, which it does not name: the index belongs to other files, bring the one of these"));
  fs::remove(directory_ / "two.safetensors");
  write_index(R"({"weight_map": {"a": "one.safetensors"}})");
  write_shard("one.safetensors", "b");
  EXPECT_THAT(error(),
              HasSubstr("tensor 'a' is listed in model.safetensors.index.json, its shard 'one.safetensors' does not hold it: the index "
                        "belongs to other files"));
  write_shard("one.safetensors", "a");
  write_shard("two.safetensors", "a");
  write_index(R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  EXPECT_THAT(error(), HasSubstr("tensor 'a' is in two of its files"));
}

TEST_F(ShardsTest, AFileMayHoldTheChecksumOfItsData) {
  const std::vector<float> values = {1.0F, 2.0F};
  const auto bytes = std::as_bytes(std::span(values));
  const fs::path path = directory_ / "model.safetensors";
  write_safetensors(path, {{"half", DType::f16, {2}, bytes.first(4)}, {"a", DType::f32, {2}, bytes}}, {{"format", "pt"}}, true);
  EXPECT_EQ(SafetensorsFile(path).metadata().count("data_xxh3"), 1U);
  EXPECT_EQ(open_safetensors_directory(directory_.path())->names().size(), 2U);
  std::string damaged = read_file(path);
  damaged.back() = static_cast<char>(damaged.back() ^ 0x40);
  write_text(path, damaged);
  EXPECT_THAT(error(), HasSubstr("model.safetensors: XXH3-64 of its data is"));
}

// transformers 5 takes the single file (modeling_utils.py, _get_resolved_checkpoint_files), and so do we, not in silence.
TEST_F(ShardsTest, ASingleFileBesideAnIndex) {
  write_shard("model.safetensors", "a");
  write_shard("one.safetensors", "b");
  write_index(R"({"weight_map": {"b": "one.safetensors"}})");
  ::testing::internal::CaptureStderr();
  init_logging();
  EXPECT_EQ(open_safetensors_directory(directory_.path())->names(), std::vector<std::string>{"a"});
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("model.safetensors.index.json beside it names other files, which are not"));
  write_index(R"({"weight_map": {"a": "model.safetensors"}})");
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(open_safetensors_directory(directory_.path())->names(), std::vector<std::string>{"a"});
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  for (const char* unreadable : {"{}", "", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"}) {
    write_index(unreadable);
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(open_safetensors_directory(directory_.path())->names(), std::vector<std::string>{"a"});
    EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("the index beside it is not needed and cannot be read"));
  }
}

// Valid files with a few bytes changed: read or refused with a DataError, never anything else.
TEST_F(SafetensorsTest, MutationsNeverCrash) {
  const std::string valid = with_length(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})",
      "12345678abcdef");
  Random random(7);
  int refused = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string content = valid;
    const uint64_t changes = 1 + random.below(3);
    for (uint64_t i = 0; i < changes; ++i) {
      const size_t at = random.below(content.size());
      switch (random.below(4)) {
        case 0:
          content[at] = static_cast<char>(random.below(256));
          break;
        case 1:
          content[at] = static_cast<char>('0' + random.below(10));
          break;
        case 2:
          content.erase(at, 1 + random.below(4));
          break;
        default:
          content.insert(at, 1, "\",:[]{}-e."[random.below(10)]);
      }
    }
    write_text(path_, content);
    try {
      const SafetensorsFile file(path_);
      for (const TensorView& tensor : file.tensors()) {
        std::vector<float> out(static_cast<size_t>(tensor.num_elements()));
        read_rows(tensor, 0, tensor.num_elements(), out.data(), "x");
      }
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 4000);
}

}  // namespace
}  // namespace distil_xlstm::io
