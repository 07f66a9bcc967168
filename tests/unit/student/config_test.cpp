// The student's shape: the paper's heuristics, parameter counts (xlstm.md 7.2), configuration files, wrong settings.
#include "student/paper/mixers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace distil_xlstm::student {
namespace {

using ::testing::HasSubstr;

teacher::TeacherShape qwen_shape() {
  teacher::TeacherShape shape;
  shape.model_type = "qwen2";
  shape.vocab_size = 151936;
  shape.hidden_size = 1536;
  shape.num_layers = 28;
  shape.num_heads = 12;
  shape.is_tied = true;
  return shape;
}

StudentSettings paper_settings(int64_t heads, int64_t block_size, double ffn_factor) {
  StudentSettings settings;
  settings.num_blocks = int64_t{6};
  settings.num_heads = heads;
  settings.qkv_proj_blocksize = block_size;
  settings.ffn_proj_factor = ffn_factor;
  return settings;
}

template <typename Action>
std::string config_error(Action action) {
  try {
    action();
  } catch (const ConfigError& error) {
    return error.what();
  }
  ADD_FAILURE() << "no ConfigError was thrown";
  return "";
}

TEST(StudentConfig, ParameterCountsOfTheSpecification) {
  struct Row {
    int64_t heads, block_size;
    double ffn_factor;
    int64_t trainable, untied;
  };
  const std::vector<Row> rows{{3, 4, 1.3, 90055698, 556803090},   {3, 4, 1.7, 98018322, 564765714},   {3, 32, 1.3, 90829842, 557577234},
                              {3, 32, 1.7, 98792466, 565539858},  {12, 4, 1.3, 76397640, 543145032},  {12, 4, 1.7, 84360264, 551107656},
                              {12, 32, 1.3, 77171784, 543919176}, {12, 32, 1.7, 85134408, 551881800}, {16, 4, 1.3, 75439200, 542186592},
                              {16, 4, 1.7, 83401824, 550149216},  {16, 32, 1.3, 76213344, 542960736}, {16, 32, 1.7, 84175968, 550923360}};
  for (const Row& row : rows) {
    const StudentConfig config = derive_student(paper_settings(row.heads, row.block_size, row.ffn_factor), qwen_shape(), 512);
    EXPECT_EQ(num_trainable_parameters(config), row.trainable) << row.heads << " " << row.block_size << " " << row.ffn_factor;
    EXPECT_EQ(num_trainable_parameters(config) + 2 * config.vocab_size * config.embedding_dim, row.untied);
  }
  StudentSettings all_mlstm = paper_settings(3, 32, 1.7);
  all_mlstm.slstm_at = config::SlstmRule::none;
  EXPECT_EQ(num_trainable_parameters(derive_student(all_mlstm, qwen_shape(), 256)), 87175716);
}

TEST(StudentConfig, PaperHeuristics) {
  StudentSettings settings;
  StudentConfig config = derive_student(settings, qwen_shape(), 512);
  EXPECT_EQ(config.num_blocks, 14);
  EXPECT_EQ(config.slstm_at, (std::vector<int64_t>{0, 2, 4, 6, 8, 10, 12}));
  EXPECT_EQ(config.slstm_num_heads, 12);
  EXPECT_EQ(config.mlstm_num_heads, 12);
  EXPECT_TRUE(config.tie_weights);
  EXPECT_EQ(config.context_length, 512);

  teacher::TeacherShape smol = qwen_shape();
  smol.hidden_size = 576;
  smol.num_heads = 9;
  smol.num_layers = 30;
  EXPECT_EQ(derive_student(settings, smol, 512).mlstm_num_heads, 12);
  settings.num_heads = config::HeadsRule::ceil4_div4;
  EXPECT_EQ(derive_student(settings, smol, 512).slstm_num_heads, 3);
  settings.num_blocks = config::BlocksRule::same;
  EXPECT_EQ(derive_student(settings, smol, 512).num_blocks, 30);
  settings.slstm_at = config::SlstmRule::all;
  EXPECT_EQ(derive_student(settings, smol, 512).slstm_at.size(), 30U);
  smol.num_layers = 1;
  settings.num_blocks = config::BlocksRule::half;
  EXPECT_EQ(derive_student(settings, smol, 512).num_blocks, 1);
}

TEST(StudentConfig, WidthsAreRounded) {
  StudentConfig config;
  config.embedding_dim = 1536;
  config.ffn_proj_factor = 1.7;
  EXPECT_EQ(config.ffn_dim(), 2624);
  config.ffn_proj_factor = 1.3;
  EXPECT_EQ(config.ffn_dim(), 2048);
  EXPECT_EQ(config.mlstm_inner_dim(), 3072);
  config.round_proj_up_dim_up = false;
  EXPECT_EQ(config.ffn_dim(), 1984);
  config.round_proj_up_dim_up = true;
  config.embedding_dim = 8;
  EXPECT_EQ(config.ffn_dim(), 64);
  EXPECT_EQ(config.mlstm_inner_dim(), 64);
}

TEST(StudentConfig, MessagesNameKeyValueAndRemedy) {
  const auto error_with = [](auto change) {
    StudentSettings settings = paper_settings(12, 4, 1.7);
    change(settings);
    return config_error([&] { (void)derive_student(settings, qwen_shape(), 512); });
  };
  EXPECT_EQ(error_with([](auto& s) { s.num_heads = int64_t{10}; }),
            "student.num_heads = 10 does not divide student.hidden_size = 1536: the nearest that do are 8 and 12");
  EXPECT_THAT(error_with([](auto& s) { s.num_heads = int64_t{0}; }), HasSubstr("student.num_heads = 0 does not divide"));
  EXPECT_THAT(error_with([](auto& s) { s.num_blocks = int64_t{0}; }), HasSubstr("student.num_blocks = 0: must be at least 1"));
  EXPECT_THAT(error_with([](auto& s) { s.slstm_at = std::vector<int64_t>{0, 6}; }),
              HasSubstr("block 6: student.num_blocks = 6 allows 0 to 5"));
  EXPECT_THAT(error_with([](auto& s) { s.slstm_at = std::vector<int64_t>{2, 2}; }), HasSubstr("block 2 twice"));
  EXPECT_THAT(error_with([](auto& s) { s.qkv_proj_blocksize = 7; }),
              HasSubstr("student.qkv_proj_blocksize = 7 does not divide the mLSTM's inner width = 3072"));
  EXPECT_THAT(error_with([](auto& s) { s.conv1d_kernel_size = 0; }), HasSubstr("at least 1 tap"));
  EXPECT_THAT(error_with([](auto& s) { s.chunk_size = 0; }), HasSubstr("student.chunk_size = 0"));
  EXPECT_THAT(error_with([](auto& s) { s.ffn_proj_factor = -1; }), HasSubstr("student.ffn_proj_factor = -1"));
  EXPECT_THAT(error_with([](auto& s) { s.num_heads = int64_t{1536}; }), HasSubstr("powerlaw_blockdependent"));
  StudentSettings no_convolution = paper_settings(12, 4, 1.7);
  no_convolution.conv1d_kernel_size = 0;
  no_convolution.slstm_at = config::SlstmRule::all;
  EXPECT_NO_THROW((void)derive_student(no_convolution, qwen_shape(), 512));
}

TEST(StudentConfig, JsonRoundTrip) {
  StudentConfig config = derive_student(paper_settings(12, 32, 1.3), qwen_shape(), 512);
  config.bias = config.ffn_bias = true;
  config.group_norm_weight = false;
  config.bias_init = config::BiasInit::small_init;
  config.chunk_size = 32;
  config.round_proj_up_to_multiple_of = 16;
  const json written = config.to_json("vanilla");
  EXPECT_EQ(written["slstm_block"]["slstm"]["backend"], "vanilla");
  const StudentConfig read = StudentConfig::from_json(written, "config.json");
  EXPECT_EQ(read.to_json("vanilla"), written);
  EXPECT_EQ(num_trainable_parameters(read), num_trainable_parameters(config));

  config.has_ffn = false;
  EXPECT_FALSE(StudentConfig::from_json(config.to_json(), "config.json").has_ffn);
}

// What dataclasses.asdict gives for the package's configuration, version 2.0.6.
json package_dump() {
  return parse_json(R"({
    "mlstm_block": {"mlstm": {"proj_factor": 2.0, "round_proj_up_dim_up": true, "round_proj_up_to_multiple_of": 64, "_proj_up_dim": 64,
        "conv1d_kernel_size": 4, "qkv_proj_blocksize": 4, "num_heads": 2, "embedding_dim": 8, "bias": false, "dropout": 0.0,
        "context_length": 6, "_num_blocks": 3, "_inner_embedding_dim": 64}, "_num_blocks": 3, "_block_idx": null},
    "slstm_block": {"slstm": {"hidden_size": 8, "num_heads": 2, "num_states": 4, "backend": "vanilla", "function": "slstm",
        "bias_init": "powerlaw_blockdependent", "recurrent_weight_init": "zeros", "_block_idx": null, "_num_blocks": 3, "num_gates": 4,
        "gradient_recurrent_cut": false, "gradient_recurrent_clipval": null, "forward_clipval": null, "batch_size": 8,
        "input_shape": "BSGNH", "internal_input_shape": "SBNGH", "output_shape": "BNSH", "constants": {}, "dtype": "bfloat16",
        "dtype_b": "float32", "dtype_r": "bfloat16", "dtype_w": "bfloat16", "dtype_g": "bfloat16", "dtype_s": "bfloat16",
        "dtype_a": "float32", "enable_automatic_mixed_precision": true, "initial_val": 0.0, "embedding_dim": 8, "conv1d_kernel_size": 4,
        "group_norm_weight": true, "dropout": 0.0},
      "feedforward": {"proj_factor": 1.7, "round_proj_up_dim_up": true, "round_proj_up_to_multiple_of": 64, "_proj_up_dim": 0,
        "act_fn": "gelu", "embedding_dim": -1, "dropout": 0.0, "bias": false, "ff_type": "ffn_gated", "_num_blocks": 1},
      "_num_blocks": 3, "_block_idx": null},
    "context_length": 6, "num_blocks": 3, "embedding_dim": 8, "add_post_blocks_norm": true, "bias": false, "dropout": 0.0,
    "slstm_at": [0, 2], "_block_map": "1,0,1", "vocab_size": 11, "tie_weights": false, "weight_decay_on_embedding": false,
    "add_embedding_dropout": false})",
                    "dump");
}

