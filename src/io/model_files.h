// What `--model` takes, resolved: a run directory, a checkpoint in it, a Hugging Face directory, a GGUF file, a built-in name,
// or a repository that `fetch` has brought (org/name[@revision]).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/json.h"
#include "io/weights.h"

namespace distil_xlstm::io {

// Contents, not paths: a GGUF file carries its tokenizer inside.
struct TokenizerFiles {
  std::string tokenizer_json;         // Hugging Face tokenizer.json
  json tokenizer_config;              // tokenizer_config.json (bos_token, eos_token, chat_template, ...), {} when absent
  std::string origin;                 // for messages
  json added_tokens = json::array();  // what the other files add to tokenizer_json (io/added_tokens.h)
};

enum class ModelKind { transformer, student };

struct ModelFiles {
  ModelKind kind = ModelKind::transformer;
  fs::path path;                         // the directory or file that was resolved
  std::string name;                      // as the user wrote it
  json config;                           // Hugging Face config.json (made from the metadata for GGUF); for a student its own config.json
  json generation_config;                // generation_config.json, or {}; a checkpoint has its run's
  std::string generation_config_origin;  // for messages
  std::shared_ptr<WeightSource> weights;
  std::optional<TokenizerFiles> tokenizer;  // absent when the directory has none
};

// Opens a model. A student checkpoint's WeightSource also covers the frozen embedding and head that its run keeps beside it.
// Throws ConfigError for a name that is nothing of the above (with what was tried), DataError for broken content.
ModelFiles open_model(const std::string& name_or_path);

}  // namespace distil_xlstm::io
