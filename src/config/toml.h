// Run files: reading into RunConfig with every problem reported at once, the command line on top, printing and saving.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "config/run_config.h"
#include "config/settings.h"

namespace distil_xlstm::config {

// One setting from the command line; `text` as in TOML, quotes around text may be left out.
struct Override {
  std::string key;     // "train.max_steps"
  std::string text;    // "100"
  std::string origin;  // for messages and printing: "--set", "--max-steps"
};

// What a run is made from; later ones win: defaults, preset, file, overrides.
struct ConfigRequest {
  std::optional<fs::path> file;
  std::string preset;  // "" = what the file's `preset` says
  std::vector<Override> overrides;
};

struct LoadedConfig {
  RunConfig run;
  std::map<std::string, std::string> sources;  // key -> "preset paper", "run.toml:14", "--set"; defaults are absent
};

// "a.b=c" of --set. Throws ConfigError.
Override parse_override(const std::string& text);

// Throws one ConfigError with all problems, a line each: `run.toml:14: train.precision = "fp8": must be ...`.
LoadedConfig load_config(const ConfigRequest& request);

// The same from text; `name` stands for the file in messages.
LoadedConfig load_config_text(const std::string& text, const std::string& name, const std::vector<Override>& overrides = {});

// Any other TOML text as nested JSON; `name` stands for the file. Throws ConfigError with file and line for what is no TOML, or a date.
json parse_toml_tree(const std::string& text, const std::string& name);

// All settings as a run file that reads back to the same RunConfig.
std::string to_toml(const RunConfig& config);

// All settings with where each comes from, a line each.
std::string describe(const LoadedConfig& config);

// All settings as nested JSON.
json to_json(const RunConfig& config);

}  // namespace distil_xlstm::config
