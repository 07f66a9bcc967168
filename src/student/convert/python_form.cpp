#include "student/convert/python_form.h"

#include "student/convert/large_form.h"

namespace distil_xlstm::student {
namespace {

// All that is in force, defaults of the teacher's family too.
json rotary_json(const nn::RopeConfig& rope) {
  json rotary = {{"rope_type", "default"}, {"rope_theta", rope.theta}};
  switch (rope.scaling) {
    case nn::RopeScaling::none:
      break;
    case nn::RopeScaling::linear:
      rotary.update({{"rope_type", "linear"}, {"factor", rope.factor}});
      break;
    case nn::RopeScaling::llama3:
      rotary.update({{"rope_type", "llama3"},
                     {"factor", rope.factor},
                     {"original_max_position_embeddings", rope.original_context},
                     {"low_freq_factor", rope.low_freq_factor},
                     {"high_freq_factor", rope.high_freq_factor}});
      break;
    case nn::RopeScaling::yarn:
      rotary.update({{"rope_type", "yarn"},
                     {"factor", rope.factor},
                     {"original_max_position_embeddings", rope.original_context},
                     {"beta_fast", rope.beta_fast},
                     {"beta_slow", rope.beta_slow},
                     {"truncate", rope.truncate},
                     {"attention_factor", rope.attention_factor}});
      break;
  }
  return rotary;
}

constexpr const char* kExample = R"(from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)  # this directory
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
)";

}  // namespace

PythonForm convert_python_form(const ConvertConfig& config) {
  if (is_large(config)) return large_python_form(config);
  const auto& decoder = config.decoder;
  const std::string module = "modeling_distil_xlstm";
  return {.files = {module + ".py"},
          .config = {{"architectures", {"DistilXlstmForCausalLM"}},
                     {"auto_map",
                      {{"AutoConfig", module + ".DistilXlstmConfig"}, {"AutoModelForCausalLM", module + ".DistilXlstmForCausalLM"}}},
                     {"intermediate_size", decoder.intermediate_size},
                     {"num_attention_heads", decoder.num_heads},
                     {"head_dim", decoder.head_dim},
                     {"rms_norm_eps", decoder.rms_norm_eps},
                     {"attention_bias", decoder.has_qkv_bias},
                     {"attention_output_bias", decoder.has_o_bias},
                     {"mlp_bias", decoder.has_mlp_bias},
                     {"use_qk_norm", decoder.has_qk_norm},
                     {"rotary", config.has_rope || config.num_attention_layers() > 0 ? rotary_json(decoder.rope) : json()},
                     {"use_rope", config.has_rope},
                     {"rope_max_wavelength", config.rope_max_wavelength},
                     {"num_key_value_heads", decoder.num_kv_heads},
                     {"attention_window", config.attention_window},
                     {"attention_sinks", config.attention_sinks},
                     {"mixers", config.mixers},
                     {"normalizer", config::name_of(config.normalizer)},
                     {"head_norm", config.has_head_norm},
                     {"conv1d_kernel_size", config.conv1d_kernel_size},
                     {"feature_factor", config.feature_factor},
                     {"chunk_size", config.chunk_size}},
          .library = "transformers",
          .opening = "AutoModelForCausalLM.from_pretrained(\"{}\", trust_remote_code=True)",
          .example = kExample};
}

}  // namespace distil_xlstm::student
