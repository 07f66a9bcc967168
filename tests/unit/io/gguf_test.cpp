// The GGUF container: metadata and tensors read, every kind of broken file refused with its reason.
#include "io/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/random.h"
#include "io/gguf_model.h"
#include "unit/io/gguf_testing.h"
#include "unit/io/io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::HasSubstr;

class GgufTest : public ::testing::Test {
 protected:
  GgufFile open(const std::string& content) {
    write_text(path_, content);
    return GgufFile(path_);
  }
  std::string error_for(const std::string& content) {
    return error_of<DataError>([&] { open(content); });
  }

  TemporaryDirectory directory_;
  fs::path path_ = directory_ / "model.gguf";
};

TEST_F(GgufTest, EveryTypeOfMetadata) {
  using B = GgufBuilder;
  GgufBuilder builder;
  builder.pair("u8", 0, B::raw<uint8_t>(200)).pair("i8", 1, B::raw<int8_t>(-3)).pair("u16", 2, B::raw<uint16_t>(60000));
  builder.pair("i16", 3, B::raw<int16_t>(-300)).size("u32", 4000000000U).pair("i32", 5, B::raw<int32_t>(-70000)).number("f32", 1e-5F);
  builder.flag("bool", true).string("string", "text").pair("u64", 10, B::u64(1)).pair("huge", 10, B::u64(UINT64_MAX));
  builder.pair("i64", 11, B::raw<int64_t>(-1)).pair("f64", 12, B::raw(0.1)).strings("strings", {"a", "", "ü"});
  builder.integers("integers", {1, -2}).floats("floats", {0.5F}).pair("flags", 9, B::u32(7) + B::u64(2) + std::string("\x01\x00", 2));
  for (const uint32_t version : {2U, 3U}) {
    const GgufFile file = open(builder.build(version));
    EXPECT_EQ(file.require<int64_t>("u8"), 200);
    EXPECT_EQ(file.require<int64_t>("i8"), -3);
    EXPECT_EQ(file.require<int64_t>("u16"), 60000);
    EXPECT_EQ(file.require<int64_t>("i16"), -300);
    EXPECT_EQ(file.require<int64_t>("u32"), 4000000000);
    EXPECT_EQ(file.require<int64_t>("i32"), -70000);
    EXPECT_EQ(file.require<int64_t>("u64"), 1);
    EXPECT_EQ(file.require<double>("huge"), 18446744073709551616.0);
    EXPECT_EQ(file.require<int64_t>("i64"), -1);
    EXPECT_EQ(file.require<double>("f32"), 1e-5);  // not the 9.99999974738e-06 of the float
    EXPECT_EQ(file.require<double>("f64"), 0.1);
    EXPECT_TRUE(file.require<bool>("bool"));
    EXPECT_EQ(file.require<std::string>("string"), "text");
    EXPECT_EQ(file.require<std::vector<std::string>>("strings"), (std::vector<std::string>{"a", "", "ü"}));
    EXPECT_EQ(file.require<std::vector<int64_t>>("integers"), (std::vector<int64_t>{1, -2}));
    EXPECT_EQ(file.require<std::vector<double>>("floats"), std::vector<double>{0.5});
    EXPECT_EQ(file.require<std::vector<int64_t>>("flags"), (std::vector<int64_t>{1, 0}));
    EXPECT_THAT(error_of<DataError>([&] { (void)file.require<int64_t>("none"); }), HasSubstr("metadata key 'none' is missing"));
    EXPECT_THAT(error_of<DataError>([&] { (void)file.require<int64_t>("bool"); }), HasSubstr("metadata key 'bool' has another type"));
  }
}

