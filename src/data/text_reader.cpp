#include "data/text_reader.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/foreign_content.h"
#include "base/signals.h"
#include "base/text.h"
#include "data/byte_stream.h"

namespace distil_xlstm::data {

BadRowPolicy parse_bad_row_policy(std::string_view name) {
  if (name == "skip") return BadRowPolicy::skip;
  if (name == "replace") return BadRowPolicy::replace;
  if (name == "fail") return BadRowPolicy::fail;
  throw ConfigError("bad_rows = \"{}\": allowed are \"skip\", \"replace\", \"fail\"{}", name,
                    did_you_mean(name, {"skip", "replace", "fail"}));
}

FileFormat parse_file_format(std::string_view name) {
  if (name == "auto") return FileFormat::automatic;
  if (name == "text") return FileFormat::text;
  if (name == "jsonl") return FileFormat::jsonl;
  if (name == "parquet") return FileFormat::parquet;
  throw ConfigError("format = \"{}\": allowed are \"auto\", \"text\", \"jsonl\", \"parquet\"{}", name,
                    did_you_mean(name, {"auto", "text", "jsonl", "parquet"}));
}

RowKind parse_row_kind(std::string_view name) {
  if (name == "auto") return RowKind::automatic;
  if (name == "text") return RowKind::text;
  if (name == "chat") return RowKind::chat;
  throw ConfigError("rows = \"{}\": allowed are \"auto\", \"text\", \"chat\"{}", name, did_you_mean(name, {"auto", "text", "chat"}));
}

namespace {

uint64_t text_bytes(const json& value) {
  if (value.is_string()) return value.get_ref<const std::string&>().size();
  uint64_t size = 0;
  if (!value.is_structured()) return size;
  for (const auto& [key, item] : value.items()) {
    if (key != "role") size += text_bytes(item);
  }
  return size;
}

}  // namespace

uint64_t Document::size_bytes() const {
  return text.size() + text_bytes(conversation.messages) + text_bytes(conversation.variables);
}

RowStatus check_utf8(std::string& text, BadRowPolicy policy, std::string& problem) {
  const size_t valid = valid_utf8_prefix(text);
  if (valid == text.size()) return RowStatus::ok;
  problem = fmt::format("byte {} of the text is not UTF-8", valid);
  if (policy != BadRowPolicy::replace) return RowStatus::invalid_utf8;
  text = replace_invalid_utf8(text);
  return RowStatus::repaired;
}

size_t piece_end(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text.size();
  const std::string_view head = text.substr(0, max_bytes);
  // Before a whole run of newlines, so that normalize_newlines sees the run as one.
  size_t cut = head.rfind('\n');
  while (cut != std::string_view::npos && cut > 0 && head[cut - 1] == '\n') --cut;
  if (cut == std::string_view::npos || cut < max_bytes / 2) cut = head.rfind(' ');
  if (cut != std::string_view::npos && cut >= max_bytes / 2 && cut > 0) return cut;
  // Before a character. It has at most three bytes after its first: what looks longer is no UTF-8, and is cut where it stands, so that
  // no piece is much shorter than asked for.
  for (cut = max_bytes; cut > 1 && max_bytes - cut <= 3; --cut) {
    if ((static_cast<unsigned char>(text[cut]) & 0xC0) != 0x80) return cut;
  }
  return max_bytes;
}

namespace {

std::optional<FileFormat> format_of(const fs::path& path) {
  const fs::path plain = without_compression(path);
  const std::string ending = to_lower(plain.extension().string());
  if (ending == ".txt" || ending == ".md") return FileFormat::text;
  if (ending == ".jsonl" || ending == ".ndjson" || ending == ".json") return FileFormat::jsonl;
  if (ending == ".parquet" && plain == path) return FileFormat::parquet;
  return std::nullopt;
}

// What lies beside the texts of a directory without being one of them: hidden files (downloads leave some), README*, LICENSE*.
bool is_no_corpus(const fs::path& relative) {
  const std::string name = relative.filename().string();
  if (name.starts_with("README") || name.starts_with("LICENSE")) return true;
  return std::ranges::any_of(relative, [](const fs::path& part) { return part.string().starts_with('.') && part != "." && part != ".."; });
}

void normalize_newlines(std::string& text) {
  const auto both = [](char a, char b) { return a == '\n' && b == '\n'; };
  text.erase(std::unique(text.begin(), text.end(), both), text.end());
}

void strip(std::string& text, bool at_begin, bool at_end) {
  constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";
  if (at_end) text.erase(text.find_last_not_of(kWhiteSpace) + 1);
  if (at_begin) text.erase(0, text.find_first_not_of(kWhiteSpace));
}

}  // namespace

struct TextReader::Impl {
  ReaderOptions options;
  std::vector<fs::path> files;
  std::vector<FileFormat> formats;
  std::vector<uint64_t> sizes;
  ReaderCounts counts;
  ReaderPlace place;
  uint64_t finished_bytes = 0;
  std::unique_ptr<RowSource> source;

