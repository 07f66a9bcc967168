#include "data/tokenizer_files.h"

#include "base/error.h"
#include "io/model_files_tokenizer.h"

namespace distil_xlstm::data {

io::TokenizerFiles open_tokenizer_files(const std::string& name) {
  const fs::path path(name);
  const fs::path directory = path.filename() == "tokenizer.json" ? path.parent_path() : path;
  if (auto files = io::read_tokenizer_files({directory})) return std::move(*files);
  auto model = io::open_model(name);
  if (!model.tokenizer) throw ConfigError("{}: this model comes without a tokenizer: put its tokenizer.json beside it", name);
  return std::move(*model.tokenizer);
}

}  // namespace distil_xlstm::data
