// One table of every setting: its key, option, type, range, meaning, whether a resumed run may change it. Reading, checking, printing,
// --help and the reference page all come from it, so a new setting is one line of settings.cpp and one member in run_config.h.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "config/run_config.h"

namespace distil_xlstm::config {

// Whether a run that goes on from a checkpoint may have another value: what must stay is part of what is computed; some of that may change
// where the run ended with status "failed", as it can make the run's steps finite.
enum class OnResume { must_stay, may_change, may_change_after_failure };

struct Setting {
  std::string key;                 // "train.micro_batch_size", as in a run file
  std::string option;              // "--micro-batch-size"; "" where only --set reaches it
  std::string values;              // what is allowed, as people read it: "an integer >= 1"
  std::string help;                // one line
  std::vector<std::string> names;  // those that are allowed, or of a registry the program's own; empty: no names
  bool takes_text = false;         // any text is a value, so "--output 7" means the text "7"
  OnResume on_resume = OnResume::must_stay;
  std::function<json(const RunConfig&)> get;
  std::function<std::string(RunConfig&, const json&)> set;  // returns what is wrong with the value, or ""

  [[nodiscard]] std::string section() const;  // "train"; "" for keys at the top
  [[nodiscard]] bool may_change(bool has_failed) const;
};

// In the order of the run file.
const std::vector<Setting>& all_settings();

// nullptr when there is none of that key.
const Setting* find_setting(std::string_view key);

// The groups that also take one value: "distill.alpha", "distill.temperature", "distill.beta" (a number is a constant schedule).
bool is_schedule(std::string_view key);

// A value as TOML: "text", 0.5, [1, 2], { path = "x", weight = 1.0 }.
std::string toml_value(const json& value);

// docs/reference: every key with its option, allowed values, default and meaning, as Markdown.
std::string settings_reference();

}  // namespace distil_xlstm::config
