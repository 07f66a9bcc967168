#include "io/model_files.h"

#include <array>

#include "base/text.h"
#include "io/builtin.h"
#include "io/fetched_directory.h"
#include "io/gguf_model.h"
#include "io/model_files_tokenizer.h"
#include "io/run_files.h"
#include "io/safetensors.h"

namespace distil_xlstm::io {
namespace {

constexpr std::string_view kEmbedding = "token_embedding.weight";
constexpr std::string_view kHead = "lm_head.weight";

// A student whose head is its embedding stores one of them; both names can be asked for. names() has what is stored.
class TiedHeadWeights final : public WeightSource {
 public:
  explicit TiedHeadWeights(std::shared_ptr<WeightSource> stored) : stored_(std::move(stored)) {}
  [[nodiscard]] std::vector<std::string> names() const override { return stored_->names(); }
  [[nodiscard]] bool contains(std::string_view name) const override { return stored_->contains(stored_name(name)); }
  [[nodiscard]] TensorView view(std::string_view name) const override {
    TensorView tensor = stored_->view(stored_name(name));
    tensor.name = name;
    return tensor;
  }
  void read_float(std::string_view name, int64_t begin, int64_t end, float* out) const override {
    stored_->read_float(stored_name(name), begin, end, out);
  }
  [[nodiscard]] bool is_plain(std::string_view name) const override { return stored_->is_plain(stored_name(name)); }
  [[nodiscard]] std::string origin() const override { return stored_->origin(); }

 private:
  static std::string_view stored_name(std::string_view name) { return name == kHead ? kEmbedding : name; }

  std::shared_ptr<WeightSource> stored_;
};

bool is_student(const json& config) {
  constexpr std::array<const char*, 5> kMarks = {"distil_xlstm", "mlstm_block", "slstm_block", "xlstm_config", "xlstm_cfg"};
  for (const char* key : kMarks) {
    if (config.contains(key)) return true;
  }
  return false;
}

bool is_run_directory(const fs::path& path) {
  return fs::exists(path / "run.json") || fs::is_directory(path / "checkpoints");
}

// checkpoints/<pointer> is a small text file that names the directory beside it.
std::optional<fs::path> follow_pointer(const fs::path& pointer) {
  if (!fs::is_regular_file(pointer)) return std::nullopt;
  std::string name = read_file(pointer);
  while (!name.empty() && (name.back() == '\n' || name.back() == '\r' || name.back() == ' ')) name.pop_back();
  fs::path target = pointer.parent_path() / name;
  if (name.empty() || name.front() == '.' || fs::path(name).filename() != fs::path(name) || !fs::is_directory(target)) {
    throw DataError("{}: it names '{}', which is no checkpoint beside it: write the name of one that is there into it", pointer.string(),
                    name);
  }
  return target;
}

fs::path checkpoint_of(const fs::path& checkpoints) {
  for (const char* pointer : {"best", "last"}) {
    if (const std::optional<fs::path> found = follow_pointer(checkpoints / pointer)) return *found;
  }
  throw DataError("{}: no checkpoint has been saved here yet (neither 'best' nor 'last' exists)", checkpoints.string());
}

json read_config(const fs::path& path) {
  json config = read_json(path);
  if (!config.is_object()) throw DataError("{}: not a JSON object", path.string());
  return config;
}

// The run that a checkpoint belongs to, as the user wrote it where that tells.
std::optional<fs::path> run_of(const fs::path& checkpoint) {
  const bool is_told = checkpoint.parent_path().filename() == "checkpoints" && checkpoint.parent_path().has_parent_path();
  const fs::path checkpoints = is_told ? checkpoint.parent_path() : fs::absolute(checkpoint).lexically_normal().parent_path();
  if (checkpoints.filename() != "checkpoints") return std::nullopt;
  return checkpoints.parent_path();
}

void read_generation_config(ModelFiles& model) {
  constexpr const char* kName = "generation_config.json";
  fs::path path = model.path / kName;
  const std::optional<fs::path> run = model.kind == ModelKind::student ? run_of(model.path) : std::nullopt;
  if (!fs::exists(path) && run) {
    check_run_files(*run, {kName});
    path = *run / kName;
  }
  model.generation_config = fs::exists(path) ? read_config(path) : json::object();
  model.generation_config_origin = path.string();
}

ModelFiles open_student(const fs::path& directory, json config) {
  ModelFiles model{.kind = ModelKind::student, .path = directory, .config = std::move(config)};
  std::vector<fs::path> weights = safetensors_files(directory);
  std::vector<fs::path> tokenizer_places = {directory};
  if (const std::optional<fs::path> run = run_of(directory)) {
    tokenizer_places.push_back(*run);
    check_run_files(*run, {"frozen.safetensors"});
    if (const fs::path frozen = *run / "frozen.safetensors"; fs::exists(frozen)) weights.push_back(frozen);
  }
  model.weights = open_safetensors_files(weights, directory.string());
  if (!model.weights->contains(kHead) && model.weights->contains(kEmbedding))
    model.weights = std::make_shared<TiedHeadWeights>(model.weights);
  model.tokenizer = read_tokenizer_files(tokenizer_places);
  return model;
}

ModelFiles open_transformer(const fs::path& directory, json config) {
  ModelFiles model{.kind = ModelKind::transformer, .path = directory, .config = std::move(config)};
  model.weights = open_safetensors_directory(directory);
  model.tokenizer = read_tokenizer_files({directory});
  return model;
}

// What `fetch` leaves of a repository that holds one GGUF file.
std::optional<fs::path> only_gguf_file(const fs::path& directory) {
  std::optional<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() != ".gguf") continue;
    if (found) throw DataError("{}: it holds several GGUF files: name one of them", directory.string());
    found = entry.path();
  }
  return found;
}

