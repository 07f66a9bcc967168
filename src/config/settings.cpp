#include "config/settings.h"

#include "base/text.h"
#include "config/table_builder.h"

namespace distil_xlstm::config {

void to_json(json& object, const DataSource& source) {
  object = {{"path", source.path}, {"weight", source.weight}};
}

namespace {

constexpr auto kMayChange = OnResume::may_change;
constexpr auto kAfterFailure = OnResume::may_change_after_failure;

std::string read_sources(std::vector<DataSource>& out, const json& value) {
  auto allowed = must_be("a list of { path = \"...\", weight = 1.0 } with weights > 0");
  if (!value.is_array()) return allowed;
  std::vector<DataSource> sources;
  for (const auto& item : value) {
    DataSource source;
    if (item.is_string()) {
      source.path = item.get<std::string>();
    } else if (item.is_object()) {
      for (const auto& [name, part] : item.items()) {
        if (name == "path" && part.is_string())
          source.path = part.get<std::string>();
        else if (name != "weight" || !read_number(source.weight, part, kPositive, "").empty())
          return allowed;
      }
    }
    if (source.path.empty()) return allowed;
    sources.push_back(source);
  }
  out = std::move(sources);
  return "";
}

std::string read_betas(std::vector<double>& out, const json& value) {
  std::vector<double> betas;
  const bool is_pair = value.is_array() && value.size() == 2;
  for (size_t i = 0; is_pair && i < 2; ++i) {
    double beta = 0;
    if (read_number(beta, value[i], {.low = 0, .high = 1, .high_open = true}, "").empty()) betas.push_back(beta);
  }
  if (betas.size() != 2) return must_be("two numbers >= 0 and < 1");
  out = std::move(betas);
  return "";
}

// Which names there are is the student's to say.
std::string read_mixers(std::vector<std::string>& out, const json& value) {
  std::vector<std::string> names;
  const json list = value.is_string() ? json::array({value}) : value;
  for (const auto& item : list.is_array() ? list : json::array()) {
    if (!item.is_string() || item.get<std::string>().empty()) return must_be("the name of a mixer, or a list of names");
    names.push_back(item.get<std::string>());
  }
  if (names.empty()) return must_be("the name of a mixer, or a list of names");
  out = std::move(names);
  return "";
}

// Key and member of a setting, which are one path.
#define AT(path) #path, [](auto& c) -> auto& { return c.path; }

template <typename Member>
void add_schedule(TableBuilder& t, const std::string& key, Member member, const Range& range) {
  t.registered(
      key + ".schedule", [member](auto& c) -> auto& { return member(c).schedule; },
      {"constant", "delta-paper", "delta-code", "linear", "cosine"}, "shape of the path from start to final", "-");
  t.number(key + ".start", [member](auto& c) -> auto& { return member(c).start; }, range, "value before the first step", "-");
  t.number(key + ".final", [member](auto& c) -> auto& { return member(c).final; }, range, "value at the end; unused by a constant", "-");
  t.number(
      key + ".decay", [member](auto& c) -> auto& { return member(c).decay; }, kFraction,
      "how far start moves to final at an epoch's end (delta schedules)", "-");
  t.choice(
      key + ".decay_mode", [member](auto& c) -> auto& { return member(c).decay_mode; },
      "whether decay is a share of start or is subtracted", "-");
}

void add_top(TableBuilder& t) {
  t.text(AT(output), "directory of the run").on_resume = kMayChange;
  t.integer(AT(seed), kNotNegative, "of the student's initial weights and the order of the data");
}

void add_teacher(TableBuilder& t) {
  t.text(AT(teacher.model), "a Hugging Face directory, a GGUF file, a built-in or fetched name", "--teacher");
  t.one_of(AT(teacher.precision), {"auto", "fp32", "bf16", "fp16", "fp8"},
           "of the teacher's weights and products; auto: bf16 on GPUs that have it, else fp32; fp8: the layers' products, the rest in bf16",
           "--teacher-precision")
      .on_resume = kAfterFailure;
  t.registered(AT(teacher.source), {"live"}, "where its signals come from; live: the model runs for each micro-batch", "-");
}

void add_student(TableBuilder& t) {
  t.registered(AT(student.kind), {"paper", "convert"},
               "a kind of student; paper: new xLSTM blocks between the teacher's frozen embedding and head; convert: the teacher's layers "
               "with an mLSTM that starts from each attention",
               "--student-kind");
  t.choice_or_count(AT(student.num_blocks), "blocks, or their share of the teacher's layers");
  t.choice_or_count(AT(student.num_heads), "heads; ceil4: the teacher's, rounded up to a multiple of 4");
  t.choice_or_blocks(AT(student.slstm_at), "which blocks are sLSTM, the others are mLSTM");
  t.integer(AT(student.conv1d_kernel_size), {.low = 0, .high = 64},
            "taps of the causal convolution; 0: none, for students of sLSTM blocks alone");
  t.integer(AT(student.feature_factor), {.low = 2, .high = 8}, "convert: width of the feature maps / head width; an even number");
  t.flag(AT(student.rope), "convert: the teacher's rotary positions on queries and keys");
  t.number(AT(student.rope_max_wavelength), kNotNegative,
           "convert: channels whose rotary position takes more tokens than this for a turn are not turned; 0: all are");
  t.custom(AT(student.mixers), "the name of a mixer, or a list of them that the layers take by turns",
           "convert: in attention's place; mlstm, gated-delta, slstm, xlstm-large, attention (kept)", "", read_mixers);
  t.integer(AT(student.attention_window), {.low = 0, .high = 1 << 20},
            "convert: tokens that a kept attention sees, the current one among them; 0: all of the document");
  t.integer(AT(student.attention_sinks), {.low = 0, .high = 1 << 20}, "convert: first tokens of a document that it sees beside a window");
  t.choice(AT(student.gate_init),
           "convert: of the forget gates: from how far the teacher's heads look back on the first rows, or spread over the heads");
  t.choice(
      AT(student.value_init),
      "convert: of the values: as the teacher's, or with a factor a head by which the mixer comes nearest to its attention on the first "
      "rows");
  t.choice(AT(student.normalizer), "convert: what divides an mLSTM's output: the sum of its weights, or at least the cell's bound");
  t.flag(AT(student.head_norm), "convert: LayerNorm of each head behind the cell, with a factor a channel");
  t.integer(AT(student.qkv_proj_blocksize), kAtLeastOne, "block size of the mLSTM's q, k, v projections");
  t.number(AT(student.mlstm_proj_factor), kPositive, "inner width of an mLSTM block / hidden size");
  t.number(AT(student.ffn_proj_factor), kPositive, "width of the sLSTM block's feed-forward / hidden size");
  t.choice(AT(student.ffn_act_fn), "gate of the feed-forward");
  t.choice(AT(student.bias_init), "of the sLSTM's forget gates");
  t.choice(AT(student.recurrent_weight_init), "of the sLSTM's recurrent weights");
  t.integer(AT(student.chunk_size), {.low = 1, .high = 4096}, "tokens an mLSTM chunk; changes speed, not results");
  t.choice(AT(student.slstm_layout), "which layout of the `xlstm` package checkpoints store");
  t.text(AT(student.init_from), "a student whose weights to start from; empty: fresh ones");
}

void add_data(TableBuilder& t) {
  t.text(AT(data.train), "prepared shards (file, directory, glob), or text that is prepared first", "--train");
  t.custom(AT(data.sources), "a list of { path, weight }", "a mixture of shards, instead of data.train", "--sources", read_sources);
  t.text(AT(data.validation), "shards or text; empty: the validation split of the training shards", "--validation");
  t.integer(AT(data.context_length), {.low = 1, .high = 1 << 20}, "tokens a row");
  t.text(AT(data.document_end), "token after each document when text is prepared: none, eos, or a token's text");
  t.choice(AT(data.document_isolation), "full: attention, state and loss stop at documents' borders; loss: the loss only");
  t.number(AT(data.validation_fraction), {.low = 0, .high = 1, .high_open = true}, "of the documents, when text is prepared");
}

void add_distill(TableBuilder& t) {
  t.registered(AT(distill.method),
               {"ce", "hinton", "teacher-annealing", "annealing-kd", "delta", "delta-frobenius", "hinton-frobenius", "ce-frobenius",
                "convert", "mohawk"},
               "what is learnt from the teacher");
  add_schedule(t, AT(distill.alpha), kFraction);
  add_schedule(t, AT(distill.temperature), kPositive);
  add_schedule(t, AT(distill.beta), kNotNegative);
  t.choice(AT(distill.vocabulary),
           "what the losses' distributions run over: every row of the model's heads, or those that have a token of the tokenizer");
  t.choice(AT(distill.combine), "convex: (1-a-b) CE + a KD + b L_F; additive: (1-a) CE + a KD + b L_F");
  t.choice(AT(distill.divergence), "between the teacher's and the student's distributions");
  t.number(AT(distill.jsd_beta), kBetweenZeroAndOne, "weight of the teacher in jsd's mixture");
  t.choice(AT(distill.alignment.kind), "student's last state with the mean of all layers, blocks with groups, or one to one",
           "--alignment-kind");
  t.choice(AT(distill.alignment.distance), "of hidden states", "--alignment-distance");
  t.choice(AT(distill.alignment.target), "which of the teacher's states", "--alignment-target");
  t.choice(AT(distill.alignment.state), "the last states before or after the final norms", "--alignment-state");
  t.choice(AT(distill.alignment.scope), "one norm a sequence, or one a micro-batch", "--alignment-scope");
  t.integer(AT(distill.alignment.every_steps), kAtLeastOne, "how often it is measured where its weight is 0", "--alignment-every-steps");
  t.number(AT(distill.temperature_max), kAtLeastOne, "annealing-kd: T of the first epoch");
  t.choice(AT(distill.boundary), "annealing-kd: one T an epoch, or equal slices of stage I");
  t.number(AT(distill.stage1_fraction), kBetweenZeroAndOne, "annealing-kd: share of the run that stage I takes");
  t.flag(AT(distill.mse_centered), "annealing-kd: subtract row means of the logits first");
  t.number(
      AT(distill.convert.orient_fraction), {.low = 0, .high = 1, .high_open = true},
      "mohawk: share of the steps, the first ones, in which the matrices by which layers mix tokens are fitted to the teacher's; 0: none",
      "--orient-fraction");
  t.number(AT(distill.convert.orient_learning_rate), kPositive, "mohawk: at its peak, in those steps", "--orient-learning-rate").on_resume =
      kAfterFailure;
  t.number(AT(distill.convert.align_fraction), {.low = 0, .high = 1, .high_open = true},
           "convert: share of the steps in which each layer is aligned with its teacher's; 0: none", "--align-fraction");
  t.number(AT(distill.convert.align_learning_rate), kPositive, "convert: at its peak, in those steps", "--align-learning-rate").on_resume =
      kAfterFailure;
  t.number(AT(distill.convert.align_attention_rate), kNotNegative,
           "convert: factor of the learning rate of q, k, v and o in those steps; 0: they stay", "--align-attention-rate");
  t.number(AT(distill.convert.attention_rate), kNotNegative, "convert: the same after them", "--attention-rate");
  t.number(AT(distill.convert.body_rate), kNotNegative, "convert: the same of norms and feed-forward after them; 0: they stay",
           "--body-rate");
  t.number(AT(distill.convert.state_passing_fraction), {.low = 0, .high = 1, .high_open = true},
           "convert: share of the steps, the last ones, in which rows start from the states that other rows ended in; 0: none",
           "--state-passing-fraction");
  t.number(AT(distill.convert.state_passing_learning_rate), kPositive, "convert: at its peak, in those steps",
           "--state-passing-learning-rate")
      .on_resume = kAfterFailure;
  t.integer(AT(distill.convert.state_passing_rows), kAtLeastOne, "convert: how many rows, one after the other, such a state has read",
            "--state-passing-rows");
}

void add_train(TableBuilder& t) {
  t.integer(AT(train.num_epochs), kNotNegative, "length of the run; of num_epochs, max_tokens and max_steps set one");
  t.integer(AT(train.max_tokens), kNotNegative, "length of the run in tokens, such as \"512M\"");
  t.integer(AT(train.max_steps), kNotNegative, "length of the run in optimizer steps");
  t.integer(AT(train.micro_batch_size), kAtLeastOne, "rows a forward pass");
  t.integer(AT(train.gradient_accumulation_steps), kAtLeastOne, "micro-batches an optimizer step");
  t.one_of(AT(train.precision), {"auto", "fp32", "bf16", "fp16"},
           "of the student's products; auto: bf16 on GPUs that have it, else fp32. Weights stay fp32")
      .on_resume = kAfterFailure;
  t.choice(AT(train.checkpointing), "blocks: compute each block again in the backward pass, for less memory").on_resume = kMayChange;
  t.text(AT(train.device), "auto, cpu, cuda, or cuda:N").on_resume = kMayChange;
  t.integer(AT(train.log_every_steps), kAtLeastOne, "how often metrics are written").on_resume = kMayChange;
  t.integer(AT(train.save_every_steps), kNotNegative, "how often a checkpoint is written; 0: at the end only").on_resume = kMayChange;
  t.integer(AT(train.keep_checkpoints), kAtLeastOne, "how many of the newest stay; the best always does").on_resume = kMayChange;
  t.integer(AT(train.max_skipped_steps), kAtLeastOne, "in a row for non-finite losses or gradients, then the run stops").on_resume =
      kMayChange;
}

void add_optimizer(TableBuilder& t) {
  t.number(AT(optimizer.learning_rate), kPositive, "at its peak").on_resume = kAfterFailure;
  t.choice(AT(optimizer.schedule), "of the learning rate after the warm-up", "--learning-rate-schedule");
  t.number(AT(optimizer.warmup_ratio), kFraction, "share of the steps with a rising learning rate");
  t.number(AT(optimizer.min_learning_rate_ratio), kFraction, "last learning rate / peak");
  t.number(AT(optimizer.weight_decay), kNotNegative, "of weight matrices; norms, biases and recurrent weights have none");
  t.custom(AT(optimizer.betas), "two numbers >= 0 and < 1", "of AdamW", "", read_betas);
  t.number(AT(optimizer.eps), kPositive, "of AdamW");
  t.number(AT(optimizer.max_grad_norm), kNotNegative, "clip gradients to this norm; 0: never");
  t.number(AT(optimizer.initial_loss_scale), kPositive, "fp16: first factor of the loss").on_resume = kAfterFailure;
}

void add_eval(TableBuilder& t) {
  t.integer(AT(eval.every_steps), kNotNegative, "how often the validation text is measured; 0: never", "--eval-every-steps").on_resume =
      kMayChange;
  t.integer(AT(eval.max_tokens), kNotNegative, "of validation text; 0: all", "--eval-max-tokens");
}

#undef AT

std::vector<Setting> build_table() {
  TableBuilder t;
  for (const auto add_section : {add_top, add_teacher, add_student, add_data, add_distill, add_train, add_optimizer, add_eval})
    add_section(t);
  return std::move(t.settings);
}

std::string scalar_text(double value) {
  auto text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

std::string_view resume_mark(OnResume on_resume) {
  switch (on_resume) {
    case OnResume::may_change:
      return "*free*";
    case OnResume::may_change_after_failure:
      return "*after a failure*";
    default:
      return "";
  }
}

}  // namespace

std::string Setting::section() const {
  const auto dot = key.find('.');
  return dot == std::string::npos ? "" : key.substr(0, dot);
}

bool Setting::may_change(bool has_failed) const {
  return on_resume == OnResume::may_change || (has_failed && on_resume == OnResume::may_change_after_failure);
}

const std::vector<Setting>& all_settings() {
  static const std::vector<Setting> table = build_table();
  return table;
}

const Setting* find_setting(std::string_view key) {
  for (const auto& setting : all_settings()) {
    if (setting.key == key) return &setting;
  }
  return nullptr;
}

bool is_schedule(std::string_view key) {
  return key == "distill.alpha" || key == "distill.temperature" || key == "distill.beta";
}

std::string toml_value(const json& value) {
  if (value.is_number_float()) return scalar_text(value.get<double>());
  if (value.is_array()) {
    std::vector<std::string> items;
    for (const auto& item : value) items.push_back(toml_value(item));
    return "[" + join(items, ", ") + "]";
  }
  if (value.is_object()) {
    std::vector<std::string> items;
    for (const auto& [name, part] : value.items()) items.push_back(name + " = " + toml_value(part));
    return "{ " + join(items, ", ") + " }";
  }
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string settings_reference() {
  std::string page =
      "# Settings\n\nEvery key of a run file, with its option on the command line where it has one. `--set key=value` reaches\n"
      "all of them. `alpha`, `temperature` and `beta` also take one number, a constant. Integers may be written as\n"
      "counts: `\"512M\"`.\n\n"
      "A run that is resumed keeps its settings, but for those marked *free*, and after it failed those marked *after a\n"
      "failure*.\n";
  const RunConfig defaults;
  std::string section = "-";
  for (const auto& setting : all_settings()) {
    if (setting.section() != section) {
      section = setting.section();
      page += fmt::format("\n## {}\n\n| key | option | values | default | meaning | on resume |\n| --- | --- | --- | --- | --- | --- |\n",
                          section.empty() ? "Top of the file" : "[" + section + "]");
    }
    const auto key = section.empty() ? setting.key : setting.key.substr(section.size() + 1);
    page += fmt::format("| `{}` | {} | {} | `{}` | {} | {} |\n", key, setting.option.empty() ? "" : "`" + setting.option + "`",
                        setting.values, toml_value(setting.get(defaults)), setting.help, resume_mark(setting.on_resume));
  }
  return page;
}

}  // namespace distil_xlstm::config