TEST_F(GgufTest, TensorsAreViews) {
  const std::string two_rows = std::string("abcdefgh") + std::string("ijklmnop");
  GgufBuilder builder;
  builder.tensor("a", {2, 2}, 0, two_rows, 0).tensor("b", {32}, 8, std::string(34, 'x'), 32);
  const GgufFile file = open(builder.build());
  ASSERT_EQ(file.tensors().size(), 2U);
  EXPECT_EQ(file.find("a")->shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(std::memcmp(file.find("a")->bytes.data(), two_rows.data(), 16), 0);
  EXPECT_EQ(file.find("b")->dtype, DType::q8_0);
  EXPECT_EQ(file.find("b")->bytes.size(), 34U);
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST_F(GgufTest, CutAnywhere) {
  const std::string whole = tiny_llama().strings("names", {"one", "two"}).build();
  for (size_t size = 0; size < whole.size(); ++size) {
    ASSERT_THAT(error_for(whole.substr(0, size)), HasSubstr("the download is incomplete")) << size;
  }
  EXPECT_NO_THROW(open(whole));
}

TEST_F(GgufTest, BrokenHeaders) {
  using B = GgufBuilder;
  EXPECT_THAT(error_for("GGML" + std::string(30, '\0')), HasSubstr("does not begin with 'GGUF'"));
  EXPECT_THAT(error_for(GgufBuilder().build(1)), HasSubstr("GGUF version 1, which is not supported: 2 and 3 are"));
  EXPECT_THAT(error_for(GgufBuilder().build(4)), HasSubstr("GGUF version 4"));
  EXPECT_THAT(error_for(GgufBuilder().build(3U << 24)), HasSubstr("big-endian"));
  EXPECT_THAT(error_for(GgufBuilder().size("a", 1).size("a", 2).build()), HasSubstr("metadata key 'a' is there twice"));
  EXPECT_THAT(error_for(GgufBuilder().size("\xff", 1).build()), HasSubstr("a metadata key before byte"));
  EXPECT_THAT(error_for(GgufBuilder().pair("a", 13, "").build()), HasSubstr("metadata key 'a' has the unknown type 13"));
  EXPECT_THAT(error_for(GgufBuilder().pair("a", 9, B::u32(9) + B::u64(0)).build()), HasSubstr("metadata key 'a' is an array of type 9"));
  EXPECT_THAT(error_for(GgufBuilder().pair("a", 9, B::u32(0) + B::u64(UINT64_MAX)).build()),
              HasSubstr("the header goes on after the file's"));
  EXPECT_THAT(error_for(GgufBuilder().pair("a", 9, B::u32(8) + B::u64(1ULL << 61)).build()),
              HasSubstr("the header goes on after the file's"));
  EXPECT_THAT(error_for(GgufBuilder().pair("a", 8, B::u64(UINT64_MAX)).build()), HasSubstr("the header goes on after the file's"));
  for (const uint32_t alignment : {0U, 4U, 12U, 1U << 30}) {
    EXPECT_THAT(error_for(GgufBuilder().size("general.alignment", alignment).build()), HasSubstr("which is no alignment"));
  }
}

TEST_F(GgufTest, BrokenTensors) {
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {}, 0, 4).build()), HasSubstr("tensor 'a' has 0 dimensions"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {1, 1, 1, 1, 1}, 0, 4).build()), HasSubstr("tensor 'a' has 5 dimensions"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {UINT64_MAX}, 0, 4).build()), HasSubstr("a dimension is -1"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {1ULL << 40, 1ULL << 40}, 0, 4).build()), HasSubstr("overflows"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {48}, 8, 51).build()), HasSubstr("rows of 48 do not divide into Q8_0's blocks of 32"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {256}, 10, 84).build()),
              HasSubstr("tensor 'a' has type Q2_K, which is not supported: F32, F16, Q4_0"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {256}, 23, 84).build()), HasSubstr("type IQ4_XS"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {256}, 999, 84).build()), HasSubstr("type number 999"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {1}, 0, 4).tensor("a", {1}, 0, 4).build()), HasSubstr("tensor 'a' is there twice"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {1}, 0, "1234", 32).build()), HasSubstr("its data begin at 32, where 0 is expected"));
  EXPECT_THAT(error_for(GgufBuilder().tensor("a", {1}, 0, 4).tensor("b", {1}, 0, "1234", 0).build()),
              HasSubstr("its data begin at 0, where 32 is expected"));
}

// Valid files with a few bytes changed: opened or refused with a DataError, never anything else.
TEST_F(GgufTest, MutationsNeverCrash) {
  const std::string valid = tiny_llama()
                                .string("tokenizer.ggml.model", "gpt2")
                                .string("tokenizer.ggml.pre", "gpt-2")
                                .strings("tokenizer.ggml.tokens", {"a", "b", "ab"})
                                .strings("tokenizer.ggml.merges", {"a b"})
                                .integers("tokenizer.ggml.token_type", {1, 1, 3})
                                .tensor("blk.0.attn_q.weight", {4, 4}, 1, 32)
                                .tensor("output_norm.weight", {32}, 2, 18)
                                .build();
  Random random(11);
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
          content[at] = static_cast<char>(random.below(16));
          break;
        case 2:
          content[at] = '\xff';
          break;
        default:
          content.erase(at, 1 + random.below(8));
      }
    }
    write_text(path_, content);
    try {
      const ModelFiles model = open_gguf_model(path_);
      for (const std::string& name : model.weights->names()) {
        const int64_t count = model.weights->view(name).num_elements();
        std::vector<float> out(static_cast<size_t>(count));
        model.weights->read_float(name, 0, count, out.data());
      }
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 2000);
  EXPECT_LT(refused, 5000);
}

}  // namespace
}  // namespace distil_xlstm::io
