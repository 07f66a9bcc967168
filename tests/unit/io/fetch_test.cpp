// The hub: what is brought, resumed, refused, and said.
#include <gmock/gmock.h>

#include <csignal>
#include <limits>

#include "base/output_lock.h"
#include "base/signals.h"
#include "fetch_testing.h"
#include "io/builtin.h"
#include "io/fetch.h"
#include "io/fetched_directory.h"
#include "io/hub.h"
#include "io/model_files.h"
#include "support/source_directory.h"

namespace distil_xlstm::io {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

const std::string kWeights = sample_content(300'000);
const std::string kListing = "/api/models/org/tiny/revision/main";

class HubTest : public FetchTest {
 protected:
  HubTest() {
    server_.repositories["models/org/tiny@main"] = {.files = {{"config.json", "{\"model_type\": \"llama\"}"},
                                                              {"tokenizer.json", "{}"},
                                                              {"model.safetensors", kWeights},
                                                              {"pytorch_model.bin", "twice"},
                                                              {"consolidated.safetensors", "twice"},
                                                              {"onnx/config.json", "other"},
                                                              {"README.md", ""},
                                                              {".gitattributes", "*"}},
                                                    .large = {"model.safetensors"}};
    hub_ = {.endpoint = server_.hub.url(), .token = "hf_secret", .retry = {.max_attempts = 4, .first_pause_seconds = 0.001}};
  }

  FetchResult fetch_tiny(const std::vector<std::string>& globs = {}) {
    return fetch_repository(hub_, RepositoryKind::model, repository_, globs);
  }
  fs::path directory() const { return folder_ / "cache" / "models" / "org--tiny" / "main"; }
  fs::path part() const { return directory().string() + ".incomplete/model.safetensors.incomplete"; }
  FakeHub::Repository& tiny() { return server_.repositories["models/org/tiny@main"]; }

  FakeHub server_;
  HubSettings hub_;
  RepositoryName repository_{"org", "tiny", "main"};
};

TEST_F(HubTest, BringsWhatAModelNeedsOnce) {
  const FetchResult result = fetch_tiny();
  EXPECT_EQ(result.directory, directory());
  EXPECT_EQ(result.commit, tiny().commit);
  EXPECT_EQ(result.num_files, 4u);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory())) names.push_back(entry.path().filename());
  EXPECT_THAT(names, UnorderedElementsAre("config.json", "tokenizer.json", "model.safetensors", "README.md", ".fetched.json"));
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
  EXPECT_EQ(read_file(directory() / "README.md"), "");
  EXPECT_FALSE(fs::exists(directory().string() + ".incomplete"));
  server_.hub.take_requests();
  EXPECT_EQ(fetch_tiny().downloaded_bytes, 0);
  EXPECT_THAT(paths_of(server_.hub.take_requests()), ElementsAre(kListing));
}

TEST_F(HubTest, BringsDamagedFilesAgain) {
  fetch_tiny();
  const fs::path weights = directory() / "model.safetensors";
  write_file_atomic(directory() / "notes.txt", "a user's");
  std::string flipped = kWeights;
  flipped[kWeights.size() / 2] ^= 1;
  for (const std::string& damage : {std::string(kWeights.substr(0, 100)), flipped, std::string()}) {
    write_file_atomic(weights, damage);
    if (damage.empty()) fs::remove(weights);
    EXPECT_EQ(fetch_tiny().downloaded_bytes, static_cast<int64_t>(kWeights.size()));
    EXPECT_EQ(read_file(weights), kWeights);
    EXPECT_EQ(read_file(directory() / "notes.txt"), "a user's");
    EXPECT_EQ(fetch_tiny().downloaded_bytes, 0);
  }
}

