// Which settings `prepare` takes, and what of them the bytes of its shards depend on.
#pragma once

#include <string>

#include "base/json.h"
#include "data/prepare.h"

namespace distil_xlstm::data {

// Throws ConfigError for a setting outside its range.
void check_options(const PrepareOptions& options);

// What the tokenizer puts around a text, where the header's BOS id does not say it all.
json unusual_borders(const TextEncoder& encoder);

// Everything that the bytes of the shards depend on.
json describe_settings(const PrepareOptions& options, const TextEncoder& encoder, const TextReader& reader);

// Names the first setting in which two runs differ, or "".
std::string first_difference(const json& here, const json& there);

// The rows of a model's embedding; 0 where `name` is a tokenizer alone.
int64_t num_model_rows(const std::string& name);

}  // namespace distil_xlstm::data