  // A text that is given in pieces.
  std::string long_text;
  size_t long_begin = 0;
  bool long_begins = true;
  bool long_ends = true;

  void find_files() {
    std::set<fs::path> seen;
    for (const auto& input : options.inputs) {
      const bool is_directory = fs::is_directory(input);
      size_t num_passed_over = 0, num_not_corpus = 0;
      for (const auto& path : expand_paths({input})) {
        if (is_directory && is_no_corpus(path.lexically_relative(input))) {
          ++num_not_corpus;
          continue;
        }
        if (!fs::is_regular_file(path))
          throw IoError("{}: not a regular file: text is read from files, whose size is known", path.string());
        if (!seen.insert(fs::canonical(path)).second) continue;
        const auto format = options.format == FileFormat::automatic ? format_of(path) : options.format;
        // A directory's .json files rather describe its data.
        const bool is_beside = is_directory && options.format == FileFormat::automatic && without_compression(path).extension() == ".json";
        if (is_directory && (!format || is_beside)) {
          ++num_passed_over;
        } else if (!format) {
          throw ConfigError(
              "{}: the name's ending tells no format: allowed are .txt, .md, .jsonl, .ndjson, .json (each also .gz, .zst) and .parquet; "
              "say --format text, jsonl or parquet",
              path.string());
        } else {
          files.push_back(path);
          formats.push_back(*format);
          sizes.push_back(fs::file_size(path));
        }
      }
      if (num_not_corpus > 0) {
        spdlog::info("{}: {} passed over (hidden, README or licence)", input,
                     num_not_corpus == 1 ? "1 file" : fmt::format("{} files", num_not_corpus));
      }
      if (num_passed_over > 0) {
        spdlog::warn("{}: {} passed over: no text, JSONL or Parquet", input,
                     num_passed_over == 1 ? "1 file" : fmt::format("{} files", num_passed_over));
      }
    }
    if (files.empty()) throw IoError("{}: no text here", options.inputs.empty() ? "inputs" : options.inputs.front());
  }

  [[nodiscard]] std::unique_ptr<RowSource> open(uint64_t file) const {
    throw_if_foreign(read_beginning(files[file]), files[file].string(),
                     formats[file] == FileFormat::text ? ContentKind::text : ContentKind::rows);
    switch (formats[file]) {
      case FileFormat::jsonl:
        return open_jsonl_source(files[file], options);
      case FileFormat::parquet:
        return open_parquet_source(files[file], options);
      default:
        return open_text_source(files[file], options);
    }
  }

  // Of the row that was read last, as people count.
  [[nodiscard]] std::string row_name() const {
    const std::string name = source->row_name();
    return name.empty() ? fmt::format("row {}", place.row + 1) : name;
  }

  // Encoding takes some hundred bytes of memory for each byte of a text (docs/data.md): none is longer than it may be.
  void check_size(const Document& document, RowStatus& status, std::string& problem) const {
    const auto limit = static_cast<double>(options.max_piece_bytes);
    if (!options.cuts_long_texts && (!document.begins || !document.ends || document.text.size() > options.max_piece_bytes)) {
      throw DataError(
          "{}: {}: a text of more than {}, which is not encoded at once: split it, or raise --max-document-size (it takes "
          "up to 150 times as much memory)",
          files[place.file].string(), row_name(), format_bytes(limit));
    }
    if (!document.conversation.empty() && document.size_bytes() > options.max_piece_bytes && status == RowStatus::ok) {
      status = RowStatus::malformed;
      problem = fmt::format("a conversation of more than {}, which cannot be cut", format_bytes(limit));
    }
  }

  // Counts a row that is not as it should be. True when it can be used.
  bool accept(Document& document, RowStatus status, const std::string& problem) {
    if (status == RowStatus::ok) return true;
    if (options.bad_rows == BadRowPolicy::fail) {
      throw DataError("{}: {}: {} (--bad-rows skip or replace goes on)", files[place.file].string(), row_name(), problem);
    }
    ++(status == RowStatus::malformed ? counts.malformed_rows : counts.invalid_utf8);
    if (counts.malformed_rows + counts.invalid_utf8 <= 5) {
      spdlog::warn("{}: {}: {}", files[place.file].string(), row_name(), problem);
    }
    if (status == RowStatus::repaired) return true;
    if (document.begins && document.ends) return false;
    document.text.clear();  // part of a longer document: its borders stay
    return true;
  }

