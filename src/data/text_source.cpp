// Pieces of a plain text file, which is one document.
#include <algorithm>
#include <limits>

#include "data/text_reader.h"
#include "data/text_stream.h"

namespace distil_xlstm::data {

namespace {

// A plain text file in pieces of bounded size: each is a row.
class TextSource : public RowSource {
 public:
  TextSource(const fs::path& path, const ReaderOptions& options)
      : stream_(open_text_stream(path).bytes),
        max_bytes_(std::min<uint64_t>(options.max_piece_bytes, std::numeric_limits<size_t>::max() / 2)),  // room for one byte more
        policy_(options.bad_rows) {}

  bool next(Document& document, RowStatus& status, std::string& problem) override {
    if (!read_piece(document)) return false;
    status = check_utf8(document.text, policy_, problem);
    return true;
  }
  void skip(uint64_t num_rows) override {
    Document document;
    for (; num_rows > 0 && read_piece(document); --num_rows) {
    }
  }
  [[nodiscard]] uint64_t bytes_done() const override { return stream_->bytes_done(); }

 private:
  bool read_piece(Document& document) {
    // One byte beyond a piece tells whether the text ends with it.
    while (!at_end_ && buffer_.size() <= max_bytes_) {
      const size_t have = buffer_.size();
      const size_t wanted = std::min<size_t>(max_bytes_ + 1 - have, size_t{1} << 20);
      buffer_.resize(have + wanted);
      const size_t got = stream_->read(buffer_.data() + have, wanted);
      buffer_.resize(have + got);
      at_end_ = got == 0;
    }
    if (given_end_) return false;
    const size_t size = piece_end(buffer_, max_bytes_);
    document.text.assign(buffer_, 0, size);
    buffer_.erase(0, size);  // moves no more than was given: a piece is at least half of max_bytes_
    document.begins = is_first_;
    document.ends = given_end_ = at_end_ && buffer_.empty();
    is_first_ = false;
    return true;
  }

  std::unique_ptr<ByteStream> stream_;
  size_t max_bytes_;
  BadRowPolicy policy_;
  std::string buffer_;
  bool at_end_ = false;
  bool is_first_ = true;
  bool given_end_ = false;
};

}  // namespace

std::unique_ptr<RowSource> open_text_source(const fs::path& path, const ReaderOptions& options) {
  return std::make_unique<TextSource>(path, options);
}

}  // namespace distil_xlstm::data
