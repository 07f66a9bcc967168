// distil-xlstm export: a student as a directory that stands alone and that Python opens, with what its kind names for that
// (student::PythonForm).
#include <algorithm>
#include <array>
#include <iostream>

#include "base/error.h"
#include "base/output_directory.h"
#include "base/output_lock.h"
#include "base/temporary_path.h"
#include "base/text.h"
#include "cli/counted.h"
#include "cli/options/export.h"
#include "commands/compute.h"
#include "commands/model_card.h"
#include "io/model_files.h"
#include "io/safetensors.h"
#include "student/registry.h"
#include "tokenizer/stop_ids.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::ExportOptions;

void check_finite(const std::string& name, const Tensor& trained, const Tensor& stored) {
  if (at::isfinite(stored).all().item<bool>()) return;
  if (at::isfinite(trained).all().item<bool>())
    throw ValueError("--dtype {}: '{}' holds values that it cannot hold: take bf16 or fp32",
                     stored.scalar_type() == at::kHalf ? "fp16" : "bf16", name);
  throw DataError("'{}' holds values that are not finite: the student is damaged: export another checkpoint, or train it again", name);
}

// Views of contiguous CPU tensors in the dtype asked for; `kept` keeps them alive.
std::vector<io::TensorView> to_views(const NamedTensors& tensors, at::ScalarType dtype, std::vector<Tensor>& kept) {
  std::vector<io::TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    kept.push_back(tensor.detach().to(at::kCPU, dtype).contiguous());
    const Tensor& stored = kept.back();
    check_finite(name, tensor, stored);
    io::TensorView view;
    view.name = name;
    view.dtype = dtype == at::kFloat ? io::DType::f32 : dtype == at::kHalf ? io::DType::f16 : io::DType::bf16;
    view.shape = stored.sizes().vec();
    view.bytes = {static_cast<const std::byte*>(stored.const_data_ptr()), stored.nbytes()};
    views.push_back(std::move(view));
  }
  return views;
}

constexpr const char* kModelType = "distil_xlstm";  // in the config.json of an export alone, but for forms that a library knows itself

// Of exports of every kind; README.md apart.
constexpr std::array kFiles = {"model.safetensors",     "config.json",     "generation_config.json",  "tokenizer.json",
                               "tokenizer_config.json", "load_student.py", "modeling_distil_xlstm.py"};

bool is_own(const std::string& name) {
  return std::find(kFiles.begin(), kFiles.end(), name) != kFiles.end();
}

bool is_export(const fs::path& directory) {
  try {
    const json config = read_json(directory / "config.json");
    if (!config.is_object() || !config.contains("distil_xlstm")) return false;
    return config.value("model_type", json()) == kModelType || config.at("distil_xlstm").contains("layout");
  } catch (const Error&) {
    return false;
  }
}

void check_target(const Options& options, const fs::path& model) {
  const fs::path target = options.output;
  const std::string shown = fmt::format("--output {}", target.empty() ? "\"\"" : target.string());
  const auto state = check_output_directory(target, shown, {.name = "export", .is_result = is_export}, {}, {options.model, model});
  check_replaceable(target, shown);
  if (state == OutputState::result && !options.overwrite)
    throw ConfigError("{}: an export lies there: give --overwrite to replace it", shown);
}

// With the stop ids of the teacher. Returns generation_config.json.
json write_tokenizer(const fs::path& directory, const io::ModelFiles& files) {
  const Tokenizer tokenizer(*files.tokenizer);
  write_file_atomic(directory / "tokenizer.json", tokenizer.files().tokenizer_json);
  write_json(directory / "tokenizer_config.json", tokenizer.files().tokenizer_config);
  json config = generation_config(stop_ids(files, tokenizer), tokenizer);
  write_json(directory / "generation_config.json", config);
  return config;
}

json export_config(const student::StudentShape& shape, const student::PythonForm& form, at::ScalarType dtype, const json& generation) {
  json config = {{"model_type", kModelType}};
  config.update(shape.to_json(form.layout));
  config.update(form.config);
  if (!form.config.contains("model_type")) {
    config["model_type"] = kModelType;
  } else {  // a library's own class, which has ids of its own where none are given
    for (const char* id : {"bos_token_id", "eos_token_id", "pad_token_id"}) config[id] = generation.value(id, json());
  }
  if (!form.config.empty()) config["dtype"] = dtype == at::kFloat ? "float32" : dtype == at::kHalf ? "float16" : "bfloat16";
  return config;
}

}  // namespace

void run_export(const cli::ExportOptions& options) {
  const io::ModelFiles files = io::open_model(options.model);
  if (files.kind != io::ModelKind::student)
    throw ConfigError("{}: is a {}, only students are exported", options.model,
                      get_or<std::string>(files.config, "model_type", "transformer", files.path.string()));
  const fs::path target = options.output;
  check_target(options, files.path);
  const at::ScalarType dtype = options.dtype == "fp32" ? at::kFloat : options.dtype == "fp16" ? at::kHalf : at::kBFloat16;
  const auto student = student::load_student(files);
  std::vector<Tensor> kept;
  const student::PythonForm form = student::python_form(student->shape());
  const OutputLock lock(target, OutputLock::Place::beside);
  clear_abandoned(resolved_output(target));
  check_target(options, files.path);  // another process may have written before the lock was ours
  const auto views = to_views(student->stored_tensors(form.layout.empty() ? options.layout : form.layout, true), dtype, kept);
  write_directory_atomic(target, [&](const fs::path& staging) {
    io::write_safetensors(staging / "model.safetensors", views, {{"format", "pt"}, {"slstm_layout", options.layout}},
                          /*has_checksum=*/true);
    const json generation = files.tokenizer ? write_tokenizer(staging, files) : json::object();
    write_json(staging / "config.json", export_config(student->shape(), form, dtype, generation));
    for (const std::string& file : form.files) fs::copy_file(share_directory() / "export" / file, staging / file);
    if (const fs::path card = target / "README.md"; !fs::exists(fs::symlink_status(card)) || is_own_card(card))
      write_file_atomic(staging / "README.md", model_card(files, student->shape(), form));
    if (fs::exists(target)) carry_over(target, staging, is_own);
  });
  int64_t size_bytes = 0;
  for (const auto& view : views) size_bytes += static_cast<int64_t>(view.bytes.size());
  const std::string opening = form.opening.empty() ? "" : "; open it with: " + fmt::format(fmt::runtime(form.opening), target.string());
  fmt::print("{}: {}, {}{}\n", target.string(), cli::counted(static_cast<int64_t>(views.size()), "tensor"),
             format_bytes(static_cast<double>(size_bytes)), opening);
}

}  // namespace distil_xlstm::commands
