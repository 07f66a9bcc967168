// Real configurations, shortened to the keys that matter, and what must be refused.
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>

#include "unit/teacher/teacher_testing.h"

namespace distil_xlstm::teacher {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using ::testing::Not;

const json kLlama32 = json::parse(R"({"_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "attention_bias": false,
  "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008], "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
  "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true,
  "torch_dtype": "float32", "transformers_version": "4.48.0", "use_cache": true, "vocab_size": 128256})");

const json kQwen25 = json::parse(R"({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 8960,
  "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28,
  "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})");

const json kQwen3 = json::parse(R"({"attention_bias": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
  "intermediate_size": 9728, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3", "num_attention_heads": 32,
  "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
  "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936})");

nn::TransformerConfig parsed(const json& config) {
  return read_config(find_family(config, "config.json"), config, "config.json");
}

json with(json config, const json& changes) {
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return config;
}

std::string refusal(const json& config, const json& changes) {
  return error_of<ConfigError>([&] { teacher_shape(with(config, changes)); });
}

TEST(TeacherShape, CountsParametersAsPublished) {
  EXPECT_EQ(teacher_shape(kLlama32).num_parameters, 1235814400);
  EXPECT_EQ(teacher_shape(kQwen3).num_parameters, 4022468096);
  const TeacherShape shape = teacher_shape(kQwen25);
  EXPECT_EQ(shape.num_parameters, 1543714304);
  EXPECT_EQ(shape.model_type, "qwen2");
  EXPECT_EQ(shape.head_dim, 128);
  EXPECT_EQ(shape.num_kv_heads, 2);
  EXPECT_EQ(shape.max_position_embeddings, 32768);
  EXPECT_TRUE(shape.is_tied);
}

TEST(TeacherShape, BothSpellingsOfRotaryKeysMeanTheSame) {
  json renamed = kLlama32;
  renamed["rope_parameters"] = renamed["rope_scaling"];
  renamed["rope_parameters"]["rope_theta"] = 500000.0;
  renamed.erase("rope_scaling");
  renamed.erase("rope_theta");
  renamed["dtype"] = "bfloat16";
  const nn::RopeConfig old_rope = parsed(kLlama32).rope, new_rope = parsed(renamed).rope;
  EXPECT_EQ(old_rope.theta, new_rope.theta);
  EXPECT_EQ(new_rope.scaling, nn::RopeScaling::llama3);
  EXPECT_EQ(old_rope.original_context, 8192);
  EXPECT_TRUE(at::equal(nn::rope_frequencies(old_rope, 64), nn::rope_frequencies(new_rope, 64)));

  const nn::RopeConfig linear = parsed(with(kQwen25, {{"rope_scaling", {{"type", "linear"}, {"factor", 2.5}}}})).rope;
  EXPECT_EQ(linear.scaling, nn::RopeScaling::linear);
  EXPECT_EQ(linear.factor, 2.5);
  EXPECT_EQ(linear.theta, 1000000.0);
}

TEST(TeacherShape, YarnTakesItsMagnitudeFromTheFactor) {
  const json scaling = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  const nn::RopeConfig rope = parsed(with(kQwen25, {{"rope_scaling", scaling}})).rope;
  EXPECT_EQ(rope.scaling, nn::RopeScaling::yarn);
  EXPECT_DOUBLE_EQ(rope.attention_factor, 0.1 * std::log(4.0) + 1.0);
  EXPECT_EQ(rope.original_context, 32768);
}