TEST_F(HubTest, AModelOfAnotherSizeThanWasFetchedIsNotOpened) {
  fetch_tiny();
  EXPECT_EQ(fetched_fault(directory()), "");
  fs::resize_file(directory() / "model.safetensors", 10);
  EXPECT_THAT(fetched_fault(directory()), HasSubstr("model.safetensors: 10 bytes, "));
  EXPECT_THAT(failure_of([] { open_model("org/tiny"); }),
              ::testing::AllOf(HasSubstr("model 'org/tiny': "), HasSubstr("bytes, "),
                               HasSubstr("run `distil-xlstm fetch org/tiny`, which brings it again, or give the "
                                         "directory's path to use it as it is")));
}

TEST_F(HubTest, RemovesWhatKilledCallsLeft) {
  fetch_tiny();
  fs::create_directories(directory().string() + ".incomplete");
  fs::create_directories(directory().string() + ".distil-xlstm-tmp-1-0");
  write_file_atomic(directory().parent_path() / ".main.distil-xlstm-lock", "1");
  EXPECT_EQ(fetch_tiny().downloaded_bytes, 0);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory().parent_path()), fs::directory_iterator()), 1);
  // Killed between the two renames of a file system without exchange.
  fs::rename(directory(), directory().string() + ".distil-xlstm-old-1-0");
  EXPECT_EQ(fetch_tiny().downloaded_bytes, 0);
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
}

TEST_F(HubTest, OneProcessAtATimeFetchesAModel) {
  const OutputLock lock(directory(), OutputLock::Place::beside);
  EXPECT_THAT(failure_of([&] { fetch_tiny(); }), HasSubstr(fmt::format("main: process {} is writing there", ::getpid())));
}

