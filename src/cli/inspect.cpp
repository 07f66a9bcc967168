// distil-xlstm inspect: what is in a checkpoint, a run, a model directory, a safetensors or GGUF file, a token shard.
#include <algorithm>
#include <iostream>
#include <map>

#include "base/error.h"
#include "base/printable.h"
#include "base/text.h"
#include "cli/commands.h"
#include "data/token_shard.h"
#include "io/gguf.h"
#include "io/model_files.h"
#include "io/safetensors.h"

namespace distil_xlstm::cli {
namespace {

// A map as an object: an ordered object looks through all its keys at each insertion.
template <typename Map, typename Convert>
json object_of(const Map& map, Convert convert) {
  json object = json::object();
  auto& entries = object.template get_ref<json::object_t&>();
  entries.reserve(map.size());
  for (const auto& [key, value] : map) entries.emplace_back(key, convert(value));
  return object;
}

json shape_json(const io::TensorView& tensor) {
  return {{"name", tensor.name}, {"dtype", io::traits(tensor.dtype).name}, {"shape", tensor.shape}, {"size_bytes", tensor.bytes.size()}};
}

template <typename Tensors>
json tensors_json(const Tensors& tensors) {
  json list = json::array();
  int64_t parameters = 0, size_bytes = 0;
  std::map<std::string, int64_t> by_dtype;
  for (const io::TensorView& tensor : tensors) {
    list.push_back(shape_json(tensor));
    parameters += tensor.num_elements();
    size_bytes += static_cast<int64_t>(tensor.bytes.size());
    ++by_dtype[std::string(io::traits(tensor.dtype).name)];
  }
  return {{"num_tensors", list.size()},
          {"num_parameters", parameters},
          {"size_bytes", size_bytes},
          {"dtypes", by_dtype},
          {"tensors", std::move(list)}};
}

json describe_safetensors(const fs::path& path) {
  const io::SafetensorsFile file(path);
  json result = {{"kind", "safetensors"}, {"metadata", object_of(file.metadata(), [](const std::string& text) { return json(text); })}};
  result.update(tensors_json(file.tensors()));
  return result;
}

json to_json(const io::GgufValue& value) {
  return std::visit(
      [](const auto& held) -> json {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::vector<int64_t>> || std::is_same_v<Held, std::vector<double>> ||
                      std::is_same_v<Held, std::vector<std::string>>) {
          if (held.size() > 16) return fmt::format("[{} values]", held.size());
        }
        return held;
      },
      value);
}

json describe_gguf(const fs::path& path) {
  const io::GgufFile file(path);
  json result = {{"kind", "gguf"}, {"metadata", object_of(file.metadata(), to_json)}};
  result.update(tensors_json(file.tensors()));
  return result;
}

json describe_shard(const fs::path& path) {
  const data::TokenShard shard(path);
  const auto& header = shard.header();
  return {{"kind", "token shard"},
          {"split", data::split_name(shard.split())},
          {"context_length", shard.context_length()},
          {"num_rows", shard.num_rows()},
          {"num_tokens", header.num_tokens},
          {"num_documents", header.num_borders},
          {"vocab_size", header.vocab_size},
          {"tokenizer_fingerprint", shard.fingerprint()},
          {"bos_id", header.bos_id},
          {"document_end_id", header.document_end_id},
          {"is_synthetic", shard.is_synthetic()},
          {"has_loss_mask", shard.has_loss_mask()},
          {"checksums", "good"},
          {"metadata", shard.metadata()}};
}

// Of a converted student that keeps attention: in how many layers, and what becomes of its state. Null for others.
json hybrid_json(const json& config) {
  const auto member = [](const json& object, const char* key) { return object.contains(key) ? object.at(key) : json(); };
  const json own = member(config, "distil_xlstm"), mixers = member(own, "mixers"), layers = member(config, "num_hidden_layers");
  if (member(own, "kind") != "convert" || !mixers.is_array() || mixers.empty() || !layers.is_number_unsigned()) return nullptr;
  const auto kept_of = [&](size_t count) {
    return std::count(mixers.begin(), mixers.begin() + static_cast<ptrdiff_t>(count), "attention");
  };
  const size_t num_layers = layers.get<size_t>(), size = mixers.size();
  const auto kept = static_cast<size_t>(kept_of(size)) * (num_layers / size) + static_cast<size_t>(kept_of(num_layers % size));
  if (kept == 0) return nullptr;
  const json window = member(own, "attention_window");
  return fmt::format("attention kept in {} of {} layers: the state {}", kept, num_layers,
                     window.is_number() && window > 0 ? "is of constant size" : "grows with the text");
}

json describe_model(const std::string& name) {
  const io::ModelFiles files = io::open_model(name);
  std::vector<io::TensorView> tensors;
  for (const auto& tensor : files.weights->names()) tensors.push_back(files.weights->view(tensor));
  json result = {{"kind", files.kind == io::ModelKind::student ? "student" : "transformer"}, {"path", files.path.string()}};
  const fs::path run = files.path / "run.json";
  for (const fs::path& place : {files.path / "trainer.json", run, files.path.parent_path().parent_path() / "run.json"}) {
    if (fs::exists(place)) result[place.stem().string()] = read_json(place);
  }
  result["config"] = files.config;
  if (const json hybrid = hybrid_json(files.config); !hybrid.is_null()) result["hybrid"] = hybrid;
  result["has_tokenizer"] = files.tokenizer.has_value();
  result.update(tensors_json(tensors));
  return result;
}

json describe(const std::string& name) {
  const fs::path path = name;
  if (path.extension() == ".safetensors") return describe_safetensors(path);
  if (path.extension() == ".gguf") return describe_gguf(path);
  if (path.extension() == data::kShardExtension) return describe_shard(path);
  return describe_model(name);
}

void print(const json& description, const std::string& indent = "") {
  for (const auto& [key, value] : description.items()) {
    if (key == "tensors") continue;
    if (value.is_object() && !value.empty()) {
      fmt::print("{}{}:\n", indent, printable(key));
      print(value, indent + "  ");
    } else {
      // Metadata of foreign files may hold any bytes, and anything under these names.
      std::string text =
          value.is_string() ? replace_invalid_utf8(value.get<std::string>()) : value.dump(-1, ' ', false, json::error_handler_t::replace);
      if (key == "size_bytes" && value.is_number()) text = format_bytes(value.get<double>());
      if (key == "num_parameters" && value.is_number()) text = fmt::format("{} ({})", text, format_parameters(value.get<double>()));
      if (text.size() > 200) text = text.substr(0, valid_utf8_prefix(text.substr(0, 190))) + " …";
      fmt::print("{}{}: {}\n", indent, printable(key), printable(text));
    }
  }
  if (indent.empty() && description.contains("tensors")) {
    for (const auto& tensor : description["tensors"]) {
      fmt::print("  {:<72} {:<6} {}\n", printable(tensor["name"].get<std::string>()), tensor["dtype"].get<std::string>(),
                 tensor["shape"].dump());
    }
  }
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  struct Options {
    std::string path;
    bool is_json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show what is in a checkpoint, a run, a model, a safetensors or GGUF file, a token shard");
  command->add_option("PATH", options->path, "File, directory or built-in name")->required();
  command->add_flag("--json", options->is_json, "As JSON");
  command->callback([options] {
    const json description = describe(options->path);
    if (options->is_json) {
      std::cout << description.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
    } else {
      print(description);
    }
  });
}

}  // namespace distil_xlstm::cli
