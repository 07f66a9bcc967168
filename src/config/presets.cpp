#include "config/presets.h"

#include <array>
#include <utility>

namespace distil_xlstm::config {
namespace {

// The paper's experiment (Qwen2.5-1.5B, FineWeb). Its 551 M parameters, 15 % trainable, fit 12 heads with q/k/v blocks of 4, and
// 16 heads with blocks of 32 ("paper-code") equally well.
constexpr std::string_view kPaper = R"(
[student]
num_blocks = 6
num_heads = "ceil4"
slstm_at = "alternate"
conv1d_kernel_size = 4
qkv_proj_blocksize = 4
ffn_proj_factor = 1.7
bias_init = "powerlaw_blockdependent"
[data]
context_length = 512
document_isolation = "none"
[distill]
method = "delta-frobenius"
combine = "convex"
alpha = { schedule = "delta-paper", start = 0.8, final = 0.5, decay = 0.05 }
temperature = { schedule = "delta-paper", start = 2.0, final = 1.0, decay = 0.05 }
beta = { schedule = "constant", start = 0.1, final = 0.1 }
[train]
num_epochs = 10
micro_batch_size = 8
gradient_accumulation_steps = 4
precision = "fp16"
[optimizer]
learning_rate = 2e-4
schedule = "cosine"
warmup_ratio = 0.1
)";

// The same as the authors' code of that time has it: 16 heads, q/k/v blocks of 32, schedules that start again each epoch.
constexpr std::string_view kPaperCode = R"(
[student]
num_blocks = 6
num_heads = 16
slstm_at = "alternate"
conv1d_kernel_size = 4
qkv_proj_blocksize = 32
ffn_proj_factor = 1.7
bias_init = "powerlaw_blockdependent"
[data]
context_length = 512
document_isolation = "none"
[distill]
method = "delta-frobenius"
combine = "convex"
alpha = { schedule = "delta-code", start = 0.8, final = 0.5, decay = 0.05 }
temperature = { schedule = "delta-code", start = 2.0, final = 1.0, decay = 0.05 }
beta = { schedule = "constant", start = 0.1, final = 0.1 }
[distill.alignment]
scope = "batch"
[train]
num_epochs = 10
micro_batch_size = 8
gradient_accumulation_steps = 4
precision = "fp16"
[optimizer]
learning_rate = 2e-4
schedule = "cosine"
warmup_ratio = 0.1
)";

// The recipe of docs/convert.md: the teacher's layers with mLSTMs that start from its attention.
constexpr std::string_view kConvert = R"(
[student]
kind = "convert"
mixers = "mlstm"
feature_factor = 4
conv1d_kernel_size = 4
gate_init = "look-back"
[data]
context_length = 512
[distill]
method = "convert"
alpha = 1.0
temperature = 1.0
[distill.convert]
align_fraction = 0.2
align_learning_rate = 5e-3
body_rate = 0.25
[train]
micro_batch_size = 32
[optimizer]
learning_rate = 2e-3
schedule = "cosine"
warmup_ratio = 0.1
min_learning_rate_ratio = 0.05
weight_decay = 0.0
betas = [0.9, 0.95]
)";

constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kPresets = {
    {{"paper", kPaper}, {"paper-code", kPaperCode}, {"convert", kConvert}}};

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, text] : kPresets) names.emplace_back(name);
  return names;
}

std::optional<std::string_view> preset_text(std::string_view name) {
  for (const auto& [candidate, text] : kPresets) {
    if (candidate == name) return text;
  }
  return std::nullopt;
}

}  // namespace distil_xlstm::config
