#include <algorithm>
#include <set>

#include "base/json.h"
#include "io/safetensors.h"

namespace distil_xlstm::io {
namespace {

class SafetensorsWeights final : public WeightSource {
 public:
  SafetensorsWeights(const std::vector<fs::path>& paths, std::string origin) : origin_(std::move(origin)) {
    files_.reserve(paths.size());
    for (const fs::path& path : paths) files_.emplace_back(path);
    for (const SafetensorsFile& file : files_) {
      for (const TensorView& tensor : file.tensors()) {
        if (!index_.emplace(tensor.name, &tensor).second) throw DataError("{}: tensor '{}' is in two of its files", origin_, tensor.name);
        names_.push_back(tensor.name);
      }
    }
  }

  [[nodiscard]] std::vector<std::string> names() const override { return names_; }
  [[nodiscard]] bool contains(std::string_view name) const override { return index_.find(name) != index_.end(); }
  [[nodiscard]] TensorView view(std::string_view name) const override {
    const auto it = index_.find(name);
    if (it == index_.end()) throw DataError("{}: tensor '{}' is missing", origin_, name);
    return *it->second;
  }
  void read_float(std::string_view name, int64_t begin, int64_t end, float* out) const override {
    read_rows(view(name), begin, end, out, origin_);
  }
  [[nodiscard]] bool is_plain(std::string_view name) const override { return contains(name); }
  [[nodiscard]] std::string origin() const override { return origin_; }

 private:
  std::string origin_;
  std::vector<SafetensorsFile> files_;
  std::vector<std::string> names_;
  std::map<std::string_view, const TensorView*, std::less<>> index_;
};

using WeightMap = std::map<std::string, std::string>;  // tensor -> shard

WeightMap read_index(const fs::path& index_path) {
  const json index = read_json(index_path);
  const std::string where = index_path.string();
  if (!index.is_object()) throw DataError("{}: not a JSON object", where);
  auto weight_map = require<WeightMap>(index, "weight_map", where);
  if (weight_map.empty()) throw DataError("{}: weight_map is empty", where);
  for (const auto& [tensor, shard] : weight_map) {
    const fs::path file(shard);
    if (file.filename() != file || shard.empty() || shard == "." || shard == "..") {
      throw DataError("{}: shard '{}' of tensor '{}' is not the name of a file in the same directory", where, shard, tensor);
    }
  }
  return weight_map;
}

std::vector<fs::path> shards_of(const fs::path& index_path) {
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : read_index(index_path)) shards.insert(shard);
  std::vector<fs::path> paths;
  for (const std::string& shard : shards) {
    paths.push_back(index_path.parent_path() / shard);
    if (!fs::exists(paths.back())) throw DataError("{}: its shard '{}' is missing: the download is incomplete", index_path.string(), shard);
  }
  return paths;
}

constexpr const char* kIndexName = "model.safetensors.index.json";

}  // namespace

std::shared_ptr<WeightSource> open_safetensors_files(const std::vector<fs::path>& files, std::string origin) {
  return std::make_shared<SafetensorsWeights>(files, std::move(origin));
}

std::vector<fs::path> safetensors_files(const fs::path& directory) {
  if (const fs::path single = directory / "model.safetensors"; fs::exists(single)) return {single};
  if (const fs::path index = directory / kIndexName; fs::exists(index)) return shards_of(index);
  const bool has_pickle = fs::exists(directory / "pytorch_model.bin") || fs::exists(directory / "pytorch_model.bin.index.json");
  throw DataError("{}: no model.safetensors and no model.safetensors.index.json{}", directory.string(),
                  has_pickle ? "; pytorch_model.bin is not read: save the model with safe_serialization=True" : "");
}

std::shared_ptr<WeightSource> open_safetensors_directory(const fs::path& directory) {
  const std::vector<fs::path> files = safetensors_files(directory);
  std::shared_ptr<WeightSource> weights = open_safetensors_files(files, directory.string());
  if (files.front().filename() == "model.safetensors") return weights;
  for (const auto& [tensor, shard] : read_index(directory / kIndexName)) {
    if (!weights->contains(tensor)) {
      throw DataError("{}: tensor '{}' is listed in the index, its shard '{}' does not hold it", directory.string(), tensor, shard);
    }
  }
  return weights;
}

}  // namespace distil_xlstm::io
