// A kind of student that is no part of the program, added through its registry: one mixer of decay_mixer.h between embedding and head.
#pragma once

#include "base/error.h"
#include "student/registry.h"
#include "student/state.h"
#include "support/decay_mixer.h"

namespace distil_xlstm::student {

class DecayShape final : public StudentShape {
 public:
  DecayShape(int64_t width, int64_t vocabulary) : width_(width), vocabulary_(vocabulary) {}

  [[nodiscard]] std::string_view kind() const override { return "decay"; }
  [[nodiscard]] int64_t num_layers() const override { return 1; }
  [[nodiscard]] int64_t hidden_size() const override { return width_; }
  [[nodiscard]] int64_t vocab_size() const override { return vocabulary_; }
  [[nodiscard]] int64_t num_trainable_parameters() const override { return width_ * (width_ + 2); }
  [[nodiscard]] std::vector<KeptValues> kept_values() const override { return {mixer().kept_values()}; }
  [[nodiscard]] std::string description() const override { return "one decaying sum"; }
  [[nodiscard]] json to_json(std::string_view) const override {
    return {{"model_type", "xlstm"}, {"width", width_}, {"vocabulary", vocabulary_}, {"distil_xlstm", {{"kind", "decay"}}}};
  }
  [[nodiscard]] std::vector<std::string> differences(const StudentShape& found) const override {
    if (found.kind() != kind() || found.hidden_size() != width_) return {"  another shape"};
    return {};
  }
  [[nodiscard]] std::unique_ptr<Student> fresh(const StudentPlace& place, uint64_t seed) const override;

  [[nodiscard]] DecayMixer mixer() const {
    StudentConfig config;
    config.embedding_dim = width_;
    return DecayMixer(config);
  }

 private:
  int64_t width_, vocabulary_;
};

class DecayStudent final : public Student {
 public:
  DecayStudent(const DecayShape& shape, NamedTensors parameters, Tensor embedding_VD, Tensor head_VD)
      : shape_(shape),
        mixer_(shape.mixer()),
        parameters_(std::move(parameters)),
        embedding_VD_(std::move(embedding_VD)),
        head_VD_(std::move(head_VD)) {
    for (auto& [name, tensor] : parameters_) tensor.requires_grad_();
  }

  [[nodiscard]] StudentOutput forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const StudentForwardOptions& options,
                                      nn::DecodeState* state) override {
    MixerWeights weights;
    for (const auto& [name, tensor] : parameters_) weights.push_back(tensor);
    auto* own = dynamic_cast<StudentState*>(state);
    MixerState* carried = own ? own->blocks()[0].get() : nullptr;
    StudentOutput out;
    out.final_hidden_BSD = mixer_.forward(weights, at::embedding(embedding_VD_, tokens_BS), {is_start_BS, options.compute_dtype}, carried);
    if (own) {
      StudentState::settle(*carried);
      own->advance(tokens_BS.size(1));
    }
    if (options.collect_layers) out.layer_outputs_BSD = {out.final_hidden_BSD};
    out.last_hidden_BSD = out.final_hidden_BSD;
    return out;
  }
  [[nodiscard]] Tensor forward_hidden(const Tensor& tokens_BS, const Tensor& is_start_BS) override {
    const at::NoGradGuard no_grad;
    return forward(tokens_BS, is_start_BS, {}, nullptr).last_hidden_BSD;
  }
  [[nodiscard]] std::unique_ptr<nn::DecodeState> new_state(int64_t batch, int64_t) override {
    std::vector<std::unique_ptr<MixerState>> blocks;
    blocks.push_back(mixer_.zero_state(batch, at::kFloat, embedding_VD_.options().dtype(at::kFloat)));
    return std::make_unique<StudentState>(std::move(blocks), batch);
  }
  [[nodiscard]] Tensor forward_step(const Tensor& tokens_BS, nn::DecodeState& state) override {
    const at::NoGradGuard no_grad;
    return forward(tokens_BS, {}, {}, &state).last_hidden_BSD;
  }
  [[nodiscard]] Tensor logits(const Tensor& hidden) override { return at::linear(hidden, head_VD_.to(at::kFloat)); }
  [[nodiscard]] const Tensor& head_weight() const override { return head_VD_; }
  [[nodiscard]] const Tensor& embedding_weight() const override { return embedding_VD_; }
  [[nodiscard]] int64_t vocab_size() const override { return shape_.vocab_size(); }
  [[nodiscard]] int64_t hidden_size() const override { return shape_.hidden_size(); }
  [[nodiscard]] at::Device device() const override { return at::kCPU; }
  [[nodiscard]] std::string description() const override { return shape_.description(); }
  [[nodiscard]] std::string precision() const override { return "fp32"; }
  void for_each_weight(const nn::TensorVisitor& visit, std::string_view prefix) const override {
    for (const auto& [name, tensor] : parameters_) {
      if (std::string_view(name).starts_with(prefix)) visit(name, tensor);
    }
  }
  Tensor forward_shown(const Tensor& tokens_BS, const Tensor& is_start_BS, const nn::TensorVisitor& visit) override {
    const Tensor hidden = forward_hidden(tokens_BS, is_start_BS);
    visit("decay", hidden);
    return hidden;
  }
  [[nodiscard]] const StudentShape& shape() const override { return shape_; }
  [[nodiscard]] const NamedTensors& parameters() const override { return parameters_; }
  [[nodiscard]] std::vector<ParameterTraits> parameter_traits() const override {
    std::vector<ParameterTraits> traits;
    for (const ParameterSpec& spec : mixer_.parameters()) traits.push_back({spec.group, spec.decays});
    return traits;
  }
  [[nodiscard]] std::unique_ptr<Student> replica() const override {
    NamedTensors leaves;
    for (const auto& [name, tensor] : parameters_) leaves.emplace_back(name, tensor.detach());
    return std::make_unique<DecayStudent>(shape_, std::move(leaves), embedding_VD_, head_VD_);
  }
  void set_compute_dtype(at::ScalarType) override {}
  [[nodiscard]] NamedTensors stored_tensors(std::string_view, bool with_frozen) const override {
    NamedTensors out;
    for (const auto& [name, tensor] : parameters_) out.emplace_back(name, tensor.detach().clone());
    if (with_frozen) out.emplace_back("token_embedding.weight", embedding_VD_);
    if (with_frozen) out.emplace_back("lm_head.weight", head_VD_);
    return out;
  }

