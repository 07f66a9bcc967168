#include "config/names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "config/choices.h"

namespace distil_xlstm::config {
namespace {

template <typename E>
class Names : public ::testing::Test {};

using Enums = ::testing::Types<BlocksRule, HeadsRule, SlstmRule, Activation, BiasInit, RecurrentWeightInit, SlstmLayout, DocumentIsolation,
                               DecayMode, LossVocabulary, Combine, Divergence, Boundary, AlignmentKind, AlignmentDistance, LayerState,
                               AlignmentState, AlignmentScope, Checkpointing, LearningRateSchedule>;
TYPED_TEST_SUITE(Names, Enums);

// The compiler writes a value without an enumerator as a cast: "(Combine)2".
template <auto value>
constexpr bool is_enumerator() {
  const std::string_view text = __PRETTY_FUNCTION__;
  return text.find("value = (") == std::string_view::npos;
}
static_assert(is_enumerator<Combine::additive>() && !is_enumerator<static_cast<Combine>(99)>());

TYPED_TEST(Names, EveryValueHasExactlyOne) {
  constexpr size_t kCount = kNames<TypeParam>.size();
  [&]<size_t... i>(std::index_sequence<i...>) {
    static_assert((is_enumerator<static_cast<TypeParam>(i)>() && ...), "a name without a value");
  }(std::make_index_sequence<kCount>());
  static_assert(!is_enumerator<static_cast<TypeParam>(kCount)>(), "a value without a name");
  const auto names = names_of<TypeParam>();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), kCount);
  EXPECT_THAT(names, ::testing::Each(::testing::Not(::testing::IsEmpty())));
}

TYPED_TEST(Names, ParsingGivesTheValueOfTheName) {
  for (size_t i = 0; i < kNames<TypeParam>.size(); ++i) {
    const auto value = static_cast<TypeParam>(i);
    EXPECT_EQ(parse_name<TypeParam>(name_of(value), "key"), value);
  }
}

TYPED_TEST(Names, UnknownOnesAreRefused) {
  for (const char* text : {"", "no such name", "0"}) EXPECT_THROW((void)parse_name<TypeParam>(text, "key"), ConfigError);
}

TEST(NamesOf, AnUnknownNameSaysWhatThereIs) {
  const auto message = [](std::string_view text) -> std::string {
    try {
      (void)parse_name<AlignmentKind>(text, "distill.alignment.kind");
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message("averge"), "distill.alignment.kind = \"averge\": allowed are average, ratio, block_wise (did you mean 'average'?)");
  EXPECT_EQ(message("zebra-crossing"), "distill.alignment.kind = \"zebra-crossing\": allowed are average, ratio, block_wise");
}

}  // namespace
}  // namespace distil_xlstm::config
