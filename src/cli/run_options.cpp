#include "cli/run_options.h"

#include "base/text.h"
#include "config/presets.h"

namespace distil_xlstm::cli {
namespace {

// A placeholder for the help, from what a setting allows.
std::string type_name(const std::string& values) {
  if (values.starts_with("an integer")) return "INT";
  if (values.starts_with("a number")) return "FLOAT";
  if (values.starts_with("true")) return "BOOL";
  if (values.starts_with('"')) return "NAME";
  return values == "text" ? "TEXT" : "VALUE";
}

std::string allowed_text(std::string values) {
  if (values == "text") return "";
  std::erase(values, '"');
  return " (" + values + ")";
}

}  // namespace

void RunOptions::add_to(CLI::App& app) {
  app.add_option("-c,--config", file, "Run file (TOML); docs/reference/settings.md lists every key")->check(CLI::ExistingFile);
  app.add_option("--preset", preset, "Settings to start from: " + join(config::preset_names(), ", "));
  app.add_option("--set", sets_, "One setting, KEY=VALUE; may be repeated")->take_all()->allow_extra_args(false);
  const auto add = [&](const std::string& option, const std::string& key, const std::string& help, const std::string& group) {
    const auto keep = [this, key, option](const std::string& text) { options_.push_back({key, text, option}); };
    return app.add_option_function<std::string>(option, keep, help)->group(group);
  };
  const config::RunConfig defaults;
  for (const auto& setting : config::all_settings()) {
    if (setting.option.empty()) continue;
    const auto section = setting.section();
    auto* option = add(setting.option, setting.key, setting.help + allowed_text(setting.values),
                       section.empty() ? "Settings" : "Settings of [" + section + "]");
    const auto value = setting.get(defaults);
    option->type_name(type_name(setting.values));
    option->default_str(value.is_string() ? value.get<std::string>() : value.empty() ? "" : config::toml_value(value));
  }
  for (const char* name : {"alpha", "temperature", "beta"}) {
    add(fmt::format("--{}", name), fmt::format("distill.{}", name),
        "a constant, or { schedule = \"...\", start = A, final = B, decay = D }", "Settings of [distill]")
        ->type_name("VALUE");
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
