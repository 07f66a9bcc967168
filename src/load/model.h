// `--model` as every command takes it: resolved, loaded, with its tokenizer.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "io/model_files.h"
#include "nn/language_model.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::load {

struct LoadedModel {
  io::ModelFiles files;
  std::unique_ptr<nn::LanguageModel> model;
  std::optional<Tokenizer> tokenizer;  // absent when the model has no tokenizer files

  // Throws DataError that says where a tokenizer was looked for.
  [[nodiscard]] const Tokenizer& require_tokenizer() const;
};

// `device` and `precision` as ops/device.h takes them; teachers and students alike.
LoadedModel load_model(const std::string& name_or_path, const std::string& device, const std::string& precision);

// Positions that a transformer was made for; none for a recurrent model.
std::optional<int64_t> num_positions(const LoadedModel& loaded);

// Warns when a transformer gets more tokens than it was made for; `what` says what asks for them ("--context-length").
bool warn_beyond_positions(const LoadedModel& loaded, int64_t num_tokens, std::string_view what);

}  // namespace distil_xlstm::load
