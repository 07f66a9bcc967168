// StudentConfig to and from the configuration of the PyPI package `xlstm` (docs/mathematics.md 5).
#include <spdlog/spdlog.h>

#include <algorithm>
#include <initializer_list>

#include "base/error.h"
#include "base/text.h"
#include "student/paper/config.h"

namespace distil_xlstm::student {
namespace {

using Names = std::vector<std::string>;

// Reads one object of the configuration: every key is either taken, or known to change nothing, or an error.
class Section {
 public:
  Section(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw ConfigError("{}: is {}, must be an object", where_, object.dump());
  }

  template <typename T>
  T take(const std::string& key, T fallback) {
    known_.push_back(key);
    return get_or<T>(object_, key, std::move(fallback), where_);
  }

  // One of the names of an enum; `setting` is its key in a run file.
  template <config::Named E>
  E take_name(const std::string& key, E fallback, const std::string& setting) {
    return config::parse_name<E>(take<std::string>(key, std::string(config::name_of(fallback))), where_ + ": " + setting);
  }

  // A key for which this program computes the same only with one value.
  template <typename T>
  void require_value(const std::string& key, const T& only) {
    const T value = take<T>(key, only);
    if (value != only) throw ConfigError("{}: {} = {} is not supported: only {} is", where_, key, json(value).dump(), json(only).dump());
  }
  void require_null(const std::string& key) {
    if (const json* value = child(key)) throw ConfigError("{}: {} = {} is not supported: only null is", where_, key, value->dump());
  }

  // Dropout acts in training alone, and this program trains without it.
  void take_dropout(const std::string& key) {
    if (const auto value = take<double>(key, 0.0); value != 0.0)
      spdlog::warn("{}: {} = {} is ignored: training here uses none", where_, key, value);
  }

  const json* child(const std::string& key) {
    known_.push_back(key);
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  void ignore(std::initializer_list<const char*> keys) { known_.insert(known_.end(), keys.begin(), keys.end()); }

  void reject_others() const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end())
        throw ConfigError("{}: unknown key '{}'{}", where_, key, did_you_mean(key, known_));
    }
  }

  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  const json& object_;
  std::string where_;
  Names known_;
};

struct Rounding {
  int64_t multiple = 64;
  bool up = true;
  bool operator==(const Rounding&) const = default;
};

Rounding read_rounding(Section& section) {
  return {section.take<int64_t>("round_proj_up_to_multiple_of", 64), section.take<bool>("round_proj_up_dim_up", true)};
}

Rounding read_mlstm(const json& object, const std::string& where, StudentConfig& config) {
  Section block(object, where);
  block.ignore({"_num_blocks", "_block_idx"});
  const json empty = json::object();
  const json* inner = block.child("mlstm");
  Section mlstm(inner ? *inner : empty, where + ".mlstm");
  config.mlstm_num_heads = mlstm.take<int64_t>("num_heads", 4);
  config.mlstm_conv1d_kernel_size = mlstm.take<int64_t>("conv1d_kernel_size", 4);
  config.qkv_proj_blocksize = mlstm.take<int64_t>("qkv_proj_blocksize", 4);
  config.mlstm_proj_factor = mlstm.take<double>("proj_factor", 2.0);
  const Rounding rounding = read_rounding(mlstm);
  // The stack overwrites these when the package builds the model.
  mlstm.ignore({"embedding_dim", "bias", "dropout", "context_length", "_num_blocks", "_block_idx", "_inner_embedding_dim", "_proj_up_dim"});
  mlstm.reject_others();
  block.reject_others();
  return rounding;
}

Rounding read_feedforward(const json& object, const std::string& where, StudentConfig& config) {
  Section ffn(object, where);
  config.ffn_proj_factor = ffn.take<double>("proj_factor", 1.3);
  config.ffn_act_fn = ffn.take_name("act_fn", config::Activation::gelu, "student.ffn_act_fn");
  config.ffn_bias = ffn.take<bool>("bias", false);
  ffn.require_value<std::string>("ff_type", "ffn_gated");
  ffn.take_dropout("dropout");
  const Rounding rounding = read_rounding(ffn);
  ffn.ignore({"embedding_dim", "_proj_up_dim", "_num_blocks"});
  ffn.reject_others();
  return rounding;
}

