#include "student/parameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace distil_xlstm::student {
namespace {

using Initializer = std::function<void(Random&, std::span<double>)>;
using Shape = std::vector<int64_t>;

Initializer constant(double value) {
  return [value](Random&, std::span<double> out) { std::fill(out.begin(), out.end(), value); };
}

Initializer normal(double standard_deviation) {
  return [standard_deviation](Random& random, std::span<double> out) {
    for (double& value : out) value = standard_deviation * random.normal();
  };
}

Initializer uniform(double bound) {
  return [bound](Random& random, std::span<double> out) {
    for (double& value : out) value = bound * (2.0 * random.uniform() - 1.0);
  };
}

double linspace_at(double first, double last, int64_t index, int64_t count) {
  return count == 1 ? first : first + (last - first) * static_cast<double>(index) / static_cast<double>(count - 1);
}

Initializer linspace(double first, double last) {
  return [first, last](Random&, std::span<double> out) {
    const auto count = static_cast<int64_t>(out.size());
    for (int64_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = linspace_at(first, last, i, count);
  };
}

// std of "small" and "wang" (docs/mathematics.md 1).
double small_std(int64_t width) {
  return std::sqrt(2.0 / (5.0 * static_cast<double>(width)));
}
double wang_std(int64_t width, int64_t num_blocks) {
  return 2.0 / (static_cast<double>(num_blocks) * std::sqrt(static_cast<double>(width)));
}

// Bias of the sLSTM cell (docs/mathematics.md 2), [H, 4, K]: only the forget gate's differs from zero, except in "standard".
Initializer slstm_bias(const StudentConfig& config, int64_t block) {
  if (config.bias_init == "standard") return uniform(1.0 / std::sqrt(static_cast<double>(config.embedding_dim)));
  if (config.bias_init == "zeros") return constant(0.0);
  const int64_t num_heads = config.slstm_num_heads;
  const int64_t head_dim = config.embedding_dim / num_heads;
  const bool is_powerlaw = config.bias_init == "powerlaw_blockdependent";
  const double depth = config.num_blocks > 1 ? static_cast<double>(block) / static_cast<double>(config.num_blocks - 1) : 0.0;
  return [=](Random&, std::span<double> out) {
    std::fill(out.begin(), out.end(), 0.0);
    for (int64_t h = 0; h < num_heads; ++h) {
      for (int64_t d = 0; d < head_dim; ++d) {
        const double powerlaw = 5.0 - 12.0 * std::pow(linspace_at(0.0, 1.0, d, head_dim), 0.3 + 1.3 * depth);
        out[static_cast<size_t>((h * 4 + 1) * head_dim + d)] = is_powerlaw ? powerlaw : linspace_at(3.0, 6.0, d, head_dim);
      }
    }
  };
}

// Collects the specs of one block under its prefix.
class BlockSpecs {
 public:
  BlockSpecs(std::vector<ParameterSpec>& out, const StudentConfig& config, int64_t block)
      : out_(out), config_(config), block_(block), width_(config.embedding_dim) {}

  void add_slstm() {
    const int64_t heads = config_.slstm_num_heads;
    const int64_t head_dim = width_ / heads;
    add("xlstm_norm.weight", {width_}, constant(0.0));
    if (config_.slstm_conv1d_kernel_size > 0) add_convolution(width_, config_.slstm_conv1d_kernel_size);
    for (const char* gate : {"fgate", "igate", "zgate", "ogate"})
      add(fmt::format("xlstm.{}.weight", gate), {heads, head_dim, head_dim}, normal(small_std(width_)));
    const Initializer recurrent =
        config_.recurrent_weight_init == "standard" ? uniform(1.0 / std::sqrt(static_cast<double>(width_))) : constant(0.0);
    add("xlstm.slstm_cell._recurrent_kernel_", {heads, head_dim, 4, head_dim}, recurrent, ParameterRole::slstm_recurrent);
    add("xlstm.slstm_cell._bias_", {heads, 4, head_dim}, slstm_bias(config_, block_), ParameterRole::slstm_bias);
    if (config_.group_norm_weight) add("xlstm.group_norm.weight", {width_}, constant(0.0));
    if (config_.has_ffn) add_feed_forward();
  }

  void add_mlstm() {
    const int64_t inner = config_.mlstm_inner_dim();
    const int64_t heads = config_.mlstm_num_heads;
    const int64_t block_size = config_.qkv_proj_blocksize;
    add("xlstm_norm.weight", {width_}, constant(0.0));
    add("xlstm.learnable_skip", {inner}, constant(1.0));
    add_linear("xlstm.proj_up", {2 * inner, width_}, small_std(width_), config_.bias);
    for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
      add(fmt::format("xlstm.{}.weight", name), {inner / block_size, block_size, block_size}, normal(small_std(width_)));
      if (config_.bias) add(fmt::format("xlstm.{}.bias", name), {inner}, constant(0.0));
    }
    add_convolution(inner, config_.mlstm_conv1d_kernel_size);
    add("xlstm.mlstm_cell.igate.weight", {heads, 3 * inner}, constant(0.0));
    add("xlstm.mlstm_cell.igate.bias", {heads}, normal(0.1));
    add("xlstm.mlstm_cell.fgate.weight", {heads, 3 * inner}, constant(0.0));
    add("xlstm.mlstm_cell.fgate.bias", {heads}, linspace(3.0, 6.0));
    add("xlstm.mlstm_cell.outnorm.weight", {inner}, constant(0.0));
    add_linear("xlstm.proj_down", {width_, inner}, wang_std(width_, config_.num_blocks), config_.bias);
  }

 private:
  void add(const std::string& suffix, Shape shape, Initializer initialize, ParameterRole role = ParameterRole::plain) {
    out_.push_back({block_prefix(block_) + suffix, std::move(shape), std::move(initialize), role});
  }

  void add_linear(const std::string& name, const Shape& shape, double standard_deviation, bool has_bias) {
    add(name + ".weight", shape, normal(standard_deviation));
    if (has_bias) add(name + ".bias", {shape[0]}, constant(0.0));
  }

  void add_convolution(int64_t features, int64_t kernel_size) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(kernel_size));
    add("xlstm.conv1d.conv.weight", {features, 1, kernel_size}, uniform(bound));
    add("xlstm.conv1d.conv.bias", {features}, uniform(bound));
  }

  void add_feed_forward() {
    const int64_t inner = config_.ffn_dim();
    add("ffn_norm.weight", {width_}, constant(0.0));
    add_linear("ffn.proj_up", {2 * inner, width_}, small_std(width_), config_.ffn_bias);
    add_linear("ffn.proj_down", {width_, inner}, wang_std(width_, config_.num_blocks), config_.ffn_bias);
  }

  std::vector<ParameterSpec>& out_;
  const StudentConfig& config_;
  int64_t block_;
  int64_t width_;
};

}  // namespace

int64_t ParameterSpec::num_elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

std::string block_prefix(int64_t block) {
  return fmt::format("xlstm_block_stack.blocks.{}.", block);
}

std::vector<ParameterSpec> parameter_specs(const StudentConfig& config) {
  std::vector<ParameterSpec> specs;
  for (int64_t block = 0; block < config.num_blocks; ++block) {
    BlockSpecs block_specs(specs, config, block);
    config.is_slstm(block) ? block_specs.add_slstm() : block_specs.add_mlstm();
  }
  if (config.add_post_blocks_norm)
    specs.push_back({"xlstm_block_stack.post_blocks_norm.weight", {config.embedding_dim}, constant(0.0), ParameterRole::plain});
  return specs;
}

}  // namespace distil_xlstm::student