TEST_F(HubTest, WhatIsThereNeedsNoLock) {
  fetch_tiny();
  {
    const OutputLock lock(directory(), OutputLock::Place::beside);
    EXPECT_EQ(fetch_tiny().downloaded_bytes, 0);
    EXPECT_EQ(fetch_tiny().num_files, 4u);
    fs::remove(directory() / "tokenizer.json");
    EXPECT_THAT(failure_of([&] { fetch_tiny(); }), HasSubstr("is writing there"));
  }
  EXPECT_EQ(fetch_tiny().downloaded_bytes, 2);
  // A cache that cannot be written to (root may write all the same), with a leftover in it.
  fs::create_directories(directory().string() + ".incomplete");
  const fs::path parent = directory().parent_path();
  fs::permissions(parent, fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_EQ(failure_of([&] { EXPECT_EQ(fetch_tiny().downloaded_bytes, 0); }), "no error");
  fs::permissions(parent, fs::perms::owner_all);
}

TEST_F(HubTest, BringsAllThatATokenizerIsReadFrom) {
  tiny().files["added_tokens.json"] = R"({"<extra>": 7})";
  tiny().files["special_tokens_map.json"] = R"({"eos_token": "</s>"})";
  tiny().files["chat_template.jinja"] = "plain";
  tiny().files["additional_chat_templates/tool_use.jinja"] = "tools";
  tiny().files["additional_chat_templates/README.md"] = "";
  EXPECT_EQ(fetch_tiny().num_files, 8u);
  EXPECT_EQ(read_file(directory() / "additional_chat_templates" / "tool_use.jinja"), "tools");
  EXPECT_FALSE(fs::exists(directory() / "additional_chat_templates" / "README.md"));
  EXPECT_FALSE(fs::exists(directory() / "onnx"));
  for (const char* name : {"added_tokens.json", "special_tokens_map.json", "chat_template.jinja"}) {
    EXPECT_TRUE(fs::exists(directory() / name)) << name;
  }
  EXPECT_EQ(fetch_tiny().downloaded_bytes, 0);
}

TEST_F(HubTest, GivesTheTokenToTheHubAlone) {
  fetch_tiny();
  for (const httplib::Request& request : server_.hub.take_requests())
    EXPECT_EQ(request.get_header_value("Authorization"), "Bearer hf_secret");
  const auto stored = server_.storage.take_requests();
  ASSERT_EQ(stored.size(), 1u);
  EXPECT_FALSE(stored[0].has_header("Authorization"));
}

TEST_F(HubTest, ContinuesAfterTheConnectionBreaks) {
  server_.mischief.cuts = 2;
  fetch_tiny();
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
  const auto stored = server_.storage.take_requests();
  ASSERT_EQ(stored.size(), 3u);
  EXPECT_EQ(stored[0].get_header_value("Range"), "");
  EXPECT_EQ(stored[1].get_header_value("Range"), "bytes=150000-");
  EXPECT_EQ(stored[2].get_header_value("Range"), "bytes=225000-");
}

TEST_F(HubTest, ContinuesWhatAnEarlierRunLeft) {
  server_.mischief.cuts = 100;
  EXPECT_THAT(failure_of([&] { fetch_tiny(); }), HasSubstr("/stored/org/tiny/model.safetensors: "));
  EXPECT_FALSE(fs::exists(directory()));
  const auto left = fs::file_size(part());
  EXPECT_GT(left, kWeights.size() / 2);
  server_.mischief.cuts = 0;
  server_.storage.take_requests();
  server_.hub.take_requests();
  const FetchResult result = fetch_tiny();
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
  EXPECT_EQ(result.downloaded_bytes, static_cast<int64_t>(kWeights.size() - left + 2));  // and tokenizer.json
  EXPECT_EQ(server_.storage.take_requests().at(0).get_header_value("Range"), fmt::format("bytes={}-", left));
  EXPECT_THAT(paths_of(server_.hub.take_requests()), Not(::testing::Contains(HasSubstr("config.json"))));  // whole since the first run
}

TEST_F(HubTest, BeginsAnewWhenWhatIsLeftDoesNotFit) {
  fs::create_directories(part().parent_path());
  write_file_atomic(part(), std::string(1000, 'x'));
  fetch_tiny();
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
  fs::remove_all(directory());
  fs::create_directories(part().parent_path());
  write_file_atomic(part(), kWeights + "longer");
  fetch_tiny();
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
}

TEST_F(HubTest, BeginsAnewWhenTheServerKnowsNoRanges) {
  server_.mischief.cuts = 1;
  server_.mischief.ignores_ranges = true;
  fetch_tiny();
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
}

TEST_F(HubTest, DeletesACorruptDownload) {
  server_.mischief.corrupts = true;
  const std::string message = failure_of([&] { fetch_tiny(); });
  EXPECT_THAT(message, HasSubstr("the download is corrupt: its sha256 is "));
  EXPECT_THAT(message, HasSubstr(sha256_of(kWeights) + " is expected"));
  EXPECT_THAT(message, Not(HasSubstr("signature")));
  EXPECT_FALSE(fs::exists(part()));
  EXPECT_FALSE(fs::exists(directory()));
  server_.mischief.corrupts = false;
  fetch_tiny();
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
}

TEST_F(HubTest, ChecksSmallFilesByTheirGitId) {
  EXPECT_EQ(git_id_of("hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");  // as `git hash-object` says
  tiny().listing_override = {
      {"sha", tiny().commit},
      {"siblings", {{{"rfilename", "config.json"}, {"size", tiny().files["config.json"].size()}, {"blobId", git_id_of("other")}}}}};
  EXPECT_THAT(failure_of([&] { fetch_tiny({"*.json"}); }), HasSubstr("its git id is " + git_id_of(tiny().files["config.json"])));
}

TEST_F(HubTest, RefusesAnotherLengthThanListed) {
  const auto listed = [&](int64_t size) {
    tiny().listing_override = {
        {"sha", tiny().commit},
        {"siblings", {{{"rfilename", "model.safetensors"}, {"size", size}, {"lfs", {{"sha256", sha256_of(kWeights)}, {"size", size}}}}}}};
  };
  for (const int64_t size : {299'999, 300'001, 5}) {
    listed(size);
    EXPECT_THAT(failure_of([&] { fetch_tiny(); }), HasSubstr(fmt::format("the server has 300000 bytes, {} are expected", size)));
    EXPECT_FALSE(fs::exists(part()));
  }
}

TEST_F(HubTest, TriesAgainWhenTheServerIsBusy) {
  server_.mischief.failures = 3;
  fetch_tiny();
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
  fs::remove_all(directory());
  server_.mischief.failures = 4;
  EXPECT_THAT(failure_of([&] { fetch_tiny(); }), HasSubstr("the server answers 503"));
}

TEST_F(HubTest, SaysWhatRefusalsMean) {
  const auto refusal = [&](int status, const std::string& path) {
    server_.status_of_path = {{path, status}};
    return failure_of([&] { fetch_tiny(); });
  };
  EXPECT_THAT(refusal(401, kListing), HasSubstr("model 'org/tiny' is not there, or is private or gated, and the token is not valid"));
  EXPECT_THAT(refusal(403, kListing), HasSubstr("refuses access (403), the token is not valid or may not read it: accept its terms at"));
  EXPECT_THAT(refusal(404, kListing), HasSubstr("has no revision 'main', or is not there (404)"));
  EXPECT_THAT(refusal(418, kListing), HasSubstr("the server answers 418"));
  EXPECT_THAT(refusal(403, "/org/tiny/resolve/" + tiny().commit + "/config.json"), HasSubstr("accept its terms"));
  hub_.token.clear();
  EXPECT_THAT(refusal(401, kListing), HasSubstr("no token was given (401): check the name, and set HF_TOKEN"));
}

TEST_F(HubTest, BringsOnlyWhatChanged) {
  fetch_tiny();
  tiny().commit = "fedcba9876543210fedcba9876543210fedcba98";
  tiny().files["config.json"] = "{\"model_type\": \"qwen2\"}";
  server_.hub.take_requests();
  EXPECT_EQ(fetch_tiny().commit, tiny().commit);
  EXPECT_THAT(paths_of(server_.hub.take_requests()), ElementsAre(kListing, "/org/tiny/resolve/" + tiny().commit + "/config.json"));
  EXPECT_EQ(read_file(directory() / "config.json"), "{\"model_type\": \"qwen2\"}");
  EXPECT_EQ(read_file(directory() / "model.safetensors"), kWeights);
}

TEST_F(HubTest, LeavesNoFileOfAnotherCommit) {
  fetch_tiny();
  write_file_atomic(directory() / "notes.txt", "mine");
  tiny().commit = "fedcba9876543210fedcba9876543210fedcba98";
  tiny().files.erase("model.safetensors");
  tiny().files["model.safetensors.index.json"] = "{}";
  tiny().files["model-00001-of-00001.safetensors"] = "sharded";
  fetch_tiny();
  EXPECT_FALSE(fs::exists(directory() / "model.safetensors"));
  EXPECT_EQ(read_file(directory() / "model-00001-of-00001.safetensors"), "sharded");
  EXPECT_EQ(read_file(directory() / "tokenizer.json"), "{}");
  EXPECT_EQ(read_file(directory() / "notes.txt"), "mine");
  EXPECT_FALSE(read_json(directory() / ".fetched.json")["files"].contains("model.safetensors"));
  tiny().files.erase("tokenizer.json");  // nothing new to bring
  fetch_tiny();
  EXPECT_FALSE(fs::exists(directory() / "tokenizer.json"));
}

TEST_F(HubTest, LeavesNothingOfAnotherSelectionInTheResult) {
  server_.mischief.cuts = 100;
  failure_of([&] { fetch_tiny(); });
  server_.mischief.cuts = 0;
  ASSERT_TRUE(fs::exists(part()));
  fetch_tiny({"tokenizer.json"});
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory())) names.push_back(entry.path().filename());
  EXPECT_THAT(names, UnorderedElementsAre("tokenizer.json", ".fetched.json"));
}

