// Frozen transformer teachers; one family a file (llama.cpp, qwen2.cpp, qwen3.cpp) over shared parts.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "config/choices.h"
#include "io/model_files.h"
#include "nn/language_model.h"
#include "nn/transformer_config.h"

namespace distil_xlstm::teacher {

struct TeacherForwardOptions {
  config::LayerState target = config::LayerState::block_output;
  bool post_norm_last = false;       // alignment.state = "post_norm": the last layer's state is taken after the final norm
  bool collect_mean = false;         // running mean over all layers
  std::vector<int64_t> group_sizes;  // running means of consecutive groups of layers ("ratio", "block_wise")
  bool collect_all = false;          // every layer's state
  bool collect_attention = false;    // of every layer, the stream before it and what its attention adds to that
  bool collect_heads = false;        // of every layer, its attention's queries and keys

  bool operator==(const TeacherForwardOptions&) const = default;
};

struct TeacherOutput {
  Tensor last_hidden_BSD;               // after the final norm
  Tensor hidden_mean_BSD;               // when collect_mean; float32 whatever the model's dtype, as are the group means
  std::vector<Tensor> group_means_BSD;  // one a group
  std::vector<Tensor> hidden_BSD;       // when collect_all: one a layer
  // When collect_attention: one a layer each.
  std::vector<Tensor> layer_inputs_BSD, attention_outputs_BSD;
  std::vector<Tensor> queries_BSHK, keys_BSGK;  // when collect_heads: one a layer each, with positions
};

class Teacher : public nn::LanguageModel {
 public:
  // No gradients anywhere. attention_mask-free: padding is on the right; is_start_BS cuts attention between documents.
  // It may lie on the CPU whatever the model's device: its values are then looked at without waiting for the device.
  [[nodiscard]] virtual TeacherOutput forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const TeacherForwardOptions& options) = 0;
  [[nodiscard]] virtual const Tensor& embedding_weight() const = 0;  // [V, D]; the same storage as head_weight() when tied
  [[nodiscard]] virtual bool has_tied_head() const = 0;
  [[nodiscard]] virtual int64_t num_layers() const = 0;
  [[nodiscard]] virtual int64_t num_parameters() const = 0;
  // From now on the products of the layers run in fp8 (ops/fp8.h); all else stays. It cannot be undone: the weights are given up.
  virtual void use_fp8_products() = 0;
};

// What `teacher.precision` names.
struct Precision {
  at::ScalarType dtype = at::kFloat;  // of weights and activations; with fp8 of all but the layers' products
  bool has_fp8_products = false;
};
// "fp8": bf16 on a GPU, fp32 on a CPU, with the layers' products in fp8. Else as ops::parse_precision. Throws ConfigError.
Precision parse_precision(std::string_view name, at::Device device);
std::string precision_name(const Precision& precision);  // "bf16", "fp8"

// How far fp8 moves a teacher's predictions.
struct Fp8Effect {
  double kl = 0.0;         // mean KL(without || with) in nats a position
  double agreement = 0.0;  // share of positions where both have the same most likely token
  int64_t num_positions = 0;
};
// use_fp8_products(), seen on these tokens: positions whose mask_BS is 1 (all where it is undefined).
Fp8Effect use_fp8_products(Teacher& teacher, const Tensor& tokens_BS, const Tensor& is_start_BS, const Tensor& mask_BS);
std::string description(const Fp8Effect& effect);  // "KL 0.0011 nats to ..., ..." for logs

// What a configuration alone tells (for plan and the student's derivation); throws ConfigError for an unknown model_type or key.
struct TeacherShape : nn::TransformerConfig {
  std::string model_type;
  int64_t num_parameters = 0;  // tied matrix counted once
  json config;                 // as it was read
};
TeacherShape teacher_shape(const json& config);
// The same of a model whose tensors are there (as_stored); throws DataError too.
TeacherShape teacher_shape(const io::ModelFiles& files);

// Loads straight to the device and dtype (float32, bfloat16, float16). Throws ConfigError for an unknown model_type or a config key that
// would change the result and is not supported, DataError for missing or extra tensors.
std::unique_ptr<Teacher> load_teacher(const io::ModelFiles& files, at::Device device, at::ScalarType dtype);

// A teacher of this configuration with random weights, drawn on the device `drawn_on`: the same seed of LibTorch's generator gives the same
// model on every device and in every dtype (float64 too). What it costs in time and memory does not depend on its weights. Throws
// ConfigError as teacher_shape.
std::unique_ptr<Teacher> random_teacher(const json& config, at::Device device, const Precision& precision, at::Device drawn_on,
                                        double deviation = 0.02);

}  // namespace distil_xlstm::teacher
