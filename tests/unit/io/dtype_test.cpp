// Element types: sizes, names, and conversion to float bit for bit.
#include "io/dtype.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "io/safetensors.h"
#include "support/source_directory.h"
#include "unit/io/io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::HasSubstr;

template <typename T>
std::vector<float> as_floats(DType dtype, const std::vector<T>& values) {
  std::vector<float> out(values.size());
  to_float(dtype, std::as_bytes(std::span(values)), out.data());
  return out;
}

bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

TEST(DTypeTest, EveryHalfAndBfloat16) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  const std::vector<float> halves = as_floats(DType::f16, all);
  const std::vector<float> brains = as_floats(DType::bf16, all);
  for (size_t i = 0; i < all.size(); ++i) {
    const float half = half_to_float(all[i]);
    ASSERT_TRUE(same_bits(halves[i], half) || (std::isnan(halves[i]) && std::isnan(half))) << "half " << i;
    ASSERT_TRUE(same_bits(brains[i], bfloat16_to_float(all[i]))) << "bfloat16 " << i;
  }
}

TEST(DTypeTest, PlainTypesOfOddLengths) {
  for (const size_t count : {0U, 1U, 255U, 256U, 257U, 1000U}) {
    std::vector<double> doubles(count);
    std::vector<int16_t> shorts(count);
    std::vector<int64_t> longs(count);
    std::vector<float> expected(count);
    for (size_t i = 0; i < count; ++i) {
      expected[i] = static_cast<float>(i) - 300.0F;
      doubles[i] = expected[i];
      shorts[i] = static_cast<int16_t>(expected[i]);
      longs[i] = static_cast<int64_t>(expected[i]);
    }
    EXPECT_EQ(as_floats(DType::f64, doubles), expected);
    EXPECT_EQ(as_floats(DType::f32, expected), expected);
    EXPECT_EQ(as_floats(DType::i16, shorts), expected);
    EXPECT_EQ(as_floats(DType::i64, longs), expected);
  }
  EXPECT_EQ(as_floats(DType::i8, std::vector<int8_t>{-128, 127}), (std::vector<float>{-128.0F, 127.0F}));
  EXPECT_EQ(as_floats(DType::u8, std::vector<uint8_t>{0, 255}), (std::vector<float>{0.0F, 255.0F}));
  EXPECT_EQ(as_floats(DType::boolean, std::vector<uint8_t>{0, 1, 2}), (std::vector<float>{0.0F, 1.0F, 1.0F}));
  EXPECT_EQ(as_floats(DType::i32, std::vector<int32_t>{-7}), std::vector<float>{-7.0F});
}

TEST(DTypeTest, UnalignedElements) {
  std::vector<std::byte> bytes(1 + 3 * sizeof(double));
  const std::vector<double> values = {1.5, -2.25, 1e30};
  std::memcpy(bytes.data() + 1, values.data(), 3 * sizeof(double));
  std::vector<float> out(3);
  to_float(DType::f64, std::span(bytes).subspan(1), out.data());
  EXPECT_EQ(out, (std::vector<float>{1.5F, -2.25F, 1e30F}));
}

// Blocks of random bytes and of quantised random numbers, values by the Python package gguf: tests/golden/make_gguf.py.
class QuantizedTest : public ::testing::TestWithParam<DType> {};

TEST_P(QuantizedTest, EqualsGoldenValues) {
  const SafetensorsFile golden(golden_directory() / "gguf_blocks.safetensors");
  const DTypeTraits type = traits(GetParam());
  const TensorView& blocks = golden.at(std::string(type.name) + ".blocks");
  const TensorView& values = golden.at(std::string(type.name) + ".values");
  ASSERT_EQ(blocks.shape, (std::vector<int64_t>{values.shape[0], static_cast<int64_t>(type.block_bytes)}));
  ASSERT_EQ(values.shape[1], static_cast<int64_t>(type.block_elements));
  ASSERT_GE(blocks.shape[0], 5);
  std::vector<float> expected(static_cast<size_t>(values.num_elements())), actual(expected.size());
  to_float(DType::f32, values.bytes, expected.data());
  to_float(GetParam(), blocks.bytes, actual.data());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_TRUE(same_bits(expected[i], actual[i]) || expected[i] == actual[i])
        << type.name << " element " << i << ": " << actual[i] << ", not " << expected[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedTest,
                         ::testing::Values(DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q4_k, DType::q5_k,
                                           DType::q6_k),
                         [](const auto& info) { return std::string(traits(info.param).name); });

TEST(DTypeTest, Sizes) {
  EXPECT_EQ(storage_bytes(DType::f32, 3), 12U);
  EXPECT_EQ(storage_bytes(DType::q4_k, 512), 288U);
  EXPECT_THAT(error_of<DataError>([] { storage_bytes(DType::q8_0, 33); }), HasSubstr("must be a multiple of its block of 32"));
  EXPECT_THAT(error_of<DataError>([] { storage_bytes(DType::f64, size_t{1} << 61); }), HasSubstr("overflows"));
  EXPECT_EQ(checked_elements(std::vector<int64_t>{}, "x"), 1U);
  EXPECT_EQ(checked_elements(std::vector<int64_t>{int64_t{1} << 40, 0, int64_t{1} << 40}, "x"), 0U);
  EXPECT_THAT(error_of<DataError>([] { checked_elements(std::vector<int64_t>{int64_t{1} << 31, int64_t{1} << 31}, "x"); }),
              HasSubstr("x: the product of its dimensions overflows"));
  EXPECT_THAT(error_of<DataError>([] { checked_elements(std::vector<int64_t>{-1}, "x"); }), HasSubstr("a dimension is -1"));
}

TEST(DTypeTest, Names) {
  EXPECT_EQ(dtype_from_name("BF16", "x"), DType::bf16);
  EXPECT_EQ(dtype_from_name("BOOL", "x"), DType::boolean);
  for (const char* wrong : {"F8_E4M3", "Q8_0", "f32", ""}) {
    EXPECT_THAT(error_of<DataError>([&] { dtype_from_name(wrong, "file"); }),
                HasSubstr(std::string("file: dtype '") + wrong + "' is not supported"));
  }
}

}  // namespace
}  // namespace distil_xlstm::io
