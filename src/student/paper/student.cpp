#include "student/paper/student.h"

#include <spdlog/spdlog.h>

#include "base/error.h"
#include "base/text.h"
#include "ops/norm.h"
#include "student/paper/mixers.h"
#include "student/paper/shape.h"
#include "student/paper/stored.h"

namespace distil_xlstm::student {

namespace {

BlockParts parts_of(const StudentConfig& config, NamedTensors parameters, Tensor embedding_VD, Tensor head_VD) {
  return {.mixers = make_mixers(config),
          .specs = parameter_specs(config),
          .parameters = std::move(parameters),
          .embedding_VD = std::move(embedding_VD),
          .head_VD = std::move(head_VD),
          .is_tied = config.tie_weights,
          .embedding = "token_embedding",
          .block_prefix = "xlstm_block_stack.blocks.",
          .last_norm = "xlstm_block_stack.post_blocks_norm"};
}

class XlstmStudent final : public PaperStudent {
 public:
  XlstmStudent(const StudentConfig& config, BlockParts parts) : PaperStudent(std::move(parts)), shape_(config) {}

  [[nodiscard]] const StudentConfig& config() const override { return shape_.config(); }
  [[nodiscard]] const StudentShape& shape() const override { return shape_; }
  [[nodiscard]] std::string description() const override {
    return fmt::format("xLSTM, {} blocks (sLSTM at [{}]), {} trainable parameters", config().num_blocks, fmt::join(config().slstm_at, ", "),
                       format_parameters(static_cast<double>(num_trainable_parameters(config()))));
  }

  [[nodiscard]] NamedTensors stored_tensors(SlstmLayout layout, bool with_frozen) const override {
    NamedTensors out;
    for (size_t i = 0; i < parts().specs.size(); ++i)
      out.emplace_back(parts().specs[i].name, to_stored(parameters()[i].second, parts().specs[i].role, layout));
    if (with_frozen) add_frozen(out);
    return out;
  }

 protected:
  [[nodiscard]] std::pair<Tensor, Tensor> last_states(const Tensor& x_BSD, const Tensor& weight_D) const override {
    if (!weight_D.defined()) return {x_BSD, x_BSD};
    auto [final_hidden_BSD, last_hidden_BSD] = ops::add_norm(x_BSD, {}, weight_D);
    return {std::move(final_hidden_BSD), std::move(last_hidden_BSD)};
  }
  [[nodiscard]] std::unique_ptr<BlockStudent> with_parameters(BlockParts parts) const override {
    return std::make_unique<XlstmStudent>(config(), std::move(parts));
  }

 private:
  PaperShape shape_;
};

std::unique_ptr<PaperStudent> assemble(const StudentConfig& config, NamedTensors parameters, const Tensor& embedding, const Tensor& head,
                                       at::Device device) {
  const Tensor embedding_VD = embedding.detach().to(device);
  const Tensor head_VD = config.tie_weights || head.is_same(embedding) ? embedding_VD : head.detach().to(device);
  return std::make_unique<XlstmStudent>(config, parts_of(config, std::move(parameters), embedding_VD, head_VD));
}

}  // namespace

std::unique_ptr<PaperStudent> PaperStudent::create(const StudentConfig& config, const Tensor& embedding_VD, Tensor head_VD, uint64_t seed,
                                                   at::Device device, at::ScalarType parameter_dtype) {
  config.check();
  check_parameter_dtype(parameter_dtype);
  if (config.tie_weights && !head_VD.defined()) head_VD = embedding_VD;
  check_frozen("embedding", embedding_VD, config.vocab_size, config.embedding_dim);
  check_frozen("head", head_VD, config.vocab_size, config.embedding_dim);
  return assemble(config, draw_parameters(parameter_specs(config), seed, device, parameter_dtype), embedding_VD, head_VD, device);
}

std::unique_ptr<PaperStudent> PaperStudent::load(const io::ModelFiles& files, at::Device device, at::ScalarType parameter_dtype,
                                                 Tensor embedding_VD, Tensor head_VD) {
  check_parameter_dtype(parameter_dtype);
  StudentConfig config = StudentConfig::from_json(files.config, files.path.string() + " (configuration)");
  const bool needs_frozen = !embedding_VD.defined() || (!config.tie_weights && !head_VD.defined());
  LoadedTensors loaded = load_tensors(config, files.weights, device, parameter_dtype, needs_frozen);
  if (loaded.has_own_head && !embedding_VD.defined()) {
    spdlog::warn("{}: config.json says tie_weights = true, but 'lm_head.weight' differs from the embedding: the stored head is used",
                 files.path.string());
    config.tie_weights = false;
    if (!head_VD.defined()) head_VD = loaded.head_VD;
  }
  if (!embedding_VD.defined()) embedding_VD = loaded.embedding_VD;
  if (!head_VD.defined()) head_VD = config.tie_weights ? embedding_VD : loaded.head_VD;
  check_frozen("embedding", embedding_VD, config.vocab_size, config.embedding_dim);
  check_frozen("head", head_VD, config.vocab_size, config.embedding_dim);
  return assemble(config, std::move(loaded.parameters), embedding_VD, head_VD, device);
}

SlstmLayout parse_slstm_layout(std::string_view name) {
  return name.empty() ? SlstmLayout::cuda : config::parse_name<SlstmLayout>(name, "student.slstm_layout");
}

}  // namespace distil_xlstm::student
