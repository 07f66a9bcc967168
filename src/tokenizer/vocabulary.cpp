#include "tokenizer/vocabulary.h"

#include <fmt/format.h>

#include "base/error.h"

namespace distil_xlstm {

std::vector<int32_t> rows_without_token(const Tokenizer& tokenizer, int64_t num_rows) {
  std::vector<int32_t> rows;
  const int64_t num_tokens = tokenizer.vocab_size();
  for (int64_t row = 0; row < num_rows; ++row) {
    const auto id = static_cast<int32_t>(row);
    if (row >= num_tokens || tokenizer.piece(id).empty()) rows.push_back(id);
  }
  return rows;
}

std::string no_row_message(int32_t id, const Tokenizer& tokenizer, int64_t num_rows, std::string_view where) {
  return fmt::format(
      "{}: the text holds '{}' (id {}), for which the model has no row: it has {}, the tokenizer {} tokens: use a text without it, or the "
      "tokenizer that the model was made with",
      where, tokenizer.piece(id), id, num_rows, tokenizer.vocab_size());
}

void check_rows(std::span<const int32_t> ids, const Tokenizer& tokenizer, int64_t num_rows, std::string_view where) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= num_rows) throw DataError("{}", no_row_message(id, tokenizer, num_rows, where));
  }
}

}  // namespace distil_xlstm
