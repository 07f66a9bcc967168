// --config, --preset, --set, and one option a setting: what `distill` and `plan` share.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "config/toml.h"

namespace distil_xlstm::cli {

class RunOptions {
 public:
  // The object must outlive the parsing.
  void add_to(CLI::App& app);
  [[nodiscard]] config::LoadedConfig load() const;

  std::string file, preset;
  std::vector<config::Override> overrides() const;  // --set first, then options, each in the order given

 private:
  std::vector<std::string> sets_;
  std::vector<config::Override> options_;
};

}  // namespace distil_xlstm::cli