ModelFiles open_directory(const fs::path& directory) {
  if (is_run_directory(directory)) return open_directory(checkpoint_of(directory / "checkpoints"));
  if (directory.filename() == "checkpoints" && fs::exists(directory / "last")) return open_directory(checkpoint_of(directory));
  check_student_files(directory);
  const fs::path config_path = directory / "config.json";
  if (!fs::exists(config_path)) {
    if (const std::optional<fs::path> gguf = only_gguf_file(directory)) return open_gguf_model(*gguf);
    throw DataError("{}: not a model: a run directory has run.json, a checkpoint or a Hugging Face directory has config.json",
                    directory.string());
  }
  json config = read_config(config_path);
  ModelFiles model = is_student(config) ? open_student(directory, std::move(config)) : open_transformer(directory, std::move(config));
  read_generation_config(model);
  return model;
}

ModelFiles open_path(const fs::path& path) {
  if (fs::is_directory(path)) return open_directory(path.has_filename() ? path : path.parent_path());
  if (path.extension() == ".gguf") return open_gguf_model(path);
  if (const std::string name = path.filename().string(); name == "best" || name == "last") return open_directory(*follow_pointer(path));
  throw DataError("{}: not a model: a directory or a .gguf file is", path.string());
}

// What a name stands for is as it was brought: otherwise it gives wrong results, or errors that lead astray.
void check_known_place(const std::string& name, const fs::path& directory) {
  const bool is_builtin = builtin_model_directory(name).has_value();
  const std::string fault = is_builtin ? builtin_model_fault(name) : fetched_fault(directory);
  if (fault.empty()) return;
  const bool is_shipped = is_builtin && !directory.string().starts_with(cache_directory().string());
  throw DataError("model '{}': {}: {}", name, is_builtin ? fmt::format("in {} {}", directory.string(), fault) : fault,
                  is_shipped ? "install the program again"
                             : fmt::format("run `distil-xlstm fetch {}`, which brings it again{}", name,
                                           is_builtin ? "" : ", or give the directory's path to use it as it is"));
}

// The place that a name stands for, and what to do when nothing is there.
struct Place {
  fs::path path;
  std::string missing;
};

Place resolve_name(const std::string& name) {
  if (const std::optional<fs::path> directory = builtin_model_directory(name)) {
    const bool is_fetched = directory->string().starts_with(cache_directory().string());
    return {*directory, is_fetched ? fmt::format("it is not fetched yet: run `distil-xlstm fetch {}`", name)
                                   : fmt::format("its files should lie in {}: the installation is incomplete", directory->string())};
  }
  if (const std::optional<RepositoryName> repository = parse_repository_name(name)) {
    const fs::path directory = fetched_model_directory(*repository);
    return {directory,
            fmt::format("no such path, and that repository is not fetched (looked in {}): check the path, or run `distil-xlstm fetch {}`",
                        directory.string(), name)};
  }
  throw ConfigError("model '{}': no such path, no built-in name ({}) and no repository (org/name[@revision]){}", name,
                    join(builtin_model_names(), ", "), did_you_mean(name, builtin_model_names()));
}

}  // namespace

ModelFiles open_model(const std::string& name_or_path) {
  if (name_or_path.empty()) {
    throw ConfigError("model: the name is empty: give a path, a built-in name ({}) or org/name", join(builtin_model_names(), ", "));
  }
  fs::path path = name_or_path;
  if (std::error_code error; !fs::exists(path, error)) {
    if (error == std::errc::permission_denied) throw IoError("model '{}': {}", name_or_path, error.message());
    const Place place = resolve_name(name_or_path);
    if (!fs::exists(place.path)) throw ConfigError("model '{}': {}", name_or_path, place.missing);
    check_known_place(name_or_path, place.path);
    path = place.path;
  }
  ModelFiles model = open_path(path);
  model.name = name_or_path;
  return model;
}

}  // namespace distil_xlstm::io
