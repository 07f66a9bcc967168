// The texts of `eval --text`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/text_reader.h"
#include "eval/perplexity.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::cli {
struct EvalOptions;
}

namespace distil_xlstm::commands {

// Throws ConfigError for a --max-document-size that is too small.
data::ReaderOptions reader_options(const std::vector<std::string>& inputs, const cli::EvalOptions& options);

// Hands the documents of a file to `use` as ids, one at a time, until it says that it has enough. Throws DataError for a token that has no
// row among the model's `num_rows`.
void read_documents(const fs::path& path, const cli::EvalOptions& options, const Tokenizer& tokenizer, int64_t num_rows,
                    const std::function<bool(const eval::EvalDocument&)>& use);

}  // namespace distil_xlstm::commands
