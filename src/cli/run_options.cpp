#include "cli/run_options.h"

#include "base/text.h"
#include "config/presets.h"

namespace distil_xlstm::cli {

void RunOptions::add_to(CLI::App& app) {
  app.add_option("-c,--config", file, "Run file (TOML); docs/reference/settings.md lists every key")->check(CLI::ExistingFile);
  app.add_option("--preset", preset, "Settings to start from: " + join(config::preset_names(), ", "));
  app.add_option("--set", sets_, "One setting, KEY=VALUE; may be repeated")->take_all()->allow_extra_args(false);
  const auto add = [&](const std::string& option, const std::string& key, const std::string& help, const std::string& group) {
    const auto keep = [this, key, option](const std::string& text) { options_.push_back({key, text, option}); };
    app.add_option_function<std::string>(option, keep, help)->group(group)->type_name("");
  };
  const config::RunConfig defaults;
  for (const auto& setting : config::all_settings()) {
    if (setting.option.empty()) continue;
    const auto section = setting.section();
    const auto value = setting.get(defaults);
    const auto shown = value.is_string() && value.get<std::string>().empty() ? "" : " [" + config::toml_value(value) + "]";
    add(setting.option, setting.key, setting.help + shown, section.empty() ? "Settings" : "Settings of [" + section + "]");
  }
  for (const char* name : {"alpha", "temperature", "beta"}) {
    add(fmt::format("--{}", name), fmt::format("distill.{}", name),
        "a constant, or { schedule = \"...\", start = A, final = B, decay = D }", "Settings of [distill]");
  }
}

std::vector<config::Override> RunOptions::overrides() const {
  std::vector<config::Override> all;
  for (const auto& text : sets_) all.push_back(config::parse_override(text));
  all.insert(all.end(), options_.begin(), options_.end());
  return all;
}

config::LoadedConfig RunOptions::load() const {
  config::ConfigRequest request{.file = std::nullopt, .preset = preset, .overrides = overrides()};
  if (!file.empty()) request.file = file;
  return config::load_config(request);
}

}  // namespace distil_xlstm::cli
