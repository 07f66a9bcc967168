// JSON and CBOR: how deep they may go, and what messages quote of them.
#include "base/json_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/foreign_content.h"

namespace distil_xlstm {
namespace {

using ::testing::HasSubstr;

std::string lists(size_t levels) {
  return std::string(levels, '[') + std::string(levels, ']');
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

// An object that keeps the order of its keys would take minutes for some hundred thousand of them.
TEST(Json, ObjectsHaveABoundedNumberOfKeys) {
  const auto object = [](size_t keys) {
    std::string text = "{\"l\": [1, \",{\", 2]";
    for (size_t i = 1; i < keys; ++i) text += fmt::format(",\"k{}\":{{}}", i);
    return text + "}";
  };
  EXPECT_EQ(parse_json(object(kMaxOrderedKeys), "x").size(), kMaxOrderedKeys);
  EXPECT_THAT(error_of([&] { (void)parse_json(object(kMaxOrderedKeys + 1), "a.json"); }),
              ::testing::HasSubstr("a.json: an object of more than 20000 keys"));
  EXPECT_EQ(parse_unordered_json(object(kMaxOrderedKeys + 1), "x").size(), kMaxOrderedKeys + 1);
  std::string list = "[0";
  for (size_t i = 0; i < 2 * kMaxOrderedKeys; ++i) list += ",{\"a\":1}";
  EXPECT_NO_THROW((void)parse_json(list + "]", "x"));
}

TEST(Json, ReadsAsManyLevelsAsItSays) {
  EXPECT_NO_THROW((void)parse_json(lists(kMaxJsonDepth), "x"));
  EXPECT_EQ(
      error_of([] { (void)parse_json(lists(kMaxJsonDepth + 1), "a.json"); }),
      "a.json: more than 100 levels of lists and objects inside each other (at byte 100): no file that this program reads needs them");
  EXPECT_THAT(error_of([] { (void)parse_unordered_json(R"({"a":)" + lists(100000) + "}", "a.json"); }), HasSubstr("at byte 104"));
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += R"({"a":)";
  EXPECT_THAT(error_of([&] { (void)parse_json(objects, "a.json"); }), HasSubstr("more than 100 levels"));
}

TEST(Json, BracketsInStringsAreNoLevels) {
  const std::string text = R"({"a \" [[": ")" + std::string(1000, '[') + R"(\\", "b": 1})";
  EXPECT_EQ(parse_json(text, "x")["b"], 1);
  const std::string wide = "[" + std::string(1000, ' ') + "[],[],{}" + "]";
  EXPECT_EQ(parse_json(wide, "x").size(), 3U);
  std::string many = "[";
  for (int i = 0; i < 1000; ++i) many += "[[]],";
  EXPECT_EQ(parse_json(many + "0]", "x").size(), 1001U);
}

TEST(Json, WhatIsNotJsonIsToldWithItsPlace) {
  EXPECT_THAT(error_of([] { (void)parse_json("{\"a\": }", "a.json"); }), HasSubstr("a.json: not JSON at byte 7"));
  EXPECT_THAT(error_of([] { (void)parse_json("[1e400]", "a.json"); }), HasSubstr("a.json: not JSON: number overflow"));
  EXPECT_THAT(error_of([] { (void)parse_json("\"[[[[", "a.json"); }), HasSubstr("not JSON"));
}

TEST(Json, FindsAKeyThatStandsTwice) {
  EXPECT_EQ(repeated_key(R"({"a": {"b": 1, "b": 2}, "b": [{"a": 1}]})"), std::nullopt) << "only the outermost object's";
  EXPECT_EQ(repeated_key(R"({"a": 1, "b": {"c": 1}, "\u0061": 2})"), "a");
  EXPECT_EQ(repeated_key("[1, 2]"), std::nullopt);
}

TEST(Cbor, ReadsWhatWasWritten) {
  const json value = {{"text", "ü"}, {"list", {1, -2, 3.5, nullptr, true}}, {"blob", json::binary({0x7f, 0x5f, 0xff})}};
  const auto bytes = json::to_cbor(value);
  EXPECT_EQ(parse_cbor({reinterpret_cast<const char*>(bytes.data()), bytes.size()}), value);
}

TEST(Cbor, DiscardsWhatIsDeepOrBroken) {
  EXPECT_TRUE(parse_cbor(std::string(100000, '\x81')).is_discarded()) << "lists of one";
  EXPECT_TRUE(parse_cbor(std::string(100000, '\x9f')).is_discarded()) << "lists of unknown length";
  EXPECT_TRUE(parse_cbor(std::string(100000, '\xa1')).is_discarded()) << "objects as keys";
  EXPECT_TRUE(parse_cbor(std::string(100000, '\x7f')).is_discarded()) << "strings in strings";
  EXPECT_TRUE(parse_cbor("\x81" + std::string(1000000, '\x5f')).is_discarded()) << "blobs in blobs";
  EXPECT_TRUE(parse_cbor("").is_discarded());
  EXPECT_TRUE(parse_cbor("\x82\x01").is_discarded());
}

TEST(ForeignContent, IsNamedWithTheRemedy) {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + std::string(64, '0') + "\nsize 476904\n";
  for (const auto kind : {ContentKind::binary, ContentKind::json, ContentKind::rows, ContentKind::text}) {
    EXPECT_THAT(foreign_content(pointer, kind), HasSubstr("a git-lfs pointer, not the file itself: run `git lfs pull`"));
    EXPECT_EQ(foreign_content("", kind), "");
    EXPECT_EQ(foreign_content("   \n", kind), "");
  }
  EXPECT_EQ(foreign_content(pointer + std::string(2000, 'a'), ContentKind::text), "") << "a text about pointers";
  for (const char* page : {"<!DOCTYPE html>\n<html>", " \n<!doctype HTML>", "<HTML lang=en>", "\xEF\xBB\xBF<html>"}) {
    EXPECT_THAT(foreign_content(page, ContentKind::binary), HasSubstr("a web page")) << page;
    EXPECT_THAT(foreign_content(page, ContentKind::rows), HasSubstr("download it again")) << page;
    EXPECT_EQ(foreign_content(page, ContentKind::text), "") << "texts may be web pages";
  }
  EXPECT_THAT(foreign_content("<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", ContentKind::json), HasSubstr("an XML page"));
  EXPECT_THAT(foreign_content(R"({"error":"Repository not found"})", ContentKind::json),
              HasSubstr(R"(a server's message, not the file itself ({"error":"Repository not found"}): download it again)"));
  EXPECT_EQ(foreign_content(R"({"error": 1})", ContentKind::rows), "") << "rows may hold anything";
  EXPECT_EQ(foreign_content(R"({"architectures": []})", ContentKind::json), "");
}

}  // namespace
}  // namespace distil_xlstm