  // Applies the text options. False when nothing of the document is left.
  bool clean(Document& document) {
    if (!document.conversation.empty()) return true;
    if (options.normalize_newlines) normalize_newlines(document.text);
    if (options.strip) strip(document.text, document.begins, document.ends);
    if (!document.text.empty() || !document.begins || !document.ends) return true;
    ++counts.empty_documents;
    return false;
  }

  void take_piece(Document& document) {
    const std::string_view left = std::string_view(long_text).substr(long_begin);
    const size_t size = piece_end(left, options.max_piece_bytes);
    document.conversation = {};
    document.text = left.substr(0, size);
    document.place = place;
    document.begins = long_begins && long_begin == 0;
    long_begin += size;
    const bool is_last = long_begin == long_text.size();
    document.ends = long_ends && is_last;
    if (is_last) {
      long_text.clear();
      ++place.row;
      place.piece = 0;
    } else {
      ++place.piece;
    }
  }

  bool next(Document& document) {
    for (;;) {
      throw_if_interrupted();  // rows that are left out may be many
      if (!long_text.empty()) {
        take_piece(document);
        break;
      }
      if (!source) {
        if (place.file >= files.size()) return false;
        source = open(place.file);
        source->skip(place.row);
      }
      RowStatus status = RowStatus::ok;
      std::string problem;
      document.begins = document.ends = true;
      document.text.clear();
      document.conversation = {};
      if (!source->next(document, status, problem)) {
        source.reset();
        finished_bytes += sizes[place.file];
        place = {place.file + 1, 0, 0};
        continue;
      }
      check_size(document, status, problem);
      if (!accept(document, status, problem) || !clean(document)) {
        ++place.row;
        continue;
      }
      if (document.text.size() > options.max_piece_bytes) {
        long_text.swap(document.text);
        long_begin = 0;
        long_begins = document.begins;
        long_ends = document.ends;
        continue;
      }
      document.place = place;
      if (!document.conversation.empty()) document.row_name = fmt::format("{}: {}", files[place.file].string(), row_name());
      ++place.row;
      break;
    }
    if (document.begins) ++counts.documents;
    if (document.begins && !document.ends) ++counts.cut_documents;
    counts.text_bytes += document.size_bytes();
    return true;
  }

  void restore(ReaderPlace wanted, const ReaderCounts& counted) {
    if (wanted.file > files.size()) throw DataError("journal: file {} of {}", wanted.file, files.size());
    source.reset();
    long_text.clear();
    place = {wanted.file, wanted.row, 0};
    finished_bytes = 0;
    for (uint64_t i = 0; i < wanted.file; ++i) finished_bytes += sizes[i];
    for (uint64_t piece = 0; piece < wanted.piece; ++piece) {
      Document passed;
      if (!next(passed)) throw DataError("{}: shorter than when it was first read", files[wanted.file].string());
    }
    counts = counted;
  }
};

TextReader::TextReader(ReaderOptions options) : impl_(std::make_unique<Impl>()) {
  if (options.prompt_key.empty() != options.answer_key.empty()) {
    throw ConfigError("prompt_key = \"{}\", answer_key = \"{}\": give both or neither", options.prompt_key, options.answer_key);
  }
  if (options.max_piece_bytes < 4) throw ConfigError("max_piece_bytes = {}: it must be at least 4", options.max_piece_bytes);
  impl_->options = std::move(options);
  impl_->find_files();
}

TextReader::~TextReader() = default;
bool TextReader::next(Document& document) {
  return impl_->next(document);
}
const std::vector<fs::path>& TextReader::files() const {
  return impl_->files;
}
const ReaderCounts& TextReader::counts() const {
  return impl_->counts;
}
ReaderPlace TextReader::place() const {
  return impl_->place;
}
void TextReader::restore(ReaderPlace place, const ReaderCounts& counts) {
  impl_->restore(place, counts);
}

uint64_t TextReader::total_bytes() const {
  uint64_t total = 0;
  for (const uint64_t size : impl_->sizes) total += size;
  return total;
}

uint64_t TextReader::bytes_done() const {
  return impl_->finished_bytes + (impl_->source ? impl_->source->bytes_done() : 0);
}

}  // namespace distil_xlstm::data
