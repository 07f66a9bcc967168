#include "student/paper/mixers.h"

#include <fmt/format.h>

#include <map>

#include "base/error.h"
#include "config/names.h"
#include "student/paper/mlstm.h"
#include "student/paper/slstm.h"

namespace distil_xlstm::student {
namespace {

std::map<std::string, MakeMixer>& kinds() {
  static std::map<std::string, MakeMixer> all = {{"slstm", make_slstm}, {"mlstm", make_mlstm}};
  return all;
}

}  // namespace

void add_mixer_kind(const std::string& name, MakeMixer make) {
  if (!kinds().emplace(name, std::move(make)).second) throw ValueError("mixer '{}': there is one of this name", name);
}

std::vector<std::shared_ptr<const Mixer>> make_mixers(const StudentConfig& config) {
  std::vector<std::shared_ptr<const Mixer>> mixers;
  for (int64_t block = 0; block < config.num_blocks; ++block) {
    const std::string kind = config.mixer_at(block);
    const auto make = kinds().find(kind);
    if (make == kinds().end()) {
      std::vector<std::string> names;
      for (const auto& [name, ignored] : kinds()) names.push_back(name);
      throw config::unknown_name(kind, names, fmt::format("student: the mixer of block {}", block));
    }
    mixers.push_back(make->second(config, block));
  }
  return mixers;
}

std::string block_prefix(int64_t block) {
  return fmt::format("xlstm_block_stack.blocks.{}.", block);
}

std::vector<ParameterSpec> parameter_specs(const StudentConfig& config) {
  std::vector<ParameterSpec> specs;
  const auto mixers = make_mixers(config);
  for (size_t block = 0; block < mixers.size(); ++block) {
    for (ParameterSpec spec : mixers[block]->parameters()) {
      spec.name = block_prefix(static_cast<int64_t>(block)) + spec.name;
      specs.push_back(std::move(spec));
    }
  }
  if (config.add_post_blocks_norm) {
    specs.push_back({.name = "xlstm_block_stack.post_blocks_norm.weight",
                     .shape = {config.embedding_dim},
                     .initialize = constant(0.0),
                     .group = "norm",
                     .product_type = {}});
  }
  return specs;
}

int64_t num_trainable_parameters(const StudentConfig& config) {
  int64_t count = 0;
  for (const auto& spec : parameter_specs(config)) count += spec.num_elements();
  return count;
}

}  // namespace distil_xlstm::student