// nullopt when the block has no feed-forward part.
std::optional<Rounding> read_slstm(const json& object, const std::string& where, StudentConfig& config) {
  Section block(object, where);
  block.ignore({"_num_blocks", "_block_idx"});
  const json empty = json::object();
  const json* inner = block.child("slstm");
  Section slstm(inner ? *inner : empty, where + ".slstm");
  config.slstm_num_heads = slstm.take<int64_t>("num_heads", 4);
  config.slstm_conv1d_kernel_size = slstm.take<int64_t>("conv1d_kernel_size", 4);
  config.group_norm_weight = slstm.take<bool>("group_norm_weight", true);
  config.bias_init = slstm.take_name("bias_init", config::BiasInit::powerlaw_blockdependent, "student.bias_init");
  config.recurrent_weight_init =
      slstm.take_name("recurrent_weight_init", config::RecurrentWeightInit::zeros, "student.recurrent_weight_init");
  slstm.require_value<std::string>("function", "slstm");
  slstm.require_value<int64_t>("num_states", 4);
  slstm.require_value<int64_t>("num_gates", 4);
  slstm.require_value<bool>("gradient_recurrent_cut", false);
  slstm.require_null("gradient_recurrent_clipval");
  slstm.require_null("forward_clipval");
  slstm.require_value<double>("initial_val", 0.0);
  const std::string backend = slstm.take<std::string>("backend", "cuda");
  const auto backends = config::names_of<config::SlstmLayout>();
  if (std::ranges::find(backends, backend) == backends.end())
    throw ConfigError("{}: backend = \"{}\": must be {}", slstm.where(), backend, join(backends, " or "));
  // Set by the stack, or about number formats and kernels of the package only.
  slstm.ignore({"hidden_size", "embedding_dim", "dropout", "_block_idx", "_num_blocks", "batch_size", "input_shape", "internal_input_shape",
                "output_shape", "constants", "dtype", "dtype_b", "dtype_r", "dtype_w", "dtype_g", "dtype_s", "dtype_a",
                "enable_automatic_mixed_precision"});
  slstm.reject_others();

  // A missing key is the package's default, null is none.
  const json* feedforward = block.child("feedforward");
  config.has_ffn = feedforward != nullptr || !object.contains("feedforward");
  std::optional<Rounding> rounding;
  if (config.has_ffn) rounding = read_feedforward(feedforward ? *feedforward : empty, where + ".feedforward", config);
  block.reject_others();
  return rounding;
}

void read_slstm_at(Section& stack, const json& object, bool has_mlstm, bool has_slstm, StudentConfig& config) {
  const json* slstm_at = stack.child("slstm_at");
  const bool is_all = !has_mlstm || (slstm_at && *slstm_at == "all");
  config.slstm_at.clear();
  if (is_all) {
    for (int64_t block = 0; block < config.num_blocks; ++block) config.slstm_at.push_back(block);
  } else if (slstm_at) {
    config.slstm_at = require<std::vector<int64_t>>(object, "slstm_at", stack.where());
  }
  if (!config.slstm_at.empty() && !has_slstm)
    throw ConfigError("{}: slstm_at names sLSTM blocks, but slstm_block is null: configure it or empty slstm_at", stack.where());
}

