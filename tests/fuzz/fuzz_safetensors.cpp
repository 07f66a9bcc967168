// A safetensors file: {"header": object or text, "data_bytes": n, "length": the header's length where it is to be wrong, "patches", "cut"}.
#include "fuzz/fuzz_target.h"
#include "io/safetensors.h"

namespace distil_xlstm {
namespace {

void read_all(const io::SafetensorsFile& file) {
  constexpr int64_t kMostElements = 1 << 16;
  for (const io::TensorView& tensor : file.tensors()) {
    (void)file.at(tensor.name);
    if (tensor.num_elements() > kMostElements) continue;
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    fuzz::tolerate([&] { io::read_rows(tensor, 0, tensor.num_elements(), values.data(), "fuzz"); });
  }
}

}  // namespace
}  // namespace distil_xlstm

DISTIL_XLSTM_RECIPE_MUTATOR({"dtype", "shape",  "data_offsets", "__metadata__", "F32",        "F64",     "F16",     "BF16",
                             "I64",   "I32",    "I16",          "I8",           "U8",         "BOOL",    "F8_E4M3", "a",
                             "b",     "format", "header",       "length",       "data_bytes", "patches", "cut"});

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  static const fuzz::Folder folder;
  const json recipe = fuzz::read_recipe(data, size);
  if (recipe.is_null()) return -1;
  const json header = recipe.contains("header") ? recipe["header"] : json();
  const std::string text = header.is_string() ? header.get<std::string>() : header.dump(-1, ' ', false, json::error_handler_t::replace);
  std::string content;
  fuzz::append<uint64_t>(content, fuzz::number_or(recipe, "length", text.size()));
  content += text;
  content.append(std::min<uint64_t>(fuzz::number_or(recipe, "data_bytes", 0), 1 << 20), '\x3c');
  fuzz::apply_patches(content, recipe);
  const fs::path path = folder.write("model.safetensors", content);
  fuzz::tolerate([&] { read_all(io::SafetensorsFile(path)); });
  fuzz::tolerate([&] { (void)io::open_safetensors_directory(folder.path())->names(); });
  return 0;
}
