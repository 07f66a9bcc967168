// A model in a GGUF file, as a Hugging Face model: names, row order, config.json and tokenizer.
#pragma once

#include <memory>
#include <string>

#include "io/gguf.h"
#include "io/model_files.h"

namespace distil_xlstm::io {

// Architectures `llama` and `qwen2`. Throws DataError that names another architecture, a tensor that such a model does not have, or a
// metadata key that would change the result and is not understood.
ModelFiles open_gguf_model(const fs::path& path);

// config.json from the metadata. `rope_freqs.weight` becomes rope_scaling of type llama3 when it is what that rule gives.
json gguf_config(const GgufFile& file);

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; "" for a tensor that belongs to the config (rope_freqs.weight).
// Throws DataError that names `where` and the tensor when it is none of a Llama's or Qwen2's.
std::string hugging_face_name(std::string_view gguf_name, std::string_view where);

// The tensors under Hugging Face names. `heads_permuted`: rows of q and k are in llama.cpp's order (its `llama` architecture), where
// rows i and i + head_dim / 2 of a head stand side by side; num_heads and num_kv_heads then say where heads end.
struct GgufHeads {
  bool heads_permuted = false;
  int64_t num_heads = 0, num_kv_heads = 0;
};
std::shared_ptr<WeightSource> gguf_weights(std::shared_ptr<const GgufFile> file, const GgufHeads& heads);

}  // namespace distil_xlstm::io
