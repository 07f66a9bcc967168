#include "train/distill_run.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/text.h"
#include "data/prepare.h"
#include "ops/device.h"
#include "tokenizer/tokenizer.h"
#include "train/checkpoint.h"

namespace distil_xlstm::train {
namespace {

// Settings that a resumed run may change: they do not touch what is computed.
constexpr std::array kFreeSettings = {"output",
                                      "train.device",
                                      "train.checkpointing",
                                      "train.log_every_steps",
                                      "train.save_every_steps",
                                      "train.keep_checkpoints",
                                      "train.max_skipped_steps",
                                      "eval.every_steps"};

// Everything of a run in progress, in the order in which it is made.
struct Session {
  config::RunConfig config;
  fs::path run;
  at::Device device = at::kCPU;
  at::ScalarType compute_dtype = at::kFloat;
  std::unique_ptr<teacher::Teacher> teacher;
  std::unique_ptr<student::Student> student;
  std::unique_ptr<data::Loader> train, validation;
  json description;  // run.json
};

void check_before_loading(const config::LoadedConfig& loaded) {
  const auto& run = loaded.run;
  std::vector<std::string> problems;
  if (run.teacher.model.empty()) problems.emplace_back("teacher.model is not set: name a model, such as --teacher stories260K");
  if (run.data.train.empty() && run.data.sources.empty())
    problems.emplace_back("data.train is not set: name shards or text, such as --train FILE");
  try {
    // Depends on the run's length in epochs and steps only for annealing-kd, which is checked again with the real one.
    distill::make_method(run.distill, 1 << 20, 1 << 10);
  } catch (const ConfigError& error) {
    problems.emplace_back(error.what());
  }
  if (!problems.empty()) throw ConfigError("{}", join(problems, "\n"));
  for (const auto& key : distill::ignored_keys(run.distill.method)) {
    for (const auto& [said, where] : loaded.sources) {
      const bool is_preset = where.starts_with("preset ");
      if (!is_preset && (said == "distill." + key || said.starts_with("distill." + key + "."))) {
        spdlog::warn("{}: {} has no effect with distill.method = \"{}\"", where, said, run.distill.method);
      }
    }
  }
}

void claim_output(const DistillRequest& request, const fs::path& run) {
  const bool is_run = fs::exists(run / "run.json") || fs::exists(run / "settings.toml");
  if (request.resume) {
    if (!is_run) throw ConfigError("output = \"{}\": there is no run to resume", run.string());
    const auto changes = changed_settings(saved_settings(run, {}).run, request.config.run);
    if (!changes.empty()) throw ConfigError("{}: cannot be resumed with other settings:\n{}", run.string(), join(changes, "\n"));
    return;
  }
  if (!list_checkpoints(run).empty() && !request.overwrite) {
    throw ConfigError(
        "output = \"{}\": holds a run already: --resume goes on with it, --overwrite replaces it, --output names another place",
        run.string());
  }
  const bool is_ours = is_run || !fs::exists(run) || fs::is_empty(run) || fs::exists(run / "data");
  if (!is_ours) throw ConfigError("output = \"{}\": is not empty and no run: choose another place", run.string());
  if (is_run) {
    // The prepared text stays: `prepare` sees by itself whether it is still the right one.
    std::vector<fs::path> old;
    for (const auto& entry : fs::directory_iterator(run)) old.push_back(entry.path());
    std::erase_if(old, [](const fs::path& path) { return path.filename() == "data" || path.filename() == "validation-data"; });
    for (const auto& path : old) fs::remove_all(path);
  }
  fs::create_directories(run);
}

bool is_shards(const std::string& path) {
  const auto files = expand_paths({path});
  return std::any_of(files.begin(), files.end(), [](const fs::path& file) { return file.extension() == data::kShardExtension; });
}

// Shards as they are; text is prepared into the run's directory first (and found there again when the run is resumed).
std::string shards_of(const config::RunConfig& config, const std::string& path, const fs::path& output, double validation_fraction) {
  if (is_shards(path)) return path;
  data::PrepareOptions options;
  options.reader.inputs = {path};
  options.output = output;
  options.model = config.teacher.model;
  options.context_length = config.data.context_length;
  options.document_end = config.data.document_end;
  options.validation_fraction = validation_fraction;
  options.overwrite = true;  // the directory is the run's own
  const auto report = data::prepare(options);
  if (!report.was_complete) {
    spdlog::info("prepared {}: {} train and {} validation tokens", path, format_count(static_cast<double>(report.train_tokens)),
                 format_count(static_cast<double>(report.validation_tokens)));
  }
  return output.string();
}

bool has_validation_split(const std::string& path) {
  const auto shards = data::find_shards(path);
  return std::any_of(shards.begin(), shards.end(), [](const fs::path& shard) {
    return data::TokenShard(shard, /*verify_content=*/false).split() == data::Split::validation;
  });
}

void open_data(Session& s, const Tokenizer& tokenizer) {
  data::LoaderOptions options;
  const auto& settings = s.config.data;
  for (const auto& source : settings.sources) options.sources.push_back({source.path, source.weight});
  if (settings.sources.empty()) {
    const double fraction = settings.validation.empty() ? settings.validation_fraction : 0.0;
    options.sources.push_back({shards_of(s.config, settings.train, s.run / "data", fraction), 1.0});
  }
  options.context_length = settings.context_length;
  options.micro_batch_size = s.config.train.micro_batch_size;
  options.seed = s.config.seed;
  options.document_isolation = data::parse_document_isolation(settings.document_isolation);
  options.tokenizer_fingerprint = tokenizer.fingerprint();
  options.vocab_size = s.teacher->vocab_size();
  s.train = std::make_unique<data::Loader>(options);

  if (s.config.eval.every_steps == 0) return;
  options.shuffle = false;
  options.split = "validation";
  if (!settings.validation.empty()) {
    options.split = "any";
    options.sources = {{shards_of(s.config, settings.validation, s.run / "validation-data", 0.0), 1.0}};
  } else {
    std::erase_if(options.sources, [](const data::LoaderSource& source) { return !has_validation_split(source.path); });
    for (auto& source : options.sources) source.weight = 1.0;
  }
  if (options.sources.empty()) {
    spdlog::warn("no validation data: no checkpoint is called best (set data.validation, or data.validation_fraction above 0 for text)");
    return;
  }
  s.validation = std::make_unique<data::Loader>(options);
}

void make_student(Session& s, const teacher::TeacherShape& shape, const fs::path& checkpoint) {
  const auto wanted = student::derive_student(s.config.student, shape, s.config.data.context_length);
  const auto& embedding = s.teacher->embedding_weight();
  const auto& head = s.teacher->head_weight();
  const std::string from = checkpoint.empty() ? s.config.student.init_from : checkpoint.string();
  if (from.empty()) {
    s.student = student::Student::create(wanted, embedding, head, s.config.seed, s.device);
    return;
  }
  s.student = student::Student::load(io::open_model(from), s.device, at::kFloat, embedding, head);
  if (s.student->config().to_json() != wanted.to_json()) {
    throw ConfigError("{}: its shape is not the one that [student] and the teacher give; from [student]:\n{}\nthere:\n{}", from,
                      wanted.to_json().dump(), s.student->config().to_json().dump());
  }
}

// What every checkpoint of the run shares, written once.
void write_run_files(const Session& s, const Tokenizer& tokenizer) {
  write_file_atomic(s.run / "settings.toml", config::to_toml(s.config));
  write_file_atomic(s.run / "tokenizer.json", tokenizer.files().tokenizer_json);
  write_json(s.run / "tokenizer_config.json", tokenizer.files().tokenizer_config);
  NamedTensors frozen = {{"token_embedding.weight", s.teacher->embedding_weight()}};
  if (!s.teacher->has_tied_head()) frozen.emplace_back("lm_head.weight", s.teacher->head_weight());
  const auto staging = s.run / "frozen.safetensors.tmp";
  write_tensors(staging, frozen);
  fs::rename(staging, s.run / "frozen.safetensors");
}

void write_status(Session& s, const std::string& status, const Trainer* trainer) {
  s.description["status"] = status;
  if (trainer != nullptr) s.description["progress"] = trainer->summary();
  write_json(s.run / "run.json", s.description);
}

json describe_session(const Session& s, const teacher::TeacherShape& shape) {
  return {
      {"format", "distil-xlstm run 1"},
      {"program_version", DISTIL_XLSTM_VERSION},
      {"status", "starting"},
      {"method", s.config.distill.method},
      {"teacher", {{"model", s.config.teacher.model}, {"description", s.teacher->description()}, {"parameters", shape.num_parameters}}},
      {"student", {{"description", s.student->description()}, {"trainable_parameters", s.student->config().num_trainable_parameters()}}},
      {"device", s.device.str()},
      {"precision", ops::precision_name(s.compute_dtype)},
      {"settings", config::to_json(s.config)}};
}

TrainStatus train_session(Session& s, const DistillRequest& request, const fs::path& checkpoint) {
  Trainer trainer({.config = s.config,
                   .teacher = *s.teacher,
                   .student = *s.student,
                   .train = *s.train,
                   .validation = s.validation.get(),
                   .run = s.run,
                   .compute_dtype = s.compute_dtype,
                   .resume_from = checkpoint.string(),
                   .stop_after_steps = request.stop_after_steps});
  spdlog::info("{} steps of {} rows of {} tokens, {} epochs; from step {}", trainer.length().total_steps,
               s.config.train.micro_batch_size * s.config.train.gradient_accumulation_steps, s.config.data.context_length,
               trainer.length().num_epochs, trainer.step());
  write_status(s, "running", &trainer);
  try {
    const auto status = trainer.run();
    write_status(s, status == TrainStatus::finished ? "finished" : "stopped", &trainer);
    if (status == TrainStatus::stopped && received_signal() != 0) {
      throw Interrupted(received_signal(), fmt::format("stopped at step {} of {}; go on with: distil-xlstm distill --resume --output {}",
                                                       trainer.step(), trainer.length().total_steps, s.run.string()));
    }
    return status;
  } catch (const Interrupted&) {
    throw;
  } catch (const Error&) {
    write_status(s, "failed", &trainer);
    throw;
  }
}

}  // namespace

TrainStatus run_distillation(const DistillRequest& request) {
  const SignalGuard guard;
  Session s;
  s.config = request.config.run;
  s.run = s.config.output;
  check_before_loading(request.config);
  s.device = ops::parse_device(s.config.train.device);
  s.compute_dtype = ops::parse_precision(s.config.train.precision, s.device);
  const auto files = io::open_model(s.config.teacher.model);
  if (files.kind != io::ModelKind::transformer)
    throw ConfigError("teacher.model = \"{}\": is a student, a transformer is needed", s.config.teacher.model);
  if (!files.tokenizer) throw ConfigError("teacher.model = \"{}\": has no tokenizer.json beside it", s.config.teacher.model);
  const auto shape = teacher::teacher_shape(files.config);
  student::derive_student(s.config.student, shape, s.config.data.context_length);  // wrong shapes fail before weights load
  if (shape.max_position_embeddings > 0 && s.config.data.context_length > shape.max_position_embeddings) {
    spdlog::warn("data.context_length = {} is longer than the {} positions the teacher was made for", s.config.data.context_length,
                 shape.max_position_embeddings);
  }
  claim_output(request, s.run);
  const fs::path checkpoint = request.resume ? checked_last_checkpoint(s.run) : fs::path();
  const Tokenizer tokenizer(*files.tokenizer);
  s.teacher = teacher::load_teacher(files, s.device, ops::parse_precision(s.config.teacher.precision, s.device));
  spdlog::info("teacher: {}, {}", s.config.teacher.model, s.teacher->description());
  open_data(s, tokenizer);
  throw_if_interrupted();
  make_student(s, shape, checkpoint);
  spdlog::info("student: {}", s.student->description());
  s.description = describe_session(s, shape);
  if (!request.resume) write_run_files(s, tokenizer);
  return train_session(s, request, checkpoint);
}

config::LoadedConfig saved_settings(const fs::path& directory, const std::vector<config::Override>& overrides) {
  const auto path = directory / "settings.toml";
  if (!fs::exists(path)) throw DataError("{}: no settings.toml: there is no run to resume", directory.string());
  return config::load_config({.file = path, .preset = "", .overrides = overrides});
}

std::vector<std::string> changed_settings(const config::RunConfig& saved, const config::RunConfig& now) {
  std::vector<std::string> changes;
  for (const auto& setting : config::all_settings()) {
    if (std::find(kFreeSettings.begin(), kFreeSettings.end(), setting.key) != kFreeSettings.end()) continue;
    const auto before = config::toml_value(setting.get(saved)), after = config::toml_value(setting.get(now));
    if (before != after) changes.push_back(fmt::format("  {}: was {}, is {}", setting.key, before, after));
  }
  return changes;
}

}  // namespace distil_xlstm::train
