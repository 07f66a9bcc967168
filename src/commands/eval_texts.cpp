#include "commands/eval_texts.h"

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/options/eval.h"
#include "tokenizer/document_borders.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::commands {

data::ReaderOptions reader_options(const std::vector<std::string>& inputs, const cli::EvalOptions& options) {
  data::ReaderOptions reader_options;
  reader_options.inputs = inputs;
  reader_options.format = data::parse_file_format(options.format);
  reader_options.rows = data::RowKind::text;
  reader_options.text_key = options.text_key;
  reader_options.normalize_newlines = options.normalize_newlines;
  reader_options.strip = options.strip;
  reader_options.bad_rows = data::parse_bad_row_policy(options.bad_rows);
  const int64_t max_bytes = parse_count(options.max_document_size, "--max-document-size");
  if (max_bytes < 1024) throw ConfigError("--max-document-size {}: must be at least 1024 bytes", options.max_document_size);
  reader_options.max_piece_bytes = static_cast<uint64_t>(max_bytes);
  reader_options.cuts_long_texts = options.stream;  // as `prepare` cuts them; documents are measured whole
  return reader_options;
}

void read_documents(const fs::path& path, const cli::EvalOptions& options, const Tokenizer& tokenizer, int64_t num_rows,
                    const std::function<bool(const eval::EvalDocument&)>& use) {
  const auto borders = document_borders(tokenizer, document_end_id(options.document_end, tokenizer));
  uint64_t num_repeated = 0;
  data::TextReader reader(reader_options({path.string()}, options));
  data::Document text;
  for (bool wants_more = true; wants_more && reader.next(text);) {
    eval::EvalDocument document;
    document.tokens = tokenizer.encode(text.text);
    if (text.begins) {
      if (begins_with(document.tokens, borders.begin)) ++num_repeated;
      document.tokens.insert(document.tokens.begin(), borders.begin.begin(), borders.begin.end());
    }
    if (text.ends) document.tokens.insert(document.tokens.end(), borders.end.begin(), borders.end.end());
    check_rows(document.tokens, tokenizer, num_rows, path.string());
    document.size_bytes = static_cast<int64_t>(text.text.size());
    wants_more = use(document);
  }
  warn_of_repeated_prefix(path.string(), borders.begin, num_repeated);
  const auto& counts = reader.counts();
  if (counts.cut_documents > 0) {
    spdlog::warn("{}: texts longer than --max-document-size {}: {}: encoded in parts, so that a token at a cut may be another one",
                 path.string(), options.max_document_size, counts.cut_documents);
  }
  if (counts.malformed_rows + counts.invalid_utf8 > 0) {
    spdlog::warn("{}: malformed rows left out: {}, texts with invalid UTF-8 {}: {}", path.string(), counts.malformed_rows,
                 options.bad_rows == "replace" ? "repaired" : "left out", counts.invalid_utf8);
  }
}

}  // namespace distil_xlstm::commands
