// A GGUF file: {"pairs": [[key, type, value], ...], "tensors": [[name, [dimensions], type], ...], "version", "patches", "cut"}. Its
// metadata, the model's configuration and the tokenizer made of them, every tensor dequantised.
#include <cmath>

#include "fuzz/fuzz_target.h"
#include "io/gguf_model.h"
#include "io/gguf_tokenizer.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm {
namespace {

constexpr uint32_t kString = 8, kArray = 9;

void append_text(std::string& content, const std::string& text) {
  fuzz::append<uint64_t>(content, text.size());
  content += text;
}

// A number as the type has it; what is no number counts as 0.
void append_number(std::string& content, uint32_t type, const json& value) {
  const double real = value.is_number() ? value.get<double>() : 0.0;
  const uint64_t whole = value.is_number_integer() ? value.get<uint64_t>() : value.is_boolean() && value.get<bool>() ? 1 : 0;
  switch (type) {
    case 0:
    case 1:
    case 7:
      return fuzz::append(content, static_cast<uint8_t>(whole));
    case 2:
    case 3:
      return fuzz::append(content, static_cast<uint16_t>(whole));
    case 6:
      return fuzz::append(content, std::abs(real) > 3e38 ? 0.0F : static_cast<float>(real));
    case 10:
    case 11:
      return fuzz::append(content, whole);
    case 12:
      return fuzz::append(content, real);
    default:
      return fuzz::append(content, static_cast<uint32_t>(whole));
  }
}

void append_value(std::string& content, uint32_t type, const json& value) {
  if (type == kString) return append_text(content, value.is_string() ? value.get<std::string>() : value.dump());
  if (type != kArray) return append_number(content, type, value);
  // [element type, values...]
  const uint32_t of =
      value.is_array() && !value.empty() && value[0].is_number_integer() ? static_cast<uint32_t>(value[0].get<uint64_t>()) : 0;
  const size_t count = value.is_array() && !value.empty() ? value.size() - 1 : 0;
  fuzz::append(content, of);
  fuzz::append<uint64_t>(content, count);
  for (size_t i = 1; i <= count; ++i) append_value(content, of, value[i]);
}

// Bytes of an element's block and elements of it, for the types that are read.
std::pair<uint64_t, uint64_t> block_of(uint64_t type) {
  switch (type) {
    case 0:
      return {4, 1};
    case 1:
    case 25:
    case 30:
      return {2, 1};
    case 2:
      return {18, 32};
    case 3:
      return {20, 32};
    case 6:
      return {22, 32};
    case 7:
      return {24, 32};
    case 8:
      return {34, 32};
    case 10:
      return {84, 256};
    case 11:
      return {110, 256};
    case 12:
      return {144, 256};
    case 13:
      return {176, 256};
    case 14:
      return {210, 256};
    case 26:
      return {4, 1};
    case 27:
    case 28:
      return {8, 1};
    default:
      return {1, 1};
  }
}

std::string build(const json& recipe) {
  const json pairs = fuzz::list_or_empty(recipe, "pairs"), tensors = fuzz::list_or_empty(recipe, "tensors");
  std::string content = "GGUF";
  fuzz::append<uint32_t>(content, static_cast<uint32_t>(fuzz::number_or(recipe, "version", 3)));
  fuzz::append<uint64_t>(content, fuzz::number_or(recipe, "num_tensors", tensors.size()));
  fuzz::append<uint64_t>(content, fuzz::number_or(recipe, "num_pairs", pairs.size()));
  for (const json& pair : pairs) {
    if (!pair.is_array() || pair.size() != 3) continue;
    append_text(content, pair[0].is_string() ? pair[0].get<std::string>() : "a");
    const uint32_t type = pair[1].is_number_integer() ? static_cast<uint32_t>(pair[1].get<uint64_t>()) : kString;
    fuzz::append(content, type);
    append_value(content, type, pair[2]);
  }
  uint64_t offset = 0;
  for (const json& tensor : tensors) {
    if (!tensor.is_array() || tensor.size() != 3 || !tensor[1].is_array()) continue;
    append_text(content, tensor[0].is_string() ? tensor[0].get<std::string>() : "a");
    fuzz::append<uint32_t>(content, static_cast<uint32_t>(tensor[1].size()));
    uint64_t elements = 1;
    for (const json& dimension : tensor[1]) {
      const uint64_t size = dimension.is_number_integer() ? dimension.get<uint64_t>() : 1;
      fuzz::append(content, size);
      elements *= size;
    }
    const uint64_t type = tensor[2].is_number_integer() ? tensor[2].get<uint64_t>() : 0;
    fuzz::append<uint32_t>(content, static_cast<uint32_t>(type));
    fuzz::append(content, offset);
    const auto [bytes, block] = block_of(type);
    offset += (elements / block * bytes + 31) / 32 * 32;
  }
  content.resize((content.size() + 31) / 32 * 32);
  content.append(std::min<uint64_t>(offset, 1 << 18), '\x35');
  fuzz::apply_patches(content, recipe);
  return content;
}

void use(const fs::path& path) {
  const io::GgufFile file(path);
  fuzz::tolerate([&] { (void)io::gguf_config(file).dump(); });
  fuzz::tolerate([&] {
    const auto files = io::gguf_tokenizer(file);
    if (!files) return;
    const Tokenizer tokenizer(*files);
    (void)tokenizer.decode(tokenizer.encode("ab a <s> \xc3\xbc", true));
  });
  const io::ModelFiles model = io::open_gguf_model(path);
  for (const std::string& name : model.weights->names()) {
    const auto view = model.weights->view(name);
    if (view.num_elements() > 1 << 16) continue;
    std::vector<float> values(static_cast<size_t>(view.num_elements()));
    fuzz::tolerate([&] { model.weights->read_float(name, 0, view.num_elements(), values.data()); });
  }
}

}  // namespace
}  // namespace distil_xlstm

