// A tokenizer of bytes for tests, files in a folder of their own, and the reading of shards back into one stream.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "data/packer.h"
#include "data/token_shard.h"

namespace distil_xlstm::data {

inline constexpr int32_t kTestBos = 256;
inline constexpr int32_t kTestEos = 257;
inline constexpr int64_t kTestVocabulary = 260;

// Every byte is an id; <s> is BOS and </s> EOS. Conversations are written as "role:content;", answers with their semicolon.
inline TextEncoder byte_encoder(bool with_bos = true) {
  TextEncoder encoder;
  encoder.encode_batch = [](std::span<const std::string_view> texts) {
    std::vector<std::vector<int32_t>> all;
    for (const auto text : texts) {
      std::vector<int32_t> ids;
      for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
      all.push_back(std::move(ids));
    }
    return all;
  };
  encoder.encode_ranges = [](std::span<const std::string_view> texts) {
    std::vector<EncodedText> all(texts.size());
    for (size_t t = 0; t < texts.size(); ++t) {
      for (size_t i = 0; i < texts[t].size(); ++i) {
        all[t].ids.push_back(static_cast<unsigned char>(texts[t][i]));
        all[t].ranges.push_back({i, i + 1});
      }
    }
    return all;
  };
  encoder.render_spans = [](const Conversation& conversation) {
    RenderedChat chat;
    for (const auto& message : conversation.messages) {
      const auto role = message.at("role").get<std::string>();
      if (role == "refused") throw DataError("roles must alternate");
      if (role == "lost") ++chat.num_missing_answers;
      chat.spans.push_back({role + ":", false});
      chat.spans.push_back({message.at("content").get<std::string>() + ";", role == "assistant"});
    }
    return chat;
  };
  encoder.token_id = [](std::string_view piece) -> std::optional<int32_t> {
    if (piece == "<s>") return kTestBos;
    if (piece == "</s>") return kTestEos;
    return std::nullopt;
  };
  if (with_bos) encoder.prefix = {kTestBos};
  encoder.eos_id = kTestEos;
  encoder.vocab_size = kTestVocabulary;
  encoder.fingerprint = "bytes";
  return encoder;
}

// A folder that goes away with the test.
class Folder {
 public:
  Folder() {
    // In memory where the system has such a place: shards are synced to disk, which the tests need not wait for.
    const fs::path parent = ::access("/dev/shm", W_OK) == 0 ? fs::path("/dev/shm") : fs::temp_directory_path();
    std::string name = (parent / "dx-data-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] fs::path operator/(const std::string& name) const { return path_ / name; }
  [[nodiscard]] const fs::path& path() const { return path_; }
  fs::path write(const std::string& name, std::string_view content) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path_ / name;
  }

 private:
  fs::path path_;
};

// The ids of shards in order, with the id that neighbours share taken once, cut into documents.
struct Stream {
  std::vector<int32_t> ids;
  std::vector<uint8_t> counts;
  std::vector<uint64_t> borders;
  [[nodiscard]] std::vector<std::vector<int32_t>> documents() const {
    std::vector<std::vector<int32_t>> all;
    for (size_t d = 0; d < borders.size(); ++d) {
      const auto end = d + 1 < borders.size() ? borders[d + 1] : ids.size();
      all.emplace_back(ids.begin() + static_cast<ptrdiff_t>(borders[d]), ids.begin() + static_cast<ptrdiff_t>(end));
    }
    return all;
  }
};

inline Stream read_stream(const std::vector<fs::path>& paths) {
  Stream stream;
  for (const auto& path : paths) {
    const TokenShard shard(path);
    const uint64_t shared = shard.continues() ? 1 : 0;
    const uint64_t base = stream.ids.size() - shared;
    std::vector<int32_t> ids(shard.header().num_tokens);
    shard.copy_tokens(0, ids);
    if (shared != 0) {
      EXPECT_EQ(stream.ids.back(), ids.front());
      EXPECT_EQ(stream.counts.back() != 0, shard.counts(0));
    }
    for (uint64_t i = shared; i < ids.size(); ++i) {
      stream.ids.push_back(ids[i]);
      stream.counts.push_back(shard.counts(i) ? 1 : 0);
    }
    for (const uint64_t border : shard.borders()) {
      if (border >= shared) {
        stream.borders.push_back(base + border);
      } else {
        EXPECT_EQ(stream.borders.back(), base);
      }
    }
  }
  return stream;
}

// Runs `body`, which must throw Error with all of `parts` in its message.
template <typename Error, typename Body>
void expect_error(Body&& body, const std::vector<std::string>& parts) {
  try {
    body();
    FAIL() << "no error";
  } catch (const Error& error) {
    for (const auto& part : parts) EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what() << "\nlacks " << part;
  }
}

}  // namespace distil_xlstm::data