// What config.json leaves out is what the family's class in transformers takes.
TEST(TeacherShape, AbsentKeysAreTheFamilysOwn) {
  const auto without = [](json config, std::initializer_list<const char*> keys) {
    for (const char* key : keys) config.erase(key);
    return parsed(config);
  };
  EXPECT_EQ(without(kLlama32, {"max_position_embeddings"}).max_position_embeddings, 2048);
  EXPECT_EQ(without(kQwen25, {"max_position_embeddings"}).max_position_embeddings, 32768);
  EXPECT_EQ(without(kQwen3, {"max_position_embeddings"}).max_position_embeddings, 32768);
  EXPECT_EQ(without(kLlama32, {"num_key_value_heads"}).num_kv_heads, 32);
  EXPECT_EQ(without(kQwen3, {"num_key_value_heads"}).num_kv_heads, 32);
  EXPECT_EQ(parsed(with(kQwen25, {{"num_key_value_heads", nullptr}})).num_kv_heads, 12);
  json few_heads = kQwen25;
  few_heads.erase("num_key_value_heads");
  EXPECT_THAT(refusal(few_heads, json::object()),
              HasSubstr("num_key_value_heads = 32 (the family's default: the key is not there) does not divide num_attention_heads = 12"));
  for (const auto& config : {kLlama32, kQwen25, kQwen3}) {
    const auto bare = without(config, {"rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_scaling", "hidden_act"});
    EXPECT_EQ(bare.rms_norm_eps, 1e-6);
    EXPECT_FALSE(bare.is_tied);
    EXPECT_EQ(bare.rope.theta, 10000.0);
  }
  // Without a factor YaRN stretches from the original positions to max_position_embeddings.
  const json yarn = {{"rope_type", "yarn"}, {"factor", nullptr}, {"original_max_position_embeddings", 8192}};
  json stretched = with(kQwen25, {{"rope_scaling", yarn}});
  stretched.erase("max_position_embeddings");
  EXPECT_EQ(parsed(stretched).rope.factor, 4.0);
}

TEST(TeacherShape, SwishIsSilu) {
  EXPECT_EQ(refusal(kLlama32, {{"hidden_act", "swish"}}), "<no exception>");
  EXPECT_THAT(refusal(kLlama32, {{"hidden_act", "gelu"}}), HasSubstr("hidden_act = \"gelu\" is not supported: only \"silu\", also called"));
}

TEST(TeacherShape, FamiliesDifferWhereTheyShould) {
  EXPECT_TRUE(parsed(kQwen25).has_qkv_bias);
  EXPECT_FALSE(parsed(kQwen25).has_o_bias);
  EXPECT_TRUE(parsed(kQwen3).has_qk_norm);
  EXPECT_FALSE(parsed(kQwen3).has_qkv_bias);
  EXPECT_FALSE(parsed(kLlama32).has_qkv_bias || parsed(kLlama32).has_mlp_bias || parsed(kLlama32).has_qk_norm);
  const nn::TransformerConfig biased = parsed(with(kLlama32, {{"attention_bias", true}, {"mlp_bias", true}}));
  EXPECT_TRUE(biased.has_qkv_bias && biased.has_o_bias && biased.has_mlp_bias);
  json without_head_dim = kQwen3;
  without_head_dim.erase("head_dim");
  EXPECT_EQ(parsed(without_head_dim).head_dim, 128) << "Qwen3's default is not hidden_size / num_attention_heads";
}

TEST(TeacherShape, RefusesOtherFamiliesByName) {
  const json gemma = {{"model_type", "gemma3"}, {"text_config", {{"hidden_size", 2560}}}};
  EXPECT_EQ(error_of<ConfigError>([&] { teacher_shape(gemma); }),
            "config.json: model_type = \"gemma3\" is not supported: supported are llama, qwen2, qwen3");
  EXPECT_THAT(refusal(kLlama32, {{"model_type", "mistral"}}), HasSubstr("\"mistral\" is not supported"));
  EXPECT_THAT(error_of<ConfigError>([] { teacher_shape(json::object()); }), HasSubstr("model_type = missing"));
  EXPECT_THAT(error_of<ConfigError>([] { teacher_shape(json::array()); }), HasSubstr("model_type = missing"));
}

