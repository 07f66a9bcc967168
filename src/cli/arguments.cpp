#include "cli/arguments.h"

#include <cctype>

#include "base/error.h"
#include "base/text.h"

namespace distil_xlstm::cli {
namespace {

bool is_long(const std::string& word) {
  return word.size() > 2 && word.starts_with("--");
}

bool is_option(const std::string& word) {
  return is_long(word) || (word.size() > 1 && word[0] == '-' && std::isalpha(static_cast<unsigned char>(word[1])) != 0);
}

const CLI::App* find_command(const CLI::App& app, const std::string& name) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (command->get_name() == name) return command;
    names.push_back(command->get_name());
  }
  throw ConfigError("unknown command '{}'{}\nRun with --help for the commands.", name, did_you_mean(name, names));
}

[[noreturn]] void throw_unknown(const CLI::App& app, const CLI::App* command, const std::string& name) {
  std::vector<std::string> names;
  for (const CLI::App* level : {command, &app}) {
    if (level == nullptr) continue;
    for (const CLI::Option* option : level->get_options()) {
      for (const auto& known : option->get_lnames()) names.push_back("--" + known);
    }
  }
  throw ConfigError("unknown option '{}'{}\nRun with --help for the options.", name, is_long(name) ? did_you_mean(name, names) : "");
}

}  // namespace

std::vector<std::string> arrange_arguments(const CLI::App& app, const std::vector<std::string>& words) {
  std::vector<std::string> own, rest;
  const CLI::App* command = nullptr;
  for (size_t at = 0; at < words.size();) {
    const std::string& word = words[at];
    if (word == "--") {
      rest.insert(rest.end(), words.begin() + static_cast<std::ptrdiff_t>(at), words.end());
      break;
    }
    if (!is_option(word)) {
      if (command == nullptr) command = find_command(app, word);
      rest.push_back(words[at++]);
      continue;
    }
    const std::string name = is_long(word) ? word.substr(0, word.find('=')) : word.substr(0, 2);
    const CLI::Option* option = command == nullptr ? nullptr : command->get_option_no_throw(name);
    auto& target = option == nullptr ? own : rest;
    if (option == nullptr) option = app.get_option_no_throw(name);
    if (option == nullptr) throw_unknown(app, command, name);
    // Values that the option is sure to take, whatever they look like.
    const bool has_value = is_long(word) ? word.size() > name.size() : word.size() > 2;
    const size_t num_words = 1 + (has_value ? 0 : static_cast<size_t>(option->get_items_expected_min()));
    for (size_t i = 0; i < num_words && at < words.size(); ++i) target.push_back(words[at++]);
  }
  own.insert(own.end(), rest.begin(), rest.end());
  return own;
}

}  // namespace distil_xlstm::cli
