#include "config/settings.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"

namespace distil_xlstm::config {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// An interval of allowed numbers; an open end is left out of it.
struct Range {
  double low = -kInfinity, high = kInfinity;
  bool low_open = false, high_open = false;

  [[nodiscard]] bool contains(double value) const {
    return std::isfinite(value) && (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
  }
  [[nodiscard]] std::string text() const {
    std::string result;
    if (low != -kInfinity) result = fmt::format("{} {}", low_open ? ">" : ">=", low);
    if (high != kInfinity) result += fmt::format("{}{} {}", result.empty() ? "" : " and ", high_open ? "<" : "<=", high);
    return result;
  }
};

constexpr Range kPositive{.low = 0, .low_open = true};
constexpr Range kNotNegative{.low = 0};
constexpr Range kFraction{.low = 0, .high = 1};
constexpr Range kAtLeastOne{.low = 1};

using Names = std::vector<std::string>;

std::string quoted_list(const Names& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) text += fmt::format("{}\"{}\"", i == 0 ? "" : i + 1 == names.size() ? " or " : ", ", names[i]);
  return text;
}

// Reading a JSON value into each member type: "" or what is wrong. `allowed` is the setting's `values`.
std::string must_be(const std::string& allowed) {
  return "must be " + allowed;
}

std::string read_choice(std::string& out, const json& value, const Names& names, const std::string& allowed) {
  if (!value.is_string()) return must_be(allowed);
  const auto text = value.get<std::string>();
  if (!names.empty() && std::find(names.begin(), names.end(), text) == names.end()) return must_be(allowed) + did_you_mean(text, names);
  if (valid_utf8_prefix(text) != text.size()) return "must be valid UTF-8";
  out = text;
  return "";
}

std::string read_integer(int64_t& out, const json& value, const Range& range, const std::string& allowed) {
  int64_t number = 0;
  if (value.is_number_integer()) {
    number = value.get<int64_t>();
  } else if (value.is_string()) {  // "512M"
    try {
      number = parse_count(value.get<std::string>(), "count");
    } catch (const ValueError&) {
      return must_be(allowed);
    }
  } else {
    return must_be(allowed);
  }
  if (!range.contains(static_cast<double>(number))) return must_be(allowed);
  out = number;
  return "";
}

std::string read_number(double& out, const json& value, const Range& range, const std::string& allowed) {
  if (!value.is_number() || !range.contains(value.get<double>())) return must_be(allowed);
  out = value.get<double>();
  return "";
}

std::string option_name(const std::string& key) {
  std::string name = key.substr(key.rfind('.') + 1);
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

// Collects the table; `member` is a generic lambda from a RunConfig to a reference to its member. An option of "" is the key's last word
// with dashes, "-" none.
class TableBuilder {
 public:
  template <typename Member>
  void text(const std::string& key, Member member, const std::string& help, const Names& names = {}, const std::string& option = "") {
    const std::string allowed = names.empty() ? "text" : quoted_list(names);
    add(
        key, option, allowed, help, names.empty(), [member](const RunConfig& config) { return json(member(config)); },
        [=](RunConfig& config, const json& value) { return read_choice(member(config), value, names, allowed); });
  }
  template <typename Member>
  void integer(const std::string& key, Member member, const Range& range, const std::string& help, const std::string& option = "") {
    const std::string allowed = "an integer " + range.text();
    add(
        key, option, allowed, help, false, [member](const RunConfig& config) { return json(member(config)); },
        [=](RunConfig& config, const json& value) {
          int64_t number = 0;
          auto problem = read_integer(number, value, range, allowed);
          if (problem.empty()) member(config) = static_cast<std::decay_t<decltype(member(config))>>(number);
          return problem;
        });
  }
  template <typename Member>
  void number(const std::string& key, Member member, const Range& range, const std::string& help, const std::string& option = "") {
    const std::string bounds = range.text();
    const std::string allowed = bounds.empty() ? "a number" : "a number " + bounds;
    add(
        key, option, allowed, help, false, [member](const RunConfig& config) { return json(member(config)); },
        [=](RunConfig& config, const json& value) { return read_number(member(config), value, range, allowed); });
  }
  template <typename Member>
  void flag(const std::string& key, Member member, const std::string& help, const std::string& option = "") {
    add(
        key, option, "true or false", help, false, [member](const RunConfig& config) { return json(member(config)); },
        [=](RunConfig& config, const json& value) -> std::string {
          if (!value.is_boolean()) return must_be("true or false");
          member(config) = value.get<bool>();
          return "";
        });
  }
  // One of `names`, or an integer >= 1.
  template <typename Member>
  void name_or_count(const std::string& key, Member member, const Names& names, const std::string& help) {
    const std::string allowed = join({quoted_list(names), "an integer >= 1"}, ", or ");
    add(
        key, "", allowed, help, false,
        [member](const RunConfig& config) { return std::visit([](const auto& held) { return json(held); }, member(config)); },
        [=](RunConfig& config, const json& value) {
          int64_t count = 0;
          std::string name;
          const bool is_count =
              value.is_number() || (value.is_string() && std::isdigit(static_cast<unsigned char>(value.get<std::string>()[0])) != 0);
          auto problem = is_count ? read_integer(count, value, kAtLeastOne, allowed) : read_choice(name, value, names, allowed);
          if (!problem.empty()) return problem;
          if (is_count)
            member(config) = count;
          else
            member(config) = name;
          return problem;
        });
  }
  template <typename Get, typename Set>
  void custom(const std::string& key, const std::string& allowed, const std::string& help, const std::string& option, Get get, Set set) {
    add(key, option, allowed, help, false, get, set);
  }
  template <typename Member>
  void schedule(const std::string& key, Member member, const Range& range) {
    const auto part = [&](const char* name) { return key + "." + name; };
    text(
        part("schedule"), [member](auto& c) -> auto& { return member(c).schedule; }, "shape of the path from start to final",
        {"constant", "delta-paper", "delta-code", "linear", "cosine"}, "-");
    number(part("start"), [member](auto& c) -> auto& { return member(c).start; }, range, "value before the first step", "-");
    number(part("final"), [member](auto& c) -> auto& { return member(c).final; }, range, "value at the end; unused by a constant", "-");
    number(
        part("decay"), [member](auto& c) -> auto& { return member(c).decay; }, kFraction,
        "how far start moves to final at an epoch's end (delta schedules)", "-");
    text(
        part("decay_mode"), [member](auto& c) -> auto& { return member(c).decay_mode; },
        "whether decay is a share of start or is subtracted", {"multiply", "subtract"}, "-");
  }

  std::vector<Setting> settings;

 private:
  void add(const std::string& key, const std::string& option, const std::string& allowed, const std::string& help, bool takes_text,
           std::function<json(const RunConfig&)> get, std::function<std::string(RunConfig&, const json&)> set) {
    const std::string name = option == "-" ? "" : option.empty() ? option_name(key) : option;
    settings.push_back({key, name, allowed, help, takes_text, std::move(get), std::move(set)});
  }
};

json sources_to_json(const RunConfig& config) {
  json list = json::array();
  for (const auto& source : config.data.sources) list.push_back({{"path", source.path}, {"weight", source.weight}});
  return list;
}

std::string read_sources(RunConfig& config, const json& value) {
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
  config.data.sources = std::move(sources);
  return "";
}

std::string read_betas(RunConfig& config, const json& value) {
  std::vector<double> betas;
  const bool is_pair = value.is_array() && value.size() == 2;
  for (size_t i = 0; is_pair && i < 2; ++i) {
    double beta = 0;
    if (read_number(beta, value[i], {.low = 0, .high = 1, .high_open = true}, "").empty()) betas.push_back(beta);
  }
  if (betas.size() != 2) return must_be("two numbers >= 0 and < 1");
  config.optimizer.betas = std::move(betas);
  return "";
}

std::string read_slstm_at(RunConfig& config, const json& value) {
  const Names names = {"alternate", "all", "none"};
  const auto allowed = quoted_list(names) + ", or a list of block indices";
  if (value.is_string()) {
    std::string name;
    auto problem = read_choice(name, value, names, allowed);
    if (problem.empty()) config.student.slstm_at = name;
    return problem;
  }
  if (!value.is_array()) return must_be(allowed);
  std::vector<int64_t> blocks;
  for (const auto& item : value) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0) return must_be(allowed);
    blocks.push_back(item.get<int64_t>());
  }
  std::sort(blocks.begin(), blocks.end());
  if (std::adjacent_find(blocks.begin(), blocks.end()) != blocks.end()) return "names a block twice";
  config.student.slstm_at = blocks;
  return "";
}

