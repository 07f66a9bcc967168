#include <algorithm>
#include <set>

#include "base/foreign_content.h"
#include "base/json_limits.h"
#include "base/log.h"
#include "io/safetensors.h"

namespace distil_xlstm::io {
namespace {

class SafetensorsWeights final : public WeightSource {
 public:
  SafetensorsWeights(const std::vector<fs::path>& paths, std::string origin) : origin_(std::move(origin)) {
    files_.reserve(paths.size());
    for (const fs::path& path : paths) files_.emplace_back(path);
    for (const SafetensorsFile& file : files_) {
      file.check_data();
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
  const std::string where = index_path.string();
  const std::string text = read_file(index_path);
  throw_if_foreign(text, where, ContentKind::json);
  const UnorderedJson index = parse_unordered_json(text, where);  // may have 100 000 keys
  if (!index.is_object()) throw DataError("{}: not a JSON object", where);
  const auto found = index.find("weight_map");
  if (found == index.end()) throw DataError("{}: key 'weight_map' is missing", where);
  WeightMap weight_map;
  try {
    found->get_to(weight_map);
  } catch (const nlohmann::json::exception&) {
    throw DataError("{}: key 'weight_map' is no object of file names", where);
  }
  if (weight_map.empty()) throw DataError("{}: weight_map is empty", where);
  for (const auto& [tensor, shard] : weight_map) {
    const fs::path file(shard);
    if (file.filename() != file || shard.empty() || shard == "." || shard == "..") {
      throw DataError("{}: shard '{}' of tensor '{}' is not the name of a file in the same directory", where, shard, tensor);
    }
  }
  return weight_map;
}

std::set<std::string> shards_named_by(const WeightMap& weight_map) {
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weight_map) shards.insert(shard);
  return shards;
}

// The first weights file, by name, that an index does not know; "" when there is none.
std::string unknown_weights(const fs::path& directory, const std::set<std::string>& known) {
  std::set<std::string> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() == ".safetensors" && !known.contains(name)) found.insert(name);
  }
  return found.empty() ? "" : *found.begin();
}

std::vector<fs::path> shards_of(const fs::path& index_path) {
  const fs::path directory = index_path.parent_path();
  const std::set<std::string> shards = shards_named_by(read_index(index_path));
  std::vector<fs::path> paths;
  std::vector<std::string> missing;
  for (const std::string& shard : shards) {
    paths.push_back(directory / shard);
    if (!fs::exists(paths.back())) missing.push_back(shard);
  }
  if (missing.empty()) return paths;
  const std::string what = missing.size() == shards.size()
                               ? fmt::format("none of the {} files that it names is there", shards.size())
                               : fmt::format("{} of the {} files that it names are missing", missing.size(), shards.size());
  const std::string unknown = unknown_weights(directory, shards);
  throw DataError("{}: {} ('{}'): {}", index_path.string(), what, missing.front(),
                  unknown.empty()
                      ? "the download is incomplete"
                      : fmt::format("'{}' is, which it does not name: the index belongs to other files, bring the one of these", unknown));
}

// transformers reads the single file, whatever an index says.
void warn_of_index_beside(const fs::path& single, const fs::path& index) {
  try {
    if (shards_named_by(read_index(index)) == std::set<std::string>{single.filename().string()}) return;
  } catch (const Error& error) {
    spdlog::warn("{}: is read, the index beside it is not needed and cannot be read ({}): remove the index", single.string(), error.what());
    return;
  }
  spdlog::warn("{}: is read, as transformers does; {} beside it names other files, which are not: remove the one that is not meant",
               single.string(), index.filename().string());
}

constexpr const char* kIndexName = "model.safetensors.index.json";

}  // namespace

std::shared_ptr<WeightSource> open_safetensors_files(const std::vector<fs::path>& files, std::string origin) {
  return std::make_shared<SafetensorsWeights>(files, std::move(origin));
}

std::vector<fs::path> safetensors_files(const fs::path& directory) {
  const fs::path single = directory / "model.safetensors", index = directory / kIndexName;
  if (fs::exists(single)) {
    if (fs::exists(index)) warn_of_index_beside(single, index);
    return {single};
  }
  if (fs::exists(index)) return shards_of(index);
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
      throw DataError("{}: tensor '{}' is listed in {}, its shard '{}' does not hold it: the index belongs to other files",
                      directory.string(), tensor, kIndexName, shard);
    }
  }
  return weights;
}

}  // namespace distil_xlstm::io