TEST_F(HubTest, CountsSizesWithCare) {
  json listing = {{"sha", tiny().commit}, {"siblings", json::array()}};
  for (const char* name : {"a.json", "b.json"}) {
    listing["siblings"].push_back({{"rfilename", name}, {"size", std::numeric_limits<int64_t>::max()}, {"blobId", "00"}});
  }
  tiny().listing_override = listing;
  EXPECT_THAT(failure_of([&] { fetch_tiny({"*"}); }), HasSubstr("add up to more than 2^63"));

  // Most of a file that is larger than the disk is there already.
  const auto free_bytes = static_cast<int64_t>(fs::space(folder_).available);
  listing["siblings"] = json::array();
  listing["siblings"].push_back({{"rfilename", "a.json"}, {"size", free_bytes + 1'000'000'000}, {"blobId", "00"}});
  tiny().listing_override = listing;
  EXPECT_THAT(failure_of([&] { fetch_tiny({"*"}); }), HasSubstr("the download needs"));
  fs::create_directories(part().parent_path());
  const fs::path left = part().parent_path() / "a.json.incomplete";
  write_file_atomic(left, "");
  std::error_code error;
  fs::resize_file(left, static_cast<uintmax_t>(free_bytes) + 999'999'000, error);  // sparse
  if (error) GTEST_SKIP() << "no file of " << free_bytes << " bytes can be made here: " << error.message();
  EXPECT_THAT(failure_of([&] { fetch_tiny({"*"}); }), Not(HasSubstr("the download needs")));
}

TEST_F(HubTest, RefusesARecordThatIsNone) {
  write_file_atomic(directory() / ".fetched.json", "[]");
  EXPECT_THAT(failure_of([&] { fetch_tiny(); }), HasSubstr(".fetched.json: it must be an object"));
  write_file_atomic(directory() / ".fetched.json", "{\"files\": 3}");
  EXPECT_THAT(failure_of([&] { fetch_tiny(); }), HasSubstr("'files'"));
}

TEST_F(HubTest, DataSetsByPatternAndRevision) {
  server_.repositories["datasets/org/text@refs/convert"] = {
      .files = {{"data/a 1.parquet", "A"}, {"data/deep/b.parquet", "B"}, {"c.txt", "C"}}, .large = {"data/deep/b.parquet"}};
  const RepositoryName text{"org", "text", "refs/convert"};
  const FetchResult result = fetch_repository(hub_, RepositoryKind::dataset, text, {"*.parquet"});
  EXPECT_EQ(result.directory, folder_ / "cache" / "datasets" / "org--text" / "refs--convert");
  EXPECT_EQ(read_file(result.directory / "data/a 1.parquet"), "A");
  EXPECT_EQ(read_file(result.directory / "data/deep/b.parquet"), "B");
  EXPECT_FALSE(fs::exists(result.directory / "c.txt"));
  EXPECT_EQ(fetch_repository(hub_, RepositoryKind::dataset, text, {}).num_files, 3u);
  EXPECT_EQ(read_file(result.directory / "c.txt"), "C");
  EXPECT_EQ(read_file(result.directory / "data/a 1.parquet"), "A");
  EXPECT_THAT(failure_of([&] { fetch_repository(hub_, RepositoryKind::dataset, text, {"*.csv"}); }),
              HasSubstr("org/text: no file matches *.csv; it holds c.txt, data/a 1.parquet, data/deep/b.parquet: choose with --files"));
}

TEST(SelectFiles, TakesWeightsOnce) {
  const auto names = [](const std::vector<std::string>& all) {
    HubListing listing;
    for (const std::string& name : all) listing.files.push_back({.name = name});
    std::vector<std::string> selected;
    for (const HubFile& file : select_files(listing, RepositoryKind::model, {}, "org/m")) selected.push_back(file.name);
    return selected;
  };
  EXPECT_THAT(
      names({"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "consolidated.safetensors", "pytorch_model-00001-of-00002.bin", "original/consolidated.00.pth"}),
      ElementsAre("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"));
  EXPECT_THAT(names({"model.safetensors", "model.fp16.safetensors", "tf_model.h5"}), ElementsAre("model.safetensors"));
  EXPECT_THAT(names({"weights.safetensors"}), ElementsAre("weights.safetensors"));
  EXPECT_THAT(failure_of([&] { names({"config.json", "pytorch_model.bin"}); }),
              HasSubstr("org/m: there are no weights as safetensors; it holds config.json"));
}

TEST_F(HubTest, RefusesListingsThatCannotBeTrusted) {
  const auto with_name = [&](const json& file) {
    tiny().listing_override = {{"sha", tiny().commit}, {"siblings", {file}}};
    return failure_of([&] { fetch_tiny({"*"}); });
  };
  for (const char* name : {"../x", "/etc/x", "a/../../x", "a/./x", "", "a\\x", "a//x/"}) {
    EXPECT_THAT(with_name({{"rfilename", name}, {"size", 1}, {"blobId", "00"}}), HasSubstr("is not allowed")) << name;
  }
  EXPECT_THAT(with_name({{"rfilename", "x"}}), HasSubstr("'x' comes without size or checksum"));
  EXPECT_THAT(with_name({{"rfilename", 3}}), HasSubstr("key 'rfilename' is 3"));
  tiny().listing_override = json::array();
  EXPECT_THAT(failure_of([&] { fetch_tiny(); }), HasSubstr("revision/main: "));
  EXPECT_FALSE(fs::exists(directory()));
}

TEST_F(HubTest, KeepsThePartWhenASignalComes) {
  {
    const SignalGuard guard;
    server_.mischief.cuts = 1;
    bool raised = false;
    const Download download{.url = server_.storage.url() + "/stored/org/tiny/model.safetensors", .target = folder_ / "w"};
    EXPECT_THROW(download_file(download, hub_.retry,
                               [&](int64_t) {
                                 if (!std::exchange(raised, true)) std::raise(SIGTERM);
                               }),
                 Interrupted);
    EXPECT_GT(fs::file_size(folder_ / "w.incomplete"), 0u);
  }
  const SignalGuard forget;
}

TEST_F(FetchTest, FollowsNoRedirectAwayFromHttpAndNoLoop) {
  LocalServer server([](const httplib::Request& request, httplib::Response& response) {
    response.set_redirect(request.path == "/loop" ? "/loop" : request.path == "/relative" ? "end?x=1" : "file:///etc/passwd");
    if (request.path == "/end") response = {}, response.set_content("reached", "text/plain");
  });
  EXPECT_EQ(http_get_text({.url = server.url() + "/relative"}), "reached");
  EXPECT_THAT(failure_of([&] { http_get_text({.url = server.url() + "/loop"}); }), HasSubstr("more than 10 redirects"));
  EXPECT_THAT(failure_of([&] { http_get_text({.url = server.url() + "/file"}); }), HasSubstr("only http and https"));
  EXPECT_THAT(failure_of([&] { http_get_text({.url = server.url() + "/relative"}, 3); }), HasSubstr("more than 3 bytes"));
  EXPECT_THAT(failure_of([&] { http_get_text({.url = "http://127.0.0.1:1/x"}); }), HasSubstr("http://127.0.0.1:1/x: "));
}

TEST(Http, TellsOriginsApartAndHidesSecrets) {
  EXPECT_TRUE(is_same_origin("https://Hub.example/a", "https://hub.example:443/b?c"));
  EXPECT_FALSE(is_same_origin("https://hub.example/a", "http://hub.example/a"));
  EXPECT_FALSE(is_same_origin("https://hub.example/a", "https://hub.example:444/a"));
  EXPECT_FALSE(is_same_origin("https://hub.example/a", "https://hub.example.org/a"));
  EXPECT_EQ(shown_url("https://me:secret@hub.example/a?signature=secret#x"), "https://hub.example/a");
  EXPECT_EQ(url_encode("refs/pr/1 ü"), "refs%2Fpr%2F1%20%C3%BC");
}

TEST_F(FetchTest, SettingsComeFromTheEnvironment) {
  const WithVariable endpoint("HF_ENDPOINT", "http://localhost:1234/"), home("HF_HOME", (folder_ / "hf").string()),
      path("HF_TOKEN_PATH", std::nullopt);
  const WithVariable no_token("HF_TOKEN", std::nullopt);
  EXPECT_EQ(hub_settings_from_environment().endpoint, "http://localhost:1234");
  EXPECT_EQ(hub_settings_from_environment().token, "");
  {
    const WithVariable no_cache("DISTIL_XLSTM_CACHE", std::nullopt);
    EXPECT_EQ(cache_directory(), folder_ / "hf" / "distil-xlstm");
    const WithVariable own("DISTIL_XLSTM_CACHE", (folder_ / "own").string());
    EXPECT_EQ(cache_directory(), folder_ / "own");
  }
  write_file_atomic(folder_ / "hf" / "token", "hf_file\n");
  EXPECT_EQ(hub_settings_from_environment().token, "hf_file");
  const WithVariable token("HF_TOKEN", " hf_variable ");
  EXPECT_EQ(hub_settings_from_environment().token, "hf_variable");
  const WithVariable broken("HF_TOKEN", "two\nlines");
  EXPECT_THAT(failure_of([] { hub_settings_from_environment(); }), HasSubstr("characters that no token has"));
  const WithVariable wrong("HF_ENDPOINT", "hub.example");
  EXPECT_THAT(failure_of([] { hub_settings_from_environment(); }), HasSubstr("HF_ENDPOINT is 'hub.example': it must begin with https://"));
}

TEST_F(HubTest, TheCommandTakesNamesOfEveryKind) {
  const WithVariable endpoint("HF_ENDPOINT", hub_.endpoint), share("DISTIL_XLSTM_SHARE", (source_directory() / "share").string());
  EXPECT_EQ(fetch({.name = "org/tiny"}), directory());
  EXPECT_EQ(fetch({.name = "org/tiny@main", .globs = {"*.json"}}), directory());
  EXPECT_TRUE(fs::exists(fetch({.name = "stories260K"}) / "model.safetensors"));
  EXPECT_EQ(builtin_model_fault("stories260K"), "");
  EXPECT_THAT(failure_of([] { fetch({.name = "stories260"}); }),
              HasSubstr("neither a built-in (stories260K, smollm2-135m-instruct) nor a repository written "
                        "org/name[@revision] (did you mean 'stories260K'?)"));
  {
    const fs::path copy = folder_ / "share";
    fs::create_directories(copy);
    fs::copy(source_directory() / "share" / "models", copy / "models", fs::copy_options::recursive);
    const WithVariable damaged("DISTIL_XLSTM_SHARE", copy.string());
    EXPECT_EQ(open_model("stories260K").kind, ModelKind::transformer);
    const fs::path weights = copy / "models" / "stories260K" / "model.safetensors";
    std::string bytes = read_file(weights);
    bytes[bytes.size() / 2] ^= 1;
    write_file_atomic(weights, bytes);
    EXPECT_THAT(failure_of([] { open_model("stories260K"); }),
                ::testing::AllOf(HasSubstr("model.safetensors is damaged (its sha256 is "), HasSubstr("install the program again")));
    EXPECT_THAT(failure_of([] { fetch({.name = "stories260K"}); }), HasSubstr("install the program again"));
    fs::remove(weights);
    EXPECT_THAT(failure_of([] { open_model("stories260K"); }), HasSubstr("model.safetensors is missing"));
  }
  EXPECT_THAT(failure_of([] { fetch({.name = "stories260K", .globs = {"*"}}); }), HasSubstr("--files does not go with"));
}

}  // namespace
}  // namespace distil_xlstm::io
