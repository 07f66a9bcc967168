#include "base/text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <span>

#include "base/error.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/printable.h"
#include "base/random.h"

namespace distil_xlstm {
namespace {

TEST(Text, FormatsCountsBytesAndDurations) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1234567), "1.23 M");
  EXPECT_EQ(format_count(99960), "100 k");
  EXPECT_EQ(format_bytes(1610612736), "1.5 GiB");
  EXPECT_EQ(format_bytes(12), "12 B");
  EXPECT_EQ(format_duration(3725), "1 h 02 min");
  EXPECT_EQ(format_duration(59.6), "1 min 00 s");
  EXPECT_EQ(format_duration(2.25), "2.2 s");
  EXPECT_EQ(format_parameters(551107656), "551.1 M");
}

TEST(Text, ParsesCountsWithUnits) {
  EXPECT_EQ(parse_count("512M", "max_tokens"), 512000000);
  EXPECT_EQ(parse_count("1.5k", "max_tokens"), 1500);
  EXPECT_EQ(parse_count("4096", "max_tokens"), 4096);
  EXPECT_EQ(parse_count("16.4M", "max_tokens"), 16400000) << "in binary a little less";
  EXPECT_EQ(parse_count("1.1k", "max_tokens"), 1100);
  EXPECT_EQ(parse_count("0.3G", "max_tokens"), 300000000);
  for (const char* bad : {"", "M", "1.0001k", "4096.00001", "-3", "12q", "1e300", "nan"})
    EXPECT_THROW(parse_count(bad, "max_tokens"), ValueError) << bad;
}

TEST(Text, EscapesWhatATerminalWouldActOn) {
  EXPECT_EQ(printable("plain ü 日本 \xF0\x9F\x98\x80"), "plain ü 日本 \xF0\x9F\x98\x80");
  EXPECT_EQ(printable("a\nb\tc\rd"), "a\\nb\\tc\\rd");
  EXPECT_EQ(printable("a\nb\tc", true), "a\nb\\tc");
  EXPECT_EQ(printable("\x1b]0;title\x07"), "\\x1b]0;title\\x07");
  EXPECT_EQ(printable(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(printable("\x7f"), "\\x7f");
  EXPECT_EQ(printable("\xC2\x9B"
                      "31m"),
            "\\x9b31m")
      << "an escape sequence of one character";
  EXPECT_EQ(printable("\xC2\xA0"), "\xC2\xA0");
  EXPECT_EQ(printable("\xE2\x80\xAE"
                      "cod.exe"),
            "\\u202ecod.exe")
      << "text from right to left";
  EXPECT_EQ(printable("a\xff"
                      "b"),
            "a\xEF\xBF\xBD"
            "b");
}

TEST(Text, SuggestsTheNearestName) {
  EXPECT_EQ(nearest_name(std::string(10'000'000, 'a'), {"learning_rate"}), std::nullopt);
  EXPECT_EQ(nearest_name("learning_rat", {"learning_rate", "schedule"}), "learning_rate");
  EXPECT_EQ(nearest_name("zzz", {"learning_rate", "schedule"}), std::nullopt);
  EXPECT_EQ(did_you_mean("temprature", {"temperature"}), " (did you mean 'temperature'?)");
}

TEST(Text, FindsInvalidUtf8) {
  EXPECT_EQ(valid_utf8_prefix("plain"), 5U);
  EXPECT_EQ(valid_utf8_prefix("\xC3\xA9\xF0\x9F\x98\x80"), 6U);
  EXPECT_EQ(valid_utf8_prefix("a\xC3"), 1U);             // cut
  EXPECT_EQ(valid_utf8_prefix("\xC0\xAF"), 0U);          // overlong
  EXPECT_EQ(valid_utf8_prefix("\xED\xA0\x80"), 0U);      // surrogate
  EXPECT_EQ(valid_utf8_prefix("\xF4\x90\x80\x80"), 0U);  // beyond U+10FFFF
  EXPECT_EQ(replace_invalid_utf8("a\xFF"
                                 "b"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82"), "\xEF\xBF\xBD");
}

TEST(Half, RoundTripsEveryFiniteHalf) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = half_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    EXPECT_EQ(float_to_half(value), bits) << value;
  }
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(half_to_float(float_to_half(2049.0F)), 2048.0F);
  EXPECT_EQ(half_to_float(float_to_half(2051.0F)), 2052.0F);
  EXPECT_TRUE(std::isinf(half_to_float(float_to_half(65520.0F))));
  EXPECT_EQ(half_to_float(float_to_half(65519.0F)), 65504.0F);
  EXPECT_TRUE(std::isnan(half_to_float(float_to_half(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(bfloat16_to_float(float_to_bfloat16(1.00390625F)), 1.0F);
  EXPECT_EQ(bfloat16_to_float(float_to_bfloat16(1.01171875F)), 1.015625F);
  EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Hash, KnownDigests) {
  Sha256 sha;
  sha.update(std::as_bytes(std::span("abc", 3)));
  EXPECT_EQ(sha.hex_digest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string text(1000, 'x');
  Xxh3Stream stream;
  stream.update(std::as_bytes(std::span(text)).first(300));
  stream.update(std::as_bytes(std::span(text)).subspan(300));
  EXPECT_EQ(stream.digest(), xxh3_64(std::as_bytes(std::span(text))));
}

TEST(Random, ResumesFromItsPosition) {
  Random first(7, 3);
  for (int i = 0; i < 10; ++i) first.next();
  Random second(7, 3, first.position());
  EXPECT_EQ(first.next(), second.next());
  EXPECT_NE(Random(7, 3).next(), Random(7, 4).next());
}

TEST(Random, HasTheMomentsOfItsDistributions) {
  Random random(1);
  double sum = 0, square = 0, uniform = 0;
  constexpr int kCount = 200000;
  for (int i = 0; i < kCount; ++i) {
    const double value = random.normal();
    sum += value;
    square += value * value;
    uniform += random.uniform();
  }
  EXPECT_NEAR(sum / kCount, 0.0, 0.01);
  EXPECT_NEAR(square / kCount, 1.0, 0.02);
  EXPECT_NEAR(uniform / kCount, 0.5, 0.005);
}

TEST(Random, PermutationHoldsEveryIndexOnce) {
  const auto order = permutation(1000, 5, 1);
  std::vector<bool> seen(1000, false);
  for (const uint64_t index : order) {
    ASSERT_LT(index, 1000U);
    EXPECT_FALSE(seen[index]);
    seen[index] = true;
  }
  EXPECT_NE(order, permutation(1000, 5, 2));
  EXPECT_EQ(order, permutation(1000, 5, 1));
}

}  // namespace
}  // namespace distil_xlstm
