// Corpus files -> documents, streamed: plain text, JSONL and Parquet, also compressed; memory does not grow with the corpus.
//   .txt .md      one file is one document
//   .jsonl .ndjson .json  one object a line, or one JSON array of objects: a text, or a conversation
//   .parquet      FineWeb's layout: a string column, row groups streamed; or the columns of a conversation
// The first two may end in .gz or .zst as well; content that is compressed is read as such under any name.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "tokenizer/chat_template.h"

namespace distil_xlstm::data {

// What happens to a row that is no JSON or lacks its text, and to text that is no UTF-8. Each is counted.
//   skip: the row is left out; replace: invalid bytes become U+FFFD, a row without text is left out; fail: DataError
enum class BadRowPolicy { skip, replace, fail };
enum class FileFormat { automatic, text, jsonl, parquet };
enum class RowKind { automatic, text, chat };  // automatic: text where the row has the text key, else a conversation

BadRowPolicy parse_bad_row_policy(std::string_view name);  // each throws ConfigError
FileFormat parse_file_format(std::string_view name);
RowKind parse_row_kind(std::string_view name);

struct ReaderOptions {
  std::vector<std::string> inputs;  // files, directories, globs
  FileFormat format = FileFormat::automatic;
  RowKind rows = RowKind::automatic;
  std::string text_key = "text";
  std::string messages_key = "messages";  // [{role, content, ...}]; "conversations" is known as well
  std::string prompt_key;                 // "": prompt/response, instruction(+input)/output and question/answer are known
  std::string answer_key;
  BadRowPolicy bad_rows = BadRowPolicy::skip;
  bool normalize_newlines = false;         // a run of newlines becomes one
  bool strip = false;                      // no ASCII white space at either end of a document
  uint64_t max_piece_bytes = 16ULL << 20;  // a longer text is given in pieces, cut before a newline (else a space); of a conversation, all
  bool cuts_long_texts = true;             // false: a longer text is a DataError
};

// Place in the corpus: next comes piece `piece` of row `row` of file `file`.
struct ReaderPlace {
  uint64_t file = 0;
  uint64_t row = 0;
  uint64_t piece = 0;
};

struct Document {
  std::string text;           // UTF-8
  Conversation conversation;  // not empty: then `text` is
  std::string row_name;       // of a conversation: file and line or row, for messages
  bool begins = true;         // false: goes on with the document before
  bool ends = true;           // false: the next one goes on with it
  ReaderPlace place;          // its own

  [[nodiscard]] uint64_t size_bytes() const;
};

struct ReaderCounts {
  uint64_t documents = 0;
  uint64_t text_bytes = 0;
  uint64_t empty_documents = 0;  // left out: no text, or none after stripping
  uint64_t malformed_rows = 0;   // left out
  uint64_t invalid_utf8 = 0;     // left out or repaired, as the policy says
  uint64_t cut_documents = 0;    // given in pieces
};

// How the rows of one file come; one class a format.
enum class RowStatus { ok, repaired, invalid_utf8, malformed };
class RowSource {
 public:
  virtual ~RowSource() = default;
  // False at the end of the file. `problem` says what is wrong when the status is not ok.
  virtual bool next(Document& document, RowStatus& status, std::string& problem) = 0;
  virtual void skip(uint64_t num_rows) = 0;                          // as many calls of next() would
  [[nodiscard]] virtual std::string row_name() const { return ""; }  // of the last row where rows are lines ("line 7"), for messages
  [[nodiscard]] virtual uint64_t bytes_done() const = 0;
};
// Where to cut a text of more than `max_bytes`: the last place that leaves a newline (else a space, else a whole character)
// at the beginning of what remains.
size_t piece_end(std::string_view text, size_t max_bytes);

std::unique_ptr<RowSource> open_text_source(const fs::path& path, const ReaderOptions& options);
std::unique_ptr<RowSource> open_jsonl_source(const fs::path& path, const ReaderOptions& options);
std::unique_ptr<RowSource> open_parquet_source(const fs::path& path, const ReaderOptions& options);

// Checks that `text` is UTF-8, repairing it where the policy is to replace.
RowStatus check_utf8(std::string& text, BadRowPolicy policy, std::string& problem);

class TextReader {
 public:
  // Finds the files and their formats. Throws ConfigError for a file whose format is unknown (in a directory such files are passed
  // over with a warning, as are hidden files, README* and LICENSE*), IoError for an argument that matches nothing.
  explicit TextReader(ReaderOptions options);
  ~TextReader();
  TextReader(const TextReader&) = delete;
  TextReader& operator=(const TextReader&) = delete;

  // False at the end. Throws IoError, DataError; Interrupted after a signal that a SignalGuard caught: place() is still right.
  bool next(Document& document);

  [[nodiscard]] const std::vector<fs::path>& files() const;
  [[nodiscard]] const ReaderCounts& counts() const;
  [[nodiscard]] uint64_t total_bytes() const;  // sizes of all files as stored
  [[nodiscard]] uint64_t bytes_done() const;   // of them, read so far
  // Where to go on after the last document given, and what was counted up to there: restore() takes both.
  [[nodiscard]] ReaderPlace place() const;
  void restore(ReaderPlace place, const ReaderCounts& counts);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace distil_xlstm::data
