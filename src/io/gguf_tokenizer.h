// The tokenizer inside a GGUF file, as Hugging Face's files.
#pragma once

#include <optional>

#include "io/gguf.h"
#include "io/model_files.h"

namespace distil_xlstm::io {

// tokenizer.json and tokenizer_config.json from `tokenizer.ggml.*`; nullopt when the file holds no tokenizer.
//   model "gpt2": byte-level BPE with pre-tokenizer smollm, qwen2, llama-bpe, gpt-2 or default (also when it is not named)
//   model "llama": SentencePiece BPE with byte fallback, the merges found from the pieces' scores
// Throws DataError that names another model or pre-tokenizer, or what is inconsistent.
std::optional<TokenizerFiles> gguf_tokenizer(const GgufFile& file);

}  // namespace distil_xlstm::io