StudentConfig read_stack(const json& object, const std::string& where, int64_t outer_vocab_size, bool is_outermost) {
  Section stack(object, where);
  StudentConfig config;
  config.vocab_size = stack.take<int64_t>("vocab_size", outer_vocab_size);
  config.embedding_dim = stack.take<int64_t>("embedding_dim", 128);
  config.num_blocks = stack.take<int64_t>("num_blocks", 1);
  config.context_length = stack.take<int64_t>("context_length", -1);
  config.add_post_blocks_norm = stack.take<bool>("add_post_blocks_norm", true);
  config.bias = stack.take<bool>("bias", false);
  config.tie_weights = stack.take<bool>("tie_weights", false);
  stack.take_dropout("dropout");
  stack.ignore({"weight_decay_on_embedding", "add_embedding_dropout", "_block_map"});  // the embedding is frozen

  const json* mlstm_block = stack.child("mlstm_block");
  const json* slstm_block = stack.child("slstm_block");
  if (!mlstm_block && !slstm_block) throw ConfigError("{}: neither mlstm_block nor slstm_block is configured: at least one must be", where);
  std::optional<Rounding> inner;
  std::optional<Rounding> ffn;
  if (mlstm_block) inner = read_mlstm(*mlstm_block, where + ": mlstm_block", config);
  config.has_ffn = true;
  if (slstm_block) ffn = read_slstm(*slstm_block, where + ": slstm_block", config);
  if (inner && ffn && *inner != *ffn)
    throw ConfigError("{}: mlstm and feedforward round their widths differently ({} and {}): only equal rounding is supported", where,
                      inner->multiple, ffn->multiple);
  const Rounding rounding = inner.value_or(ffn.value_or(Rounding{}));
  config.round_proj_up_to_multiple_of = rounding.multiple;
  config.round_proj_up_dim_up = rounding.up;
  read_slstm_at(stack, object, mlstm_block != nullptr, slstm_block != nullptr, config);

  if (const json* ours = stack.child("distil_xlstm")) {
    Section own(*ours, where + ": distil_xlstm");
    own.require_value<int64_t>("format_version", 1);
    own.require_value<std::string>("kind", "paper");
    config.chunk_size = own.take<int64_t>("chunk_size", 64);
    config.mixers = own.take<std::vector<std::string>>("mixers", {});
    own.reject_others();
  }
  if (is_outermost)  // what any Hugging Face configuration may carry
    stack.ignore({"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "pad_token_id",
                  "bos_token_id", "eos_token_id", "num_blocks_init"});
  stack.reject_others();
  return config;
}

}  // namespace

json StudentConfig::to_json(const std::string& slstm_backend) const {
  const json rounding = {{"round_proj_up_dim_up", round_proj_up_dim_up}, {"round_proj_up_to_multiple_of", round_proj_up_to_multiple_of}};
  json mlstm = {{"proj_factor", mlstm_proj_factor}};
  mlstm.update(rounding);
  mlstm.update(
      {{"conv1d_kernel_size", mlstm_conv1d_kernel_size}, {"qkv_proj_blocksize", qkv_proj_blocksize}, {"num_heads", mlstm_num_heads}});

  const json slstm = {{"num_heads", slstm_num_heads},
                      {"backend", slstm_backend},
                      {"bias_init", config::name_of(bias_init)},
                      {"recurrent_weight_init", config::name_of(recurrent_weight_init)},
                      {"conv1d_kernel_size", slstm_conv1d_kernel_size},
                      {"group_norm_weight", group_norm_weight}};
  json feedforward = nullptr;
  if (has_ffn) {
    feedforward = {{"proj_factor", ffn_proj_factor}};
    feedforward.update(rounding);
    feedforward.update({{"act_fn", config::name_of(ffn_act_fn)}, {"bias", ffn_bias}});
  }
  json config = {{"mlstm_block", {{"mlstm", mlstm}}},
                 {"slstm_block", {{"slstm", slstm}, {"feedforward", feedforward}}},
                 {"context_length", context_length},
                 {"num_blocks", num_blocks},
                 {"embedding_dim", embedding_dim},
                 {"add_post_blocks_norm", add_post_blocks_norm},
                 {"bias", bias},
                 {"dropout", 0.0},
                 {"slstm_at", slstm_at},
                 {"vocab_size", vocab_size},
                 {"tie_weights", tie_weights}};
  config["distil_xlstm"] = {{"format_version", 1}, {"kind", "paper"}, {"chunk_size", chunk_size}};
  if (!mixers.empty()) config["distil_xlstm"]["mixers"] = mixers;
  return config;
}

StudentConfig StudentConfig::from_json(const json& config, const std::string& where) {
  StudentConfig result;
  const char* nested = config.contains("xlstm_config") ? "xlstm_config" : config.contains("xlstm_cfg") ? "xlstm_cfg" : nullptr;
  if (nested) {
    result = read_stack(config[nested], where + ": " + nested, get_or<int64_t>(config, "vocab_size", -1, where), false);
  } else {
    result = read_stack(config, where, -1, true);
  }
  try {
    result.check();
  } catch (const ConfigError& error) {
    throw ConfigError("{}: {}", where, error.what());
  }
  return result;
}

}  // namespace distil_xlstm::student
