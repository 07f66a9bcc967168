// distil-xlstm export: a student as a directory that stands alone and that the PyPI package `xlstm` opens.
#include <iostream>

#include "base/error.h"
#include "base/text.h"
#include "cli/counted.h"
#include "cli/options/export.h"
#include "commands/compute.h"
#include "io/model_files.h"
#include "io/safetensors.h"
#include "student/model.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::ExportOptions;

// Views of contiguous CPU tensors in the dtype asked for; `kept` keeps them alive.
std::vector<io::TensorView> to_views(const NamedTensors& tensors, at::ScalarType dtype, std::vector<Tensor>& kept) {
  std::vector<io::TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    kept.push_back(tensor.detach().to(at::kCPU, dtype).contiguous());
    const Tensor& stored = kept.back();
    io::TensorView view;
    view.name = name;
    view.dtype = dtype == at::kFloat ? io::DType::f32 : dtype == at::kHalf ? io::DType::f16 : io::DType::bf16;
    view.shape = stored.sizes().vec();
    view.bytes = {static_cast<const std::byte*>(stored.const_data_ptr()), stored.nbytes()};
    views.push_back(std::move(view));
  }
  return views;
}

}  // namespace

void run_export(const cli::ExportOptions& options) {
  const io::ModelFiles files = io::open_model(options.model);
  if (files.kind != io::ModelKind::student)
    throw ConfigError("{}: is a {}, only students are exported", options.model, files.config.value("model_type", "transformer"));
  const fs::path target = options.output;
  if (fs::exists(target) && !options.overwrite) throw ConfigError("{}: exists: give --overwrite to replace it", target.string());
  const auto layout = options.layout == "cuda" ? student::SlstmLayout::cuda : student::SlstmLayout::vanilla;
  const at::ScalarType dtype = options.dtype == "fp32" ? at::kFloat : options.dtype == "fp16" ? at::kHalf : at::kBFloat16;
  const auto student = student::Student::load(files, at::kCPU);
  std::vector<Tensor> kept;
  const auto views = to_views(student->stored_tensors(layout, true), dtype, kept);
  write_directory_atomic(target, [&](const fs::path& staging) {
    io::write_safetensors(staging / "model.safetensors", views, {{"format", "pt"}, {"slstm_layout", options.layout}});
    write_json(staging / "config.json", student->config().to_json());
    if (files.tokenizer) {
      write_file_atomic(staging / "tokenizer.json", files.tokenizer->tokenizer_json);
      write_json(staging / "tokenizer_config.json", files.tokenizer->tokenizer_config);
    }
    fs::copy_file(share_directory() / "export" / "load_student.py", staging / "load_student.py");
  });
  int64_t size_bytes = 0;
  for (const auto& view : views) size_bytes += static_cast<int64_t>(view.bytes.size());
  fmt::print("{}: {}, {}; open it with: python {}/load_student.py\n", target.string(),
             cli::counted(static_cast<int64_t>(views.size()), "tensor"), format_bytes(static_cast<double>(size_bytes)), target.string());
}

}  // namespace distil_xlstm::commands