 private:
  DecayShape shape_;
  DecayMixer mixer_;
  NamedTensors parameters_;
  Tensor embedding_VD_, head_VD_;
};

inline std::unique_ptr<Student> DecayShape::fresh(const StudentPlace& place, uint64_t seed) const {
  NamedTensors parameters;
  const DecayMixer owner = mixer();
  for (const ParameterSpec& spec : owner.parameters()) {
    Random random(seed, parameters.size());
    const Tensor values = at::empty(spec.shape, at::kDouble);
    spec.initialize(random, {values.data_ptr<double>(), static_cast<size_t>(spec.num_elements())});
    parameters.emplace_back(spec.name, values.to(at::kFloat));
  }
  return std::make_unique<DecayStudent>(*this, std::move(parameters), place.embedding_VD, place.head_VD);
}

inline std::unique_ptr<StudentShape> read_decay_shape(const json& config, const std::string& where) {
  return std::make_unique<DecayShape>(require<int64_t>(config, "width", where), require<int64_t>(config, "vocabulary", where));
}

inline std::unique_ptr<Student> load_decay_student(const io::ModelFiles& files, const StudentPlace& place) {
  const auto read = [&](const std::string& name) {
    const io::TensorView view = files.weights->view(name);
    const Tensor values = at::empty(view.shape, at::kFloat);
    files.weights->read_float(name, 0, view.num_elements(), values.data_ptr<float>());
    return values;
  };
  const auto shape = read_decay_shape(files.config, "config.json");
  const auto& decay = dynamic_cast<const DecayShape&>(*shape);
  NamedTensors parameters;
  const DecayMixer owner = decay.mixer();
  for (const ParameterSpec& spec : owner.parameters()) parameters.emplace_back(spec.name, read(spec.name));
  const Tensor embedding = place.embedding_VD.defined() ? place.embedding_VD : read("token_embedding.weight");
  return std::make_unique<DecayStudent>(decay, std::move(parameters), embedding,
                                        place.head_VD.defined() ? place.head_VD : read("lm_head.weight"));
}

// Once a process.
inline void add_decay_student() {
  static const bool is_added = [] {
    add_student_kind("decay", {.derive = [](const config::StudentSettings&, const teacher::TeacherShape& teacher,
                                            int64_t) { return std::make_unique<DecayShape>(teacher.hidden_size, teacher.vocab_size); },
                               .read = read_decay_shape,
                               .load = load_decay_student});
    return true;
  }();
  static_cast<void>(is_added);
}

}  // namespace distil_xlstm::student