TEST(StudentConfig, ReadsThePackagesDump) {
  const StudentConfig config = StudentConfig::from_json(package_dump(), "dump");
  EXPECT_EQ(config.vocab_size, 11);
  EXPECT_EQ(config.embedding_dim, 8);
  EXPECT_EQ(config.slstm_at, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(config.ffn_dim(), 64);
  EXPECT_EQ(config.slstm_num_heads, 2);
  EXPECT_DOUBLE_EQ(config.ffn_proj_factor, 1.7);
}

TEST(StudentConfig, ReadsTheAuthorsFormat) {
  json nested = package_dump();
  nested.erase("vocab_size");
  for (const char* key : {"xlstm_config", "xlstm_cfg"}) {
    const json config = {{"model_type", "xlstm"},
                         {"architectures", {"DistilxLSTMForCausalLM"}},
                         {"num_blocks_init", "custom"},
                         {"vocab_size", 13},
                         {key, nested}};
    EXPECT_EQ(StudentConfig::from_json(config, "config.json").vocab_size, 13);
  }
}

TEST(StudentConfig, MissingBlocksAndDefaultsAsInThePackage) {
  json config = package_dump();
  config["mlstm_block"] = nullptr;
  config["slstm_at"] = json::array();
  EXPECT_EQ(StudentConfig::from_json(config, "c").slstm_at, (std::vector<int64_t>{0, 1, 2}));
  config = package_dump();
  config["slstm_at"] = "all";
  EXPECT_EQ(StudentConfig::from_json(config, "c").slstm_at.size(), 3U);
  config["slstm_block"]["feedforward"] = nullptr;
  EXPECT_FALSE(StudentConfig::from_json(config, "c").has_ffn);
  config["slstm_block"].erase("feedforward");
  EXPECT_DOUBLE_EQ(StudentConfig::from_json(config, "c").ffn_proj_factor, 1.3);
  config = package_dump();
  config["slstm_block"] = nullptr;
  EXPECT_THAT(config_error([&] { (void)StudentConfig::from_json(config, "c"); }), HasSubstr("slstm_block is null"));
  config["slstm_at"] = json::array();
  EXPECT_TRUE(StudentConfig::from_json(config, "c").slstm_at.empty());
  config["mlstm_block"] = nullptr;
  EXPECT_THAT(config_error([&] { (void)StudentConfig::from_json(config, "c"); }), HasSubstr("neither mlstm_block nor slstm_block"));
}

TEST(StudentConfig, RefusesWhatWouldChangeTheResult) {
  const auto error_with = [](const std::string& pointer, const json& value) {
    json config = package_dump();
    config[json::json_pointer(pointer)] = value;
    return config_error([&] { (void)StudentConfig::from_json(config, "config.json"); });
  };
  EXPECT_THAT(error_with("/slstm_block/slstm/function", "lstm"), HasSubstr("function = \"lstm\" is not supported: only \"slstm\" is"));
  EXPECT_THAT(error_with("/slstm_block/slstm/initial_val", 1.0), HasSubstr("initial_val"));
  EXPECT_THAT(error_with("/slstm_block/slstm/forward_clipval", 3.0), HasSubstr("forward_clipval = 3.0"));
  EXPECT_THAT(error_with("/slstm_block/slstm/gradient_recurrent_cut", true), HasSubstr("gradient_recurrent_cut"));
  EXPECT_THAT(error_with("/slstm_block/slstm/backend", "triton"), HasSubstr("must be cuda or vanilla"));
  EXPECT_THAT(error_with("/slstm_block/feedforward/ff_type", "ffn"), HasSubstr("ff_type"));
  EXPECT_THAT(error_with("/slstm_block/feedforward/act_fn", "mish"), HasSubstr("student.ffn_act_fn = \"mish\""));
  EXPECT_THAT(error_with("/slstm_block/feedforward/act_fn", "gelus"), HasSubstr("did you mean 'gelu'?"));
  EXPECT_THAT(error_with("/slstm_block/slstm/bias_init", "ones"), HasSubstr("student.bias_init = \"ones\""));
  EXPECT_THAT(error_with("/slstm_block/slstm/recurrent_weight_init", "wang"), HasSubstr("zeros, standard"));
  EXPECT_THAT(error_with("/mlstm_block/mlstm/round_proj_up_to_multiple_of", 32), HasSubstr("only equal rounding"));
  EXPECT_THAT(error_with("/mlstm_block/mlstm/qkv_proj_blocksiz", 4), HasSubstr("did you mean 'qkv_proj_blocksize'?"));
  EXPECT_THAT(error_with("/rope_theta", 1e4), HasSubstr("unknown key 'rope_theta'"));
  EXPECT_THAT(error_with("/mlstm_block", 3), HasSubstr("must be an object"));
  EXPECT_THAT(error_with("/num_blocks", 2), HasSubstr("config.json: student.slstm_at has block 2"));
  json wrong_type = package_dump();
  wrong_type["num_blocks"] = "three";
  EXPECT_THROW((void)StudentConfig::from_json(wrong_type, "config.json"), DataError);
}

}  // namespace
}  // namespace distil_xlstm::student