#define MEMBER(path) [](auto& c) -> auto& { return c.path; }

std::vector<Setting> build_table() {
  TableBuilder t;
  t.text("output", MEMBER(output), "directory of the run");
  t.integer("seed", MEMBER(seed), kNotNegative, "of the student's initial weights and the order of the data");

  t.text("teacher.model", MEMBER(teacher.model), "a Hugging Face directory, a GGUF file, a built-in or fetched name", {}, "--teacher");
  t.text("teacher.precision", MEMBER(teacher.precision),
         "of the teacher's weights and products; auto: bf16 on GPUs that have it, else fp32; fp8: the layers' products, the rest in bf16",
         {"auto", "fp32", "bf16", "fp16", "fp8"}, "--teacher-precision");

  t.text("student.kind", MEMBER(student.kind), "a kind of student; paper: new xLSTM blocks between the teacher's frozen embedding and head",
         {}, "--student-kind");
  t.name_or_count("student.num_blocks", MEMBER(student.num_blocks), {"half", "same"}, "blocks, or their share of the teacher's layers");
  t.name_or_count("student.num_heads", MEMBER(student.num_heads), {"ceil4", "ceil4_div4"},
                  "heads; ceil4: the teacher's, rounded up to a multiple of 4");
  t.custom(
      "student.slstm_at", "\"alternate\", \"all\", \"none\", or a list of block indices", "which blocks are sLSTM, the others are mLSTM",
      "", [](const RunConfig& c) { return std::visit([](const auto& held) { return json(held); }, c.student.slstm_at); }, read_slstm_at);
  t.integer("student.conv1d_kernel_size", MEMBER(student.conv1d_kernel_size), {.low = 0, .high = 64},
            "taps of the causal convolution; 0: none, for students of sLSTM blocks alone");
  t.integer("student.qkv_proj_blocksize", MEMBER(student.qkv_proj_blocksize), kAtLeastOne, "block size of the mLSTM's q, k, v projections");
  t.number("student.mlstm_proj_factor", MEMBER(student.mlstm_proj_factor), kPositive, "inner width of an mLSTM block / hidden size");
  t.number("student.ffn_proj_factor", MEMBER(student.ffn_proj_factor), kPositive, "width of the sLSTM block's feed-forward / hidden size");
  t.text("student.ffn_act_fn", MEMBER(student.ffn_act_fn), "gate of the feed-forward",
         {"gelu", "relu", "relu^2", "sigmoid", "swish", "selu"});
  t.text("student.bias_init", MEMBER(student.bias_init), "of the sLSTM's forget gates",
         {"powerlaw_blockdependent", "small_init", "zeros", "standard"});
  t.text("student.recurrent_weight_init", MEMBER(student.recurrent_weight_init), "of the sLSTM's recurrent weights", {"zeros", "standard"});
  t.integer("student.chunk_size", MEMBER(student.chunk_size), {.low = 1, .high = 4096},
            "tokens an mLSTM chunk; changes speed, not results");
  t.text("student.slstm_layout", MEMBER(student.slstm_layout), "which layout of the `xlstm` package checkpoints store",
         {"cuda", "vanilla"});
  t.text("student.init_from", MEMBER(student.init_from), "a student whose weights to start from; empty: fresh ones");

  t.text("data.train", MEMBER(data.train), "prepared shards (file, directory, glob), or text that is prepared first", {}, "--train");
  t.custom("data.sources", "a list of { path, weight }", "a mixture of shards, instead of data.train", "--sources", sources_to_json,
           read_sources);
  t.text("data.validation", MEMBER(data.validation), "shards or text; empty: the validation split of the training shards", {},
         "--validation");
  t.integer("data.context_length", MEMBER(data.context_length), {.low = 1, .high = 1 << 20}, "tokens a row");
  t.text("data.document_end", MEMBER(data.document_end), "token after each document when text is prepared: none, eos, or a token's text");
  t.text("data.document_isolation", MEMBER(data.document_isolation),
         "full: attention, state and loss stop at documents' borders; loss: the loss only", {"full", "loss", "none"});
  t.number("data.validation_fraction", MEMBER(data.validation_fraction), {.low = 0, .high = 1, .high_open = true},
           "of the documents, when text is prepared");

  t.text("distill.method", MEMBER(distill.method), "what is learnt from the teacher",
         {"ce", "hinton", "teacher-annealing", "annealing-kd", "delta", "delta-frobenius", "hinton-frobenius", "ce-frobenius"});
  t.schedule("distill.alpha", MEMBER(distill.alpha), kFraction);
  t.schedule("distill.temperature", MEMBER(distill.temperature), kPositive);
  t.schedule("distill.beta", MEMBER(distill.beta), kNotNegative);
  t.text("distill.vocabulary", MEMBER(distill.vocabulary),
         "what the losses' distributions run over: every row of the model's heads, or those that have a token of the tokenizer",
         {"model", "tokenizer"});
  t.text("distill.combine", MEMBER(distill.combine), "convex: (1-a-b) CE + a KD + b L_F; additive: (1-a) CE + a KD + b L_F",
         {"convex", "additive"});
  t.text("distill.divergence", MEMBER(distill.divergence), "between the teacher's and the student's distributions",
         {"forward_kl", "reverse_kl", "jsd"});
  t.number("distill.jsd_beta", MEMBER(distill.jsd_beta), {.low = 0, .high = 1, .low_open = true, .high_open = true},
           "weight of the teacher in jsd's mixture");
  t.text("distill.alignment.kind", MEMBER(distill.alignment.kind),
         "student's last state with the mean of all layers, blocks with groups, or one to one", {"average", "ratio", "block_wise"},
         "--alignment-kind");
  t.text("distill.alignment.distance", MEMBER(distill.alignment.distance), "of hidden states", {"frobenius", "cosine"},
         "--alignment-distance");
  t.text("distill.alignment.target", MEMBER(distill.alignment.target), "which of the teacher's states",
         {"block_output", "attention_output"}, "--alignment-target");
  t.text("distill.alignment.state", MEMBER(distill.alignment.state), "the last states before or after the final norms",
         {"pre_norm", "post_norm"}, "--alignment-state");
  t.text("distill.alignment.scope", MEMBER(distill.alignment.scope), "one norm a sequence, or one a micro-batch", {"sequence", "batch"},
         "--alignment-scope");
  t.integer("distill.alignment.every_steps", MEMBER(distill.alignment.every_steps), kAtLeastOne,
            "how often it is measured where its weight is 0", "--alignment-every-steps");
  t.number("distill.temperature_max", MEMBER(distill.temperature_max), kAtLeastOne, "annealing-kd: T of the first epoch");
  t.text("distill.boundary", MEMBER(distill.boundary), "annealing-kd: one T an epoch, or equal slices of stage I", {"epoch", "slice"});
  t.number("distill.stage1_fraction", MEMBER(distill.stage1_fraction), kFraction, "annealing-kd: share of the run that stage I takes");
  t.flag("distill.mse_centered", MEMBER(distill.mse_centered), "annealing-kd: subtract row means of the logits first");

  t.integer("train.num_epochs", MEMBER(train.num_epochs), kNotNegative,
            "length of the run; of num_epochs, max_tokens and max_steps set one");
  t.integer("train.max_tokens", MEMBER(train.max_tokens), kNotNegative, "length of the run in tokens, such as \"512M\"");
  t.integer("train.max_steps", MEMBER(train.max_steps), kNotNegative, "length of the run in optimizer steps");
  t.integer("train.micro_batch_size", MEMBER(train.micro_batch_size), kAtLeastOne, "rows a forward pass");
  t.integer("train.gradient_accumulation_steps", MEMBER(train.gradient_accumulation_steps), kAtLeastOne, "micro-batches an optimizer step");
  t.text("train.precision", MEMBER(train.precision),
         "of the student's products; auto: bf16 on GPUs that have it, else fp32. Weights stay fp32", {"auto", "fp32", "bf16", "fp16"});
  t.text("train.checkpointing", MEMBER(train.checkpointing), "blocks: compute each block again in the backward pass, for less memory",
         {"none", "blocks"});
  t.text("train.device", MEMBER(train.device), "auto, cpu, cuda, or cuda:N");
  t.integer("train.log_every_steps", MEMBER(train.log_every_steps), kAtLeastOne, "how often metrics are written");
  t.integer("train.save_every_steps", MEMBER(train.save_every_steps), kNotNegative,
            "how often a checkpoint is written; 0: at the end only");
  t.integer("train.keep_checkpoints", MEMBER(train.keep_checkpoints), kAtLeastOne, "how many of the newest stay; the best always does");
  t.integer("train.max_skipped_steps", MEMBER(train.max_skipped_steps), kAtLeastOne,
            "in a row for non-finite losses or gradients, then the run stops");

  t.number("optimizer.learning_rate", MEMBER(optimizer.learning_rate), kPositive, "at its peak");
  t.text("optimizer.schedule", MEMBER(optimizer.schedule), "of the learning rate after the warm-up", {"cosine", "linear", "constant"},
         "--learning-rate-schedule");
  t.number("optimizer.warmup_ratio", MEMBER(optimizer.warmup_ratio), kFraction, "share of the steps with a rising learning rate");
  t.number("optimizer.min_learning_rate_ratio", MEMBER(optimizer.min_learning_rate_ratio), kFraction, "last learning rate / peak");
  t.number("optimizer.weight_decay", MEMBER(optimizer.weight_decay), kNotNegative,
           "of weight matrices; norms, biases and recurrent weights have none");
  t.custom(
      "optimizer.betas", "two numbers >= 0 and < 1", "of AdamW", "", [](const RunConfig& c) { return json(c.optimizer.betas); },
      read_betas);
  t.number("optimizer.eps", MEMBER(optimizer.eps), kPositive, "of AdamW");
  t.number("optimizer.max_grad_norm", MEMBER(optimizer.max_grad_norm), kNotNegative, "clip gradients to this norm; 0: never");
  t.number("optimizer.initial_loss_scale", MEMBER(optimizer.initial_loss_scale), kPositive, "fp16: first factor of the loss");

  t.integer("eval.every_steps", MEMBER(eval.every_steps), kNotNegative, "how often the validation text is measured; 0: never",
            "--eval-every-steps");
  t.integer("eval.max_tokens", MEMBER(eval.max_tokens), kNotNegative, "of validation text; 0: all", "--eval-max-tokens");
  return std::move(t.settings);
}

#undef MEMBER

std::string scalar_text(double value) {
  auto text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

}  // namespace

std::string Setting::section() const {
  const auto dot = key.find('.');
  return dot == std::string::npos ? "" : key.substr(0, dot);
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
      "counts: `\"512M\"`.\n";
  const RunConfig defaults;
  std::string section = "-";
  for (const auto& setting : all_settings()) {
    if (setting.section() != section) {
      section = setting.section();
      page += fmt::format("\n## {}\n\n| key | option | values | default | meaning |\n| --- | --- | --- | --- | --- |\n",
                          section.empty() ? "Top of the file" : "[" + section + "]");
    }
    const auto key = section.empty() ? setting.key : setting.key.substr(section.size() + 1);
    page += fmt::format("| `{}` | {} | {} | `{}` | {} |\n", key, setting.option.empty() ? "" : "`" + setting.option + "`", setting.values,
                        toml_value(setting.get(defaults)), setting.help);
  }
  return page;
}

}  // namespace distil_xlstm::config
