#include "train/distill_run.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "base/output_lock.h"
#include "base/signals.h"
#include "base/text.h"
#include "ops/device.h"
#include "ops/fp8.h"
#include "student/registry.h"
#include "tokenizer/stop_ids.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"
#include "train/checkpoint.h"
#include "train/origin.h"
#include "train/run_data.h"
#include "train/run_directory.h"
#include "train/run_plan.h"
#include "train/run_record.h"
#include "train/setting_checks.h"

namespace distil_xlstm::train {
namespace {

// Everything of a run in progress.
struct Session {
  config::RunConfig config;
  fs::path run;
  bool resumes = false, replaces = false;
  at::Device device = at::kCPU;
  at::ScalarType compute_dtype = at::kFloat;
  std::unique_ptr<student::StudentShape> wanted;
  RunData data;
  std::optional<RunPlan> plan;
  std::unique_ptr<teacher::Teacher> teacher;
  std::unique_ptr<teacher::TeacherSource> source;
  std::unique_ptr<student::Student> student;
  ops::HeadRows head_rows;  // that the losses run over
  json origin;              // train/origin.h
  json generation_config;   // with the teacher's stop ids
};

// Another student's weights, or those of the checkpoint that a resumed run goes on from.
io::ModelFiles open_start(const std::string& from, bool resumes, const student::StudentShape& wanted) {
  auto files = resumes ? io::open_checkpoint(from) : io::open_model(from);
  if (files.kind != io::ModelKind::student) throw ConfigError("student.init_from = \"{}\": is no student", from);
  const auto found = student::read_shape(files.config, files.path.string() + " (configuration)");
  if (const auto differences = wanted.differences(*found); !differences.empty())
    throw ConfigError("{}: is a student of another shape:\n{}", from, join(differences, "\n"));
  files.config = wanted.to_json("");
  return files;
}

// ---- The run's directory.

// The texts that a new run reads.
std::vector<fs::path> inputs_of(const config::RunConfig& config) {
  std::vector<fs::path> inputs = {config.data.train, config.data.validation};
  for (const auto& source : config.data.sources) inputs.emplace_back(source.path);
  return inputs;
}

void check_output(const DistillRequest& request, Session& s) {
  if (request.resume) {
    if (run_status(s.run).empty()) throw ConfigError("output = \"{}\": there is no run to resume", s.run.string());
    if (list_checkpoints(s.run).empty())
      throw ConfigError("output = \"{}\": the run has no checkpoint to resume from: --overwrite begins it anew", s.run.string());
    const bool has_failed = run_status(s.run) == "failed";
    const auto changes = changed_settings(saved_settings(s.run, {}).run, request.config.run, has_failed);
    if (!changes.empty()) throw ConfigError("{}: cannot be resumed with other settings:\n{}", s.run.string(), join(changes, "\n"));
    return;
  }
  // The student that it starts from is read before anything is written.
  s.replaces = check_new_run(s.run, request.overwrite, inputs_of(s.config), {s.config.teacher.model});
}

// The rows of the heads that no token has: whether the losses count them is a setting.
void choose_head_rows(Session& s, const Tokenizer& tokenizer) {
  const int64_t num_rows = s.teacher->vocab_size();
  const auto without_token = rows_without_token(tokenizer, num_rows);
  if (without_token.empty()) return;
  const bool leaves_out = s.config.distill.vocabulary == config::LossVocabulary::tokenizer;
  spdlog::info("rows of the heads without a token: {} of {}: the losses {} (distill.vocabulary = \"{}\")", without_token.size(), num_rows,
               leaves_out ? "leave them out" : "run over them too", config::name_of(s.config.distill.vocabulary));
  if (leaves_out) s.head_rows = ops::HeadRows(without_token, num_rows, s.device);
}

void make_student(Session& s, const std::optional<io::ModelFiles>& start) {
  const auto& embedding = s.teacher->embedding_weight();
  const auto& head = s.teacher->head_weight();
  const student::StudentPlace place = {.device = s.device, .embedding_VD = embedding, .head_VD = head, .teacher = s.teacher.get()};
  s.student = start ? student::load_student(*start, place) : s.wanted->fresh(place, s.config.seed);
}

json describe_session(const Session& s, const teacher::TeacherShape& shape) {
  return {{"format", kRunFormat},
          {"program_version", DISTIL_XLSTM_VERSION},
          {"status", "starting"},
          {"method", s.config.distill.method},
          {"teacher", {{"model", s.config.teacher.model}, {"description", s.teacher->description()}, {"parameters", shape.num_parameters}}},
          {"student", {{"description", s.student->description()}, {"trainable_parameters", s.student->shape().num_trainable_parameters()}}},
          {"device", s.device.str()},
          {"precision", ops::precision_name(s.compute_dtype)},
          {"prepared", s.data.prepared},
          {"settings", config::to_json(s.config)}};
}

TrainStatus train_session(Session& s, RunRecord& record, const DistillRequest& request, const fs::path& checkpoint) {
  Trainer trainer({.config = s.config,
                   .plan = *s.plan,
                   .teacher = *s.source,
                   .student = *s.student,
                   .train = *s.data.train,
                   .validation = s.data.validation.get(),
                   .run = s.run,
                   .compute_dtype = s.compute_dtype,
                   .origin = s.origin,
                   .head_rows = s.head_rows,
                   .resume_from = checkpoint.string(),
                   .stop_after_steps = request.stop_after_steps});
  const int64_t total_steps = trainer.length().total_steps;
  spdlog::info("{} steps of {} rows of {} tokens, {} epochs; from step {}", total_steps,
               s.config.train.micro_batch_size * s.config.train.gradient_accumulation_steps, s.config.data.context_length,
               trainer.length().num_epochs, trainer.state().step);
  if (s.resumes) record.write_settings(s.config);
  record.write_status("running", trainer.summary());
  try {
    const auto status = trainer.run();
    record.write_status(status == TrainStatus::finished ? "finished" : "stopped", trainer.summary());
    if (status == TrainStatus::stopped && received_signal() != 0) {
      throw Interrupted(received_signal(), fmt::format("stopped at step {} of {}; go on with: distil-xlstm distill --resume --output {}",
                                                       trainer.state().step, total_steps, s.run.string()));
    }
    return status;
  } catch (const Interrupted&) {
    throw;
  } catch (const std::exception&) {  // LibTorch's too, such as memory that ran out
    record.write_failure(trainer.summary());
    throw;
  }
}

// Of the first epoch; the loader is at its beginning again afterwards.
nn::DeviceBatch first_batch(Session& s) {
  data::Batch batch;
  s.data.train->begin_epoch(0);
  s.data.train->next(batch);
  s.data.train->begin_epoch(0);
  return nn::to_device(batch, s.device);
}

void load_teacher(Session& s, const io::ModelFiles& files) {
  const auto precision = teacher::parse_precision(s.config.teacher.precision, s.device);
  s.teacher = teacher::load_teacher(files, s.device, precision.dtype);
  spdlog::info("teacher: {}, {}", s.config.teacher.model, s.teacher->description());
}

// Teacher's weights as they are, a few rows of the first micro-batch.
void start_student_from_rows(Session& s) {
  constexpr int64_t kMaxRows = 8;
  if (!s.student->starts_from_rows()) return;
  const auto rows = first_batch(s);
  const auto few = rows.rows(0, std::min<int64_t>(rows.tokens_BS.size(0), kMaxRows));
  const auto seen = s.teacher->forward(few.tokens_BS, few.is_start_BS, {.collect_attention = true});
  s.student->start_from_rows(seen.layer_inputs_BSD, few.is_start_BS, s.teacher.get());
}

// After the student was made, which may start from the weights as they are. What fp8 does to the teacher's predictions is measured on the
// first rows of the first epoch.
void use_fp8(Session& s) {
  if (!teacher::parse_precision(s.config.teacher.precision, s.device).has_fp8_products) return;
  if (!ops::has_fp8_products(s.device))
    spdlog::warn(
        "teacher.precision = \"fp8\": {} has no fp8 products (GPUs of compute capability 8.9 and later do): its values are "
        "multiplied in float32, slower than without fp8",
        s.device.str());
  const auto on_device = first_batch(s);
  const auto effect = teacher::use_fp8_products(*s.teacher, on_device.tokens_BS, on_device.is_start_BS, on_device.mask_BS);
  spdlog::info("teacher in fp8: {}", teacher::description(effect));
}

// What a checkpoint of now holds, and what that of a resumed run must.
void set_origin(Session& s, const io::ModelFiles& files, const Tokenizer& tokenizer, const fs::path& checkpoint) {
  const auto precision = teacher::parse_precision(s.config.teacher.precision, s.device);
  s.origin = describe_origin({.teacher = files,
                              .tokenizer = tokenizer,
                              .teacher_precision = teacher::precision_name(precision),
                              .precision = ops::precision_name(s.compute_dtype),
                              .validation = s.data.validation.get()});
  if (!s.resumes) return;
  const auto recorded = get_or<json>(read_checkpoint(checkpoint), "origin", nullptr);
  check_origin(recorded, s.origin, checkpoint.string(), s.config.teacher.model);
  if (s.data.validation == nullptr && recorded.is_object())
    s.origin["validation_shards"] = get_or<json>(recorded, "validation_shards", nullptr);
}

}  // namespace

TrainStatus run_distillation(const DistillRequest& request) {
  const SignalGuard guard;
  Session s;
  s.config = request.config.run;
  s.run = s.config.output;
  s.resumes = request.resume;
  // Nothing of an old run is touched before everything about the new one is known to be good: make_run_directory is the last step.
  check_settings(request.config);
  if (!s.resumes) warn_of_ignored_keys(request.config);
  s.device = ops::parse_device(s.config.train.device);
  s.compute_dtype = ops::parse_precision(s.config.train.precision, s.device);
  const auto files = io::open_model(s.config.teacher.model);
  if (files.kind != io::ModelKind::transformer)
    throw ConfigError("teacher.model = \"{}\": is a student, a transformer is needed", s.config.teacher.model);
  if (!files.tokenizer) throw ConfigError("teacher.model = \"{}\": has no tokenizer.json beside it", s.config.teacher.model);
  const auto shape = teacher::teacher_shape(files);
  s.wanted = student::derive_shape(s.config.student, shape, s.config.data.context_length);
  check_stages(s.config, *s.wanted);
  distill::Objective objective(s.config.distill, shape.num_layers, s.wanted->num_layers());
  if (shape.max_position_embeddings > 0 && s.config.data.context_length > shape.max_position_embeddings) {
    spdlog::warn("data.context_length = {} is longer than the {} positions the teacher was made for", s.config.data.context_length,
                 shape.max_position_embeddings);
  }
  check_output(request, s);
  const OutputLock lock(s.run);
  check_output(request, s);  // another process may have written before the lock was ours
  if (s.replaces && !request.overwrite) spdlog::info("{}: the run there ended before its training began: beginning again", s.run.string());
  check_texts({s.config, s.run, s.resumes, s.replaces});
  const fs::path checkpoint = s.resumes ? checked_last_checkpoint(s.run) : fs::path();
  const std::string from = s.resumes ? checkpoint.string() : s.config.student.init_from;
  std::optional<io::ModelFiles> start;
  if (!from.empty()) start = open_start(from, s.resumes, *s.wanted);
  const Tokenizer tokenizer(*files.tokenizer);
  s.generation_config = generation_config(stop_ids(files, tokenizer), tokenizer);
  s.data = open_data({s.config, s.run, s.resumes, s.replaces}, tokenizer, shape.vocab_size);
  s.plan = plan_run(s.config, *s.data.train, std::move(objective));
  throw_if_interrupted();
  set_origin(s, files, tokenizer, checkpoint);
  load_teacher(s, files);
  s.source = teacher::make_teacher_source(s.config.teacher.source, *s.teacher);
  choose_head_rows(s, tokenizer);
  make_student(s, start);
  if (!start) start_student_from_rows(s);
  use_fp8(s);
  start.reset();  // an old run's weights are mapped by it
  spdlog::info("student: {}", s.student->description());
  RunRecord record(s.run, describe_session(s, shape));
  const SharedSources shared = {*s.teacher, tokenizer, s.generation_config};
  throw_if_interrupted();
  if (!s.resumes) {
    make_run_directory(s.run, s.data.prepared, s.replaces);
    record.begin(s.config, shared);
  } else {
    record.resume(shared);
  }
  return train_session(s, record, request, checkpoint);
}

config::LoadedConfig saved_settings(const fs::path& directory, const std::vector<config::Override>& overrides) {
  const auto path = directory / "settings.toml";
  if (!fs::exists(path)) throw DataError("{}: no settings.toml: there is no run to resume", directory.string());
  return config::load_config({.file = path, .preset = "", .overrides = overrides});
}

std::vector<std::string> changed_settings(const config::RunConfig& saved, const config::RunConfig& now, bool has_failed) {
  std::vector<std::string> changes;
  for (const auto& setting : config::all_settings()) {
    if (setting.may_change(has_failed)) continue;
    const auto before = config::toml_value(setting.get(saved)), after = config::toml_value(setting.get(now));
    if (before != after) changes.push_back(fmt::format("  {}: was {}, is {}", setting.key, before, after));
  }
  return changes;
}

}  // namespace distil_xlstm::train
