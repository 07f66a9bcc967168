// distil-xlstm completion: scripts for bash, zsh and fish, made from the commands themselves.
#include <iostream>
#include <set>

#include "base/text.h"
#include "cli/commands.h"

namespace distil_xlstm::cli {
namespace {

const std::vector<std::string> kShells = {"bash", "zsh", "fish"};

std::vector<std::string> option_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  }
  names.emplace_back("--log-level");
  return names;
}

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App* command) { return !command->get_name().empty(); });
}

void print_bash(const CLI::App& app, bool is_zsh) {
  if (is_zsh) std::cout << "autoload -U +X bashcompinit && bashcompinit\n";
  std::cout << "_distil_xlstm() {\n  local word=${COMP_WORDS[COMP_CWORD]} words\n  case ${COMP_WORDS[1]} in\n";
  std::vector<std::string> names;
  for (const CLI::App* command : commands_of(app)) {
    names.push_back(command->get_name());
    const auto& words = command->get_name() == "completion" ? kShells : option_names(*command);
    std::cout << "    " << command->get_name() << ") words='" << join(words, " ") << "' ;;\n";
  }
  std::cout
      << "    *) words='" << join(names, " ") << " --help --version --log-level' ;;\n  esac\n"
      << "  if [[ $COMP_CWORD -gt 1 && $word != -* && ${COMP_WORDS[1]} != completion ]]; then COMPREPLY=($(compgen -f -- \"$word\"))\n"
      << "  else COMPREPLY=($(compgen -W \"$words\" -- \"$word\")); fi\n}\n"
      << "complete -o filenames -F _distil_xlstm distil-xlstm\n";
}

void print_fish(const CLI::App& app) {
  const auto quoted = [](const std::string& text) {
    std::string escaped;
    for (const char c : text) escaped += c == '\'' ? std::string("\\'") : std::string(1, c);
    return "'" + escaped + "'";
  };
  for (const CLI::App* command : commands_of(app)) {
    std::cout << "complete -c distil-xlstm -n __fish_use_subcommand -f -a " << command->get_name() << " -d "
              << quoted(command->get_description()) << "\n";
    if (command->get_name() == "completion") {
      std::cout << "complete -c distil-xlstm -n '__fish_seen_subcommand_from completion' -f -a '" << join(kShells, " ") << "'\n";
    }
    for (const CLI::Option* option : command->get_options()) {
      for (const auto& name : option->get_lnames()) {
        std::cout << "complete -c distil-xlstm -n '__fish_seen_subcommand_from " << command->get_name() << "' -l " << name << " -d "
                  << quoted(option->get_description()) << "\n";
      }
    }
  }
}

}  // namespace

void add_completion_command(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "Print a shell completion script: source <(distil-xlstm completion bash)");
  command->add_option("SHELL", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember(kShells));
  command->callback([&app, shell] {
    if (*shell == "fish") {
      print_fish(app);
    } else {
      print_bash(app, *shell == "zsh");
    }
  });
}

}  // namespace distil_xlstm::cli