TEST(TeacherShape, RefusesKeysThatWouldChangeTheResult) {
  EXPECT_THAT(refusal(kLlama32, {{"hidden_act", "gelu"}}), HasSubstr("hidden_act = \"gelu\" is not supported: only \"silu\""));
  EXPECT_THAT(refusal(kLlama32, {{"sliding_window", 4096}}), HasSubstr("sliding_window = 4096"));
  EXPECT_THAT(refusal(kLlama32, {{"quantization_config", {{"bits", 4}}}}), HasSubstr("quantization_config = {\"bits\":4}"));
  EXPECT_THAT(refusal(kLlama32, {{"partial_rotary_factor", 0.5}}), HasSubstr("partial_rotary_factor"));
  EXPECT_THAT(refusal(kLlama32, {{"rope_interleaved", true}}), HasSubstr("rope_interleaved = true"));
  EXPECT_THAT(refusal(kLlama32, {{"pruned_heads", {{"0", {1}}}}}), HasSubstr("pruned_heads"));
  EXPECT_THAT(refusal(kQwen25, {{"use_sliding_window", true}}), HasSubstr("use_sliding_window = true"));
  EXPECT_THAT(refusal(kQwen25, {{"layer_types", {"full_attention", "sliding_attention"}}}), HasSubstr("layer_types"));
  EXPECT_THAT(refusal(kQwen25, {{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}}), HasSubstr("default, linear, llama3 and yarn"));
  EXPECT_THAT(refusal(kQwen25, {{"rope_scaling", {{"type", "default"}, {"mrope_section", {16, 24}}}}}),
              HasSubstr("rope_scaling.mrope_section"));
  EXPECT_THAT(refusal(kQwen25, {{"rope_scaling", {{"type", "linear"}}}}), HasSubstr("rope_scaling.factor is missing"));
  EXPECT_THAT(refusal(kQwen25, {{"rope_scaling", {{"type", "linear"}, {"factor", -1}}}}), HasSubstr("rope_scaling.factor = -1"));
  EXPECT_THAT(refusal(kQwen25, {{"rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}}}), HasSubstr("by layer type"));
  EXPECT_THAT(refusal(kLlama32, {{"rope_parameters", {{"rope_theta", 1e4}}}}), HasSubstr("contradict"));
}

TEST(TeacherShape, RefusesWhatOtherFamiliesAddUnlessItChangesNothing) {
  for (const char* key : {"embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb"}) {
    EXPECT_THAT(refusal(kLlama32, {{key, 12.0}}), HasSubstr(fmt::format("{} = 12.0 is not supported", key)));
    EXPECT_EQ(refusal(kLlama32, {{key, 1}}), "<no exception>") << key;
    EXPECT_EQ(refusal(kLlama32, {{key, 1.0}}), "<no exception>") << key;
    EXPECT_EQ(refusal(kLlama32, {{key, nullptr}}), "<no exception>") << key;
  }
  for (const char* key : {"attention_multiplier", "scale_depth", "final_logit_softcapping", "query_pre_attn_scalar", "clip_qkv"}) {
    EXPECT_THAT(refusal(kLlama32, {{key, 1.0}}), HasSubstr(key)) << "1 is not neutral";
    EXPECT_EQ(refusal(kLlama32, {{key, nullptr}}), "<no exception>") << key;
  }
  EXPECT_THAT(refusal(kQwen3, {{"num_experts", 8}}), HasSubstr("num_experts = 8"));
  EXPECT_EQ(refusal(kQwen3, {{"num_experts", 0}, {"use_parallel_residual", false}, {"no_rope_layers", {1, 1}}}), "<no exception>");
  EXPECT_THAT(refusal(kLlama32, {{"no_rope_layers", {1, 0}}}), HasSubstr("no_rope_layers = [1,0]"));
}

TEST(TeacherShape, RefusesRotaryKeysThatContradict) {
  const json scaling = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  EXPECT_THAT(refusal(kQwen25, {{"rope_scaling", scaling}, {"original_max_position_embeddings", 4096}}),
              HasSubstr("original_max_position_embeddings = 4096 and rope_scaling.original_max_position_embeddings = 32768 contradict"));
  EXPECT_EQ(refusal(kQwen25, {{"rope_scaling", scaling}, {"original_max_position_embeddings", 32768}}), "<no exception>");
  for (const json& truncate : {json(), json("yes")}) {
    EXPECT_THAT(refusal(kQwen25, {{"rope_scaling", with(scaling, {{"truncate", truncate}})}}), HasSubstr("rope_scaling.truncate = "));
  }
}

TEST(TeacherShape, AMissingWindowIsTheDefaultOne) {
  json config = with(kQwen25, {{"use_sliding_window", true}});
  config.erase("sliding_window");
  EXPECT_THAT(refusal(config, json::object()), HasSubstr("use_sliding_window = true"));
  EXPECT_EQ(refusal(config, {{"sliding_window", nullptr}}), "<no exception>");
  EXPECT_EQ(refusal(config, {{"max_window_layers", 28}}), "<no exception>");
  config.erase("max_window_layers");
  EXPECT_EQ(refusal(config, json::object()), "<no exception>");  // 28, as many as there are layers
}

TEST(TeacherShape, AcceptsWindowsThatApplyToNoLayer) {
  EXPECT_EQ(refusal(kQwen25, {{"use_sliding_window", true}, {"max_window_layers", 28}}), "<no exception>");
  EXPECT_EQ(refusal(kQwen25, {{"layer_types", std::vector<std::string>(28, "full_attention")}}), "<no exception>");
}

TEST(TeacherShape, RefusesSizesThatMakeNoModel) {
  for (const json& value : {json(0), json(-3), json(2.5), json("64"), json(true), json(1e12), json(nullptr)}) {
    EXPECT_THAT(refusal(kLlama32, {{"hidden_size", value}}), HasSubstr("hidden_size")) << value;
  }
  EXPECT_THAT(refusal(kLlama32, {{"num_hidden_layers", 2000000000}}), HasSubstr("num_hidden_layers = 2000000000"));
  EXPECT_THAT(refusal(kLlama32, {{"vocab_size", 2147483647}, {"hidden_size", 2147483647}, {"intermediate_size", 2147483647}}),
              HasSubstr("more than 2^63 parameters"));
  EXPECT_THAT(refusal(kLlama32, {{"num_key_value_heads", 5}}), HasSubstr("num_key_value_heads = 5 does not divide"));
  EXPECT_THAT(refusal(kLlama32, {{"head_dim", 7}}), HasSubstr("head_dim = 7 must be even"));
  EXPECT_THAT(refusal(kQwen25, {{"hidden_size", 1537}}), HasSubstr("does not divide hidden_size = 1537"));
  EXPECT_THAT(refusal(kLlama32, {{"rms_norm_eps", 0}}), HasSubstr("rms_norm_eps = 0"));
  EXPECT_THAT(refusal(kLlama32, {{"tie_word_embeddings", "yes"}}), HasSubstr("tie_word_embeddings = \"yes\""));
}

TEST(TeacherShape, WarnsOnceAboutKeysItDoesNotKnow) {
  std::ostringstream log;
  const auto previous = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  const json config = with(kLlama32, {{"logit_softcap_of_tomorrow", 30.0}, {"absent_feature", nullptr}});
  teacher_shape(config);
  teacher_shape(config);
  spdlog::set_default_logger(previous);
  EXPECT_THAT(log.str(), HasSubstr("ignored keys that are not known for model_type llama: logit_softcap_of_tomorrow"));
  EXPECT_THAT(log.str(), Not(HasSubstr("absent_feature")));
  EXPECT_EQ(log.str().find("tomorrow"), log.str().rfind("tomorrow")) << "warned twice";
}

}  // namespace
}  // namespace distil_xlstm::teacher
