// A model's config.json: {"config": {...}}, as a teacher of every family and as a student.
#include "fuzz/fuzz_target.h"
#include "student/paper/config.h"
#include "teacher/families.h"

DISTIL_XLSTM_RECIPE_MUTATOR({"config",
                             "architectures",
                             "model_type",
                             "llama",
                             "qwen2",
                             "qwen3",
                             "hidden_size",
                             "intermediate_size",
                             "num_hidden_layers",
                             "num_attention_heads",
                             "num_key_value_heads",
                             "head_dim",
                             "vocab_size",
                             "max_position_embeddings",
                             "rms_norm_eps",
                             "rope_theta",
                             "rope_scaling",
                             "rope_parameters",
                             "rope_type",
                             "type",
                             "linear",
                             "yarn",
                             "llama3",
                             "default",
                             "factor",
                             "original_max_position_embeddings",
                             "low_freq_factor",
                             "high_freq_factor",
                             "beta_fast",
                             "beta_slow",
                             "mscale",
                             "attention_factor",
                             "tie_word_embeddings",
                             "attention_bias",
                             "mlp_bias",
                             "hidden_act",
                             "silu",
                             "swish",
                             "gelu",
                             "use_sliding_window",
                             "sliding_window",
                             "layer_types",
                             "full_attention",
                             "torch_dtype",
                             "bfloat16",
                             "eos_token_id",
                             "bos_token_id",
                             "pad_token_id",
                             "partial_rotary_factor",
                             "mlstm_block",
                             "slstm_block",
                             "slstm_at",
                             "num_blocks",
                             "embedding_dim",
                             "context_length",
                             "num_heads",
                             "qkv_proj_blocksize",
                             "proj_factor",
                             "distil_xlstm",
                             "version"});

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  const json recipe = fuzz::read_recipe(data, size);
  if (recipe.is_null() || !recipe.contains("config")) return -1;
  const json& config = recipe["config"];
  fuzz::tolerate([&] { (void)teacher::read_config(teacher::find_family(config, "config.json"), config, "config.json"); });
  for (const teacher::Family* family : {&teacher::kLlama, &teacher::kQwen2, &teacher::kQwen3}) {
    json own = config.is_object() ? config : json::object();
    own["model_type"] = family->model_type;
    fuzz::tolerate([&] { (void)teacher::read_config(*family, own, "config.json"); });
  }
  fuzz::tolerate([&] { (void)student::StudentConfig::from_json(config, "config.json"); });
  return 0;
}
