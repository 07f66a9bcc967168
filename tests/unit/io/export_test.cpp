// What the live oracles need: a model as this library reads it, written where Python can look at it. Not a test of its own:
//   DISTIL_XLSTM_EXPORT_FROM=model.gguf DISTIL_XLSTM_EXPORT_TO=dir test_io --gtest_filter=OracleSupport.ExportsAsFloat32
#include <gtest/gtest.h>

#include <cstdlib>

#include "io/gguf_model.h"
#include "io/gguf_tokenizer.h"
#include "io/safetensors.h"

namespace distil_xlstm::io {
namespace {

void export_tokenizer(const TokenizerFiles& files, const fs::path& to) {
  write_file_atomic(to / "tokenizer.json", files.tokenizer_json);
  write_json(to / "tokenizer_config.json", files.tokenizer_config);
}

void export_model(const ModelFiles& model, const fs::path& to) {
  write_json(to / "config.json", model.config);
  write_json(to / "generation_config.json", model.generation_config);
  if (model.tokenizer) export_tokenizer(*model.tokenizer, to);
  std::vector<std::vector<float>> values;
  std::vector<TensorView> tensors;
  for (const std::string& name : model.weights->names()) {
    TensorView view = model.weights->view(name);
    values.emplace_back(static_cast<size_t>(view.num_elements()));
    model.weights->read_float(name, 0, view.num_elements(), values.back().data());
    tensors.push_back({name, DType::f32, view.shape, std::as_bytes(std::span(values.back()))});
  }
  write_safetensors(to / "model.safetensors", tensors, {{"format", "pt"}});
}

TEST(OracleSupport, ExportsAsFloat32) {
  const char* from = std::getenv("DISTIL_XLSTM_EXPORT_FROM");
  const char* to = std::getenv("DISTIL_XLSTM_EXPORT_TO");
  if (from == nullptr || to == nullptr) GTEST_SKIP() << "a part of tests/oracles/test_gguf.py";
  const bool has_tensors = fs::path(from).extension() != ".gguf" || !GgufFile(from).tensors().empty();
  if (has_tensors) {
    export_model(open_model(from), to);
  } else {
    export_tokenizer(gguf_tokenizer(GgufFile(from)).value(), to);
  }
}

}  // namespace
}  // namespace distil_xlstm::io
