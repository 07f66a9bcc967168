#include "data/text_stream.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace distil_xlstm::data {

namespace {

constexpr size_t kHeadBytes = 1 << 16;

// Bytes that were read already, then the rest.
class ReplayStream : public ByteStream {
 public:
  ReplayStream(std::string head, std::unique_ptr<ByteStream> rest) : head_(std::move(head)), rest_(std::move(rest)) {}
  size_t read(char* out, size_t size) override {
    const size_t now = std::min(size, head_.size() - given_);
    if (now == 0) return rest_->read(out, size);
    std::memcpy(out, head_.data() + given_, now);
    given_ += now;
    return now;
  }
  [[nodiscard]] uint64_t bytes_done() const override { return rest_->bytes_done(); }

 private:
  std::string head_;
  size_t given_ = 0;
  std::unique_ptr<ByteStream> rest_;
};

// Text in two or four bytes a character, by its mark or by the zeros between its letters.
std::string wide_encoding(std::string_view head) {
  using namespace std::string_view_literals;
  if (head.starts_with("\xFF\xFE\0\0"sv) || head.starts_with("\0\0\xFE\xFF"sv)) return "UTF-32";
  if (head.starts_with("\xFF\xFE"sv) || head.starts_with("\xFE\xFF"sv)) return "UTF-16";
  if (head.size() < 8) return "";
  const auto zeros = [&](size_t first) { return head[first] == 0 && head[first + 2] == 0 && head[first + 4] == 0; };
  const auto letters = [&](size_t first) { return head[first] != 0 && head[first + 2] != 0 && head[first + 4] != 0; };
  return (zeros(0) && letters(1)) || (zeros(1) && letters(0)) ? "UTF-16" : "";
}

void check_head(std::string_view head, const std::string& where) {
  if (const std::string encoding = wide_encoding(head); !encoding.empty()) {
    throw DataError("{}: text in {}: only UTF-8 is read: convert it with `iconv -f {} -t UTF-8`", where, encoding, encoding);
  }
  if (head.starts_with("PAR1")) throw DataError("{}: a Parquet file: name it .parquet, or say --format parquet", where);
  const std::pair<std::string_view, const char*> kOthers[] = {{"BZh", "bzip2"},
                                                              {"\xFD"
                                                               "7zXZ",
                                                               "xz"},
                                                              {"PK\x03\x04", "zip"}};
  for (const auto& [magic, name] : kOthers) {
    const bool is_binary = head.substr(0, 64).find_first_of(std::string_view("\0\x01\x02\x03\x04", 5)) != std::string_view::npos;
    if (head.starts_with(magic) && is_binary)
      throw DataError("{}: compressed with {}: only gzip and zstd are read: decompress it", where, name);
  }
}

}  // namespace

TextStream open_text_stream(const fs::path& path) {
  TextStream text;
  auto bytes = open_byte_stream(path);
  text.head.resize(kHeadBytes);
  size_t size = 0;
  for (size_t got = 1; got > 0 && size < kHeadBytes; size += got) got = bytes->read(text.head.data() + size, kHeadBytes - size);
  text.head.resize(size);
  check_head(text.head, path.string());
  if (text.head.starts_with("\xEF\xBB\xBF")) text.head.erase(0, 3);
  text.bytes = std::make_unique<ReplayStream>(text.head, std::move(bytes));
  return text;
}

}  // namespace distil_xlstm::data
