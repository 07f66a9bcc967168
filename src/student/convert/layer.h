// One layer of a converted student: the teacher's, with another mixer in the place of its attention (docs/convert.md). Mixers are chosen by
// name.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/decoder_layer.h"
#include "student/convert/config.h"
#include "student/convert/weights.h"
#include "student/mixer.h"

namespace distil_xlstm::student {

// What a teacher's layer read, and its weights by their names within it ("self_attn.q_proj.weight"); none where they are not at hand.
struct TeacherRows {
  Tensor x_BSD, is_start_BS;  // as start_from_rows has them
  std::map<std::string, Tensor> teacher_weights;
};

class ConvertLayer : public Mixer {
 public:
  // `parameters`: of layer_parameters.
  ConvertLayer(const ConvertConfig& config, std::string mixer, std::vector<ParameterSpec> parameters);

  [[nodiscard]] std::string_view kind() const final { return mixer_; }
  [[nodiscard]] const std::vector<ParameterSpec>& parameters() const final { return parameters_; }
  [[nodiscard]] Tensor forward(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call, MixerState* state) const final;
  [[nodiscard]] Tensor mixer_output(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call) const final;
  [[nodiscard]] KeptValues kept_values() const final;

  // Whether the mixer begins as the teacher's attention itself, so that nothing is left to align.
  [[nodiscard]] virtual bool is_teachers() const { return false; }

  // Whether queries and keys are features (ConvertConfig::feature_factor).
  [[nodiscard]] virtual bool has_features() const { return false; }
  // Whether start_from_rows does anything.
  [[nodiscard]] virtual bool starts_from_rows() const { return false; }
  // Sets what a fresh layer takes from rows that the teacher read: x_BSD is the stream before the layer; is_start_BS (uint8) or undefined.
  virtual void start_from_rows(const MixerWeights& /*weights*/, const Tensor& /*x_BSD*/, const Tensor& /*is_start_BS*/) const {}
  // The same, for layers that also need what of the teacher's they have no parameter for.
  virtual void start_from_teacher(const MixerWeights& weights, const TeacherRows& rows) const {
    start_from_rows(weights, rows.x_BSD, rows.is_start_BS);
  }

 protected:
  using WithMixer = std::function<Tensor(nn::TokenMixer&)>;
  // Makes the mixer of this call on `device` and gives it to `layer`.
  [[nodiscard]] virtual Tensor with_mixer(const MixerWeights& weights, const MixerCall& call, at::Device device, MixerState* state,
                                          const WithMixer& layer) const = 0;
  // Between the norm's output and the output projection's input.
  [[nodiscard]] virtual KeptValues mixer_kept_values() const = 0;

  [[nodiscard]] const ConvertConfig& config() const { return config_; }

 private:
  using LayerFunction = Tensor (*)(const nn::DecoderWeights&, nn::TokenMixer&, const Tensor&, const nn::LayerCall&);
  [[nodiscard]] Tensor run(LayerFunction function, const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call,
                           MixerState* state) const;

  ConvertConfig config_;
  std::string mixer_;
  std::vector<ParameterSpec> parameters_;
  WeightBinder<LayerWeights> bind_;
};

// With one of convert_mixer_names() in attention's place.
std::unique_ptr<const ConvertLayer> make_convert_layer(const ConvertConfig& config, const std::string& mixer);

// With the cell of that name.
std::unique_ptr<const ConvertLayer> make_cell_layer(const ConvertConfig& config, const std::string& cell);

// With an sLSTM.
std::unique_ptr<const ConvertLayer> make_slstm_layer(const ConvertConfig& config, const std::string& mixer);

// With the teacher's own attention.
std::unique_ptr<const ConvertLayer> make_attention_layer(const ConvertConfig& config, const std::string& mixer);

// With the block of NX-AI's large models.
std::unique_ptr<const ConvertLayer> make_large_layer(const ConvertConfig& config, const std::string& mixer);

}  // namespace distil_xlstm::student
