// A tokenizer's ids beside the rows of a model's embedding and head, of which there may be more or fewer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace distil_xlstm {

// The rows of a model that no token has, ascending: padding behind the last token, and holes.
std::vector<int32_t> rows_without_token(const Tokenizer& tokenizer, int64_t num_rows);

// Throws DataError that names the first token for which the model has no row: "WHERE: the text holds '<pad>' (id 16), ...".
void check_rows(std::span<const int32_t> ids, const Tokenizer& tokenizer, int64_t num_rows, std::string_view where);

// What check_rows says of one token.
std::string no_row_message(int32_t id, const Tokenizer& tokenizer, int64_t num_rows, std::string_view where);

}  // namespace distil_xlstm
