// Everything a run file can say, typed, with its defaults (docs/reference/settings.md). Reading, checking and printing: config/toml.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "config/choices.h"

namespace distil_xlstm::config {

// [distill] alpha, temperature, beta: v(t) by name (docs/mathematics.md 7).
struct ScheduleSettings {
  std::string schedule = "constant";  // a name of distill/schedule.h
  double start = 0.0;
  double final = 0.0;   // ignored by "constant"
  double decay = 0.05;  // delta schedules: v_0 moves towards final at an epoch's end
  DecayMode decay_mode = DecayMode::multiply;
};

struct TeacherSettings {
  std::string model;
  std::string precision = "auto";  // "auto" (bf16 on GPUs that have it, else fp32) | "fp32" | "bf16" | "fp16" | "fp8"
  std::string source = "live";     // a name of teacher/source.h
};

struct StudentSettings {
  std::string kind = "paper";  // a name of student/registry.h
  std::variant<BlocksRule, int64_t> num_blocks = BlocksRule::half;
  std::variant<HeadsRule, int64_t> num_heads = HeadsRule::ceil4;
  std::variant<SlstmRule, std::vector<int64_t>> slstm_at = SlstmRule::alternate;  // or blocks' indices
  int64_t conv1d_kernel_size = 4;
  int64_t feature_factor = 2;                   // convert: width of a feature map / head width
  bool rope = true;                             // convert: the teacher's rotary positions on q and k
  std::vector<std::string> mixers = {"mlstm"};  // convert: of the layers, by turns (student/convert/config.h)
  double rope_max_wavelength = 0.0;             // convert: in tokens; slower pairs of channels are not turned; 0: all are
  int64_t attention_window = 0;                 // convert: tokens that a kept attention sees, 0: all
  int64_t attention_sinks = 0;                  // convert: and of a document's first
  GateInit gate_init = GateInit::look_back;     // convert: of the forget gates
  ValueInit value_init = ValueInit::copied;     // convert: of the values
  Normalizer normalizer = Normalizer::sum;      // convert: of the mLSTM
  bool head_norm = false;                       // convert: of each head, behind the cell
  int64_t qkv_proj_blocksize = 4;
  double mlstm_proj_factor = 2.0;
  double ffn_proj_factor = 1.7;
  Activation ffn_act_fn = Activation::gelu;
  BiasInit bias_init = BiasInit::powerlaw_blockdependent;
  RecurrentWeightInit recurrent_weight_init = RecurrentWeightInit::zeros;
  int64_t chunk_size = 64;
  SlstmLayout slstm_layout = SlstmLayout::cuda;  // how checkpoints store R and b
  std::string init_from;                         // a student checkpoint to start from, "" = fresh
};

struct DataSource {
  std::string path;
  double weight = 1.0;
};

struct DataSettings {
  std::string train;                // shards (file, directory, glob), or text that `distill` prepares first
  std::vector<DataSource> sources;  // instead of train, a mixture
  std::string validation;           // shards or text; "" = the validation split of train's shards
  int64_t context_length = 512;
  std::string document_end = "none";  // "none" | "eos" | TOKEN: used when text is prepared
  DocumentIsolation document_isolation = DocumentIsolation::full;
  double validation_fraction = 0.01;  // used when text is prepared
};

struct AlignmentSettings {
  AlignmentKind kind = AlignmentKind::average;
  AlignmentDistance distance = AlignmentDistance::frobenius;
  LayerState target = LayerState::block_output;
  AlignmentState state = AlignmentState::pre_norm;
  AlignmentScope scope = AlignmentScope::sequence;
  int64_t every_steps = 50;  // how often L_F is measured when its weight is 0
};

// [distill.convert], of method "convert": layers aligned one by one, then the whole student. Rates are factors of the learning rate.
struct ConvertSettings {
  double orient_fraction = 0.03;              // of the run's steps, method "mohawk"
  double orient_learning_rate = 5e-3;         // at its peak
  double align_fraction = 0.2;                // of the run's steps
  double align_learning_rate = 5e-3;          // at its peak; optimizer.learning_rate is the second stage's
  double align_attention_rate = 1.0;          // of q, k, v, o while layers are aligned
  double attention_rate = 1.0;                // of the same after that
  double body_rate = 0.25;                    // of norms and feed-forward after that
  double state_passing_fraction = 0.0;        // of the run's steps, its last ones
  double state_passing_learning_rate = 5e-4;  // at its peak, in those
  int64_t state_passing_rows = 1;             // whose state a row starts with
};

struct DistillSettings {
  std::string method = "delta-frobenius";  // a name of distill/method.h
  ScheduleSettings alpha{.schedule = "delta-paper", .start = 0.8, .final = 0.5};
  ScheduleSettings temperature{.schedule = "delta-paper", .start = 2.0, .final = 1.0};
  ScheduleSettings beta{.schedule = "constant", .start = 0.1, .final = 0.1};
  LossVocabulary vocabulary = LossVocabulary::model;
  Combine combine = Combine::convex;
  Divergence divergence = Divergence::forward_kl;
  double jsd_beta = 0.5;
  AlignmentSettings alignment;
  // annealing-kd
  double temperature_max = 10.0;
  Boundary boundary = Boundary::epoch;
  double stage1_fraction = 0.7;  // share of the run that stage I takes
  bool mse_centered = false;
  ConvertSettings convert;
};

struct TrainSettings {
  int64_t num_epochs = 0;  // exactly one of the three is set; all 0: one epoch
  int64_t max_tokens = 0;
  int64_t max_steps = 0;
  int64_t micro_batch_size = 8;
  int64_t gradient_accumulation_steps = 1;
  std::string precision = "auto";                     // "auto" | "fp32" | "bf16" | "fp16"
  Checkpointing checkpointing = Checkpointing::none;  // of activations
  std::string device = "auto";                        // "auto" | "cpu" | "cuda" | "cuda:N"
  int64_t log_every_steps = 1;
  int64_t save_every_steps = 500;
  int64_t keep_checkpoints = 3;
  int64_t max_skipped_steps = 10;  // in a row, for non-finite losses or gradients
};

struct OptimizerSettings {
  double learning_rate = 2e-4;
  LearningRateSchedule schedule = LearningRateSchedule::cosine;
  double warmup_ratio = 0.1;
  double min_learning_rate_ratio = 0.0;
  double weight_decay = 0.01;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8;
  double max_grad_norm = 1.0;           // 0: no clipping
  double initial_loss_scale = 65536.0;  // fp16
};

struct EvalSettings {
  int64_t every_steps = 500;
  int64_t max_tokens = 262144;
};

struct RunConfig {
  std::string output = "runs/distil";
  uint64_t seed = 0;
  TeacherSettings teacher;
  StudentSettings student;
  DataSettings data;
  DistillSettings distill;
  TrainSettings train;
  OptimizerSettings optimizer;
  EvalSettings eval;
};

}  // namespace distil_xlstm::config