DISTIL_XLSTM_RECIPE_MUTATOR({"general.architecture",
                             "general.alignment",
                             "llama",
                             "qwen2",
                             "llama.block_count",
                             "llama.context_length",
                             "llama.embedding_length",
                             "llama.feed_forward_length",
                             "llama.attention.head_count",
                             "llama.attention.head_count_kv",
                             "llama.attention.layer_norm_rms_epsilon",
                             "llama.rope.freq_base",
                             "llama.rope.dimension_count",
                             "llama.rope.scaling.type",
                             "llama.rope.scaling.factor",
                             "llama.vocab_size",
                             "tokenizer.ggml.model",
                             "tokenizer.ggml.pre",
                             "tokenizer.ggml.tokens",
                             "tokenizer.ggml.scores",
                             "tokenizer.ggml.token_type",
                             "tokenizer.ggml.merges",
                             "tokenizer.ggml.bos_token_id",
                             "tokenizer.ggml.eos_token_id",
                             "tokenizer.ggml.add_bos_token",
                             "tokenizer.ggml.add_eos_token",
                             "tokenizer.ggml.add_space_prefix",
                             "tokenizer.chat_template",
                             "gpt2",
                             "default",
                             "smollm",
                             "llama-bpe",
                             "a b",
                             "<s>",
                             "</s>",
                             "<0x0A>",
                             "token_embd.weight",
                             "output.weight",
                             "output_norm.weight",
                             "rope_freqs.weight",
                             "blk.0.attn_q.weight",
                             "blk.0.attn_k.weight",
                             "blk.0.attn_v.weight",
                             "blk.0.attn_output.weight",
                             "blk.0.attn_norm.weight",
                             "blk.0.ffn_gate.weight",
                             "blk.0.ffn_up.weight",
                             "blk.0.ffn_down.weight",
                             "blk.0.ffn_norm.weight",
                             "num_tensors",
                             "num_pairs",
                             "version",
                             "patches",
                             "cut"});

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  static const fuzz::Folder folder;
  const json recipe = fuzz::read_recipe(data, size);
  if (recipe.is_null()) return -1;
  const fs::path path = folder.write("model.gguf", build(recipe));
  fuzz::tolerate([&] { use(path); });
  return 0;
}
