// Builds the table of settings: a kind of value each function, one call a setting.
#pragma once

#include <algorithm>
#include <utility>
#include <variant>

#include "base/text.h"
#include "config/names.h"
#include "config/setting_values.h"
#include "config/settings.h"

namespace distil_xlstm::config {

// `member` is a generic lambda from a RunConfig to a reference to its member. An option of "" is the key's last word with dashes, "-" none.
// What is returned stands until the next call.
class TableBuilder {
 public:
  template <typename Member>
  Setting& text(const std::string& key, Member member, const std::string& help, const std::string& option = "") {
    Setting& setting = add(key, option, "text", help, member, [](auto& out, const json& value) { return read_text(out, value, "text"); });
    setting.takes_text = true;
    return setting;
  }
  // Text of a registry, which refuses what it does not know: `names` are the program's own.
  template <typename Member>
  Setting& registered(const std::string& key, Member member, const Names& names, const std::string& help, const std::string& option = "") {
    const std::string allowed = quoted_list(names);
    Setting& setting =
        add(key, option, allowed, help, member, [=](auto& out, const json& value) { return read_text(out, value, allowed); });
    setting.names = names;
    setting.takes_text = true;
    return setting;
  }
  // One of `names`, kept as text.
  template <typename Member>
  Setting& one_of(const std::string& key, Member member, const Names& names, const std::string& help, const std::string& option = "") {
    const std::string allowed = quoted_list(names);
    Setting& setting =
        add(key, option, allowed, help, member, [=](auto& out, const json& value) { return read_name(out, value, names, allowed); });
    setting.names = names;
    return setting;
  }
  // A value of an enum that has names.
  template <typename Member>
  Setting& choice(const std::string& key, Member member, const std::string& help, const std::string& option = "") {
    using E = MemberType<Member>;
    const std::string allowed = quoted_list(names_of<E>());
    Setting& setting = add(key, option, allowed, help, member, [=](E& out, const json& value) { return read_choice(out, value, allowed); });
    setting.names = names_of<E>();
    return setting;
  }
  template <typename Member>
  Setting& integer(const std::string& key, Member member, const Range& range, const std::string& help, const std::string& option = "") {
    const std::string allowed = "an integer " + range.text();
    return add(key, option, allowed, help, member, [=](auto& out, const json& value) {
      int64_t number = 0;
      auto problem = read_integer(number, value, range, allowed);
      if (problem.empty()) out = static_cast<std::decay_t<decltype(out)>>(number);
      return problem;
    });
  }
  template <typename Member>
  Setting& number(const std::string& key, Member member, const Range& range, const std::string& help, const std::string& option = "") {
    const std::string bounds = range.text();
    const std::string allowed = bounds.empty() ? "a number" : "a number " + bounds;
    return add(key, option, allowed, help, member, [=](double& out, const json& value) { return read_number(out, value, range, allowed); });
  }
  template <typename Member>
  Setting& flag(const std::string& key, Member member, const std::string& help, const std::string& option = "") {
    return add(key, option, "true or false", help, member, read_flag);
  }
  // A variant of an enum and a count >= 1.
  template <typename Member>
  Setting& choice_or_count(const std::string& key, Member member, const std::string& help) {
    using E = std::variant_alternative_t<0, MemberType<Member>>;
    const std::string allowed = quoted_list(names_of<E>()) + ", or an integer >= 1";
    return add(key, "", allowed, help, member, [=](auto& out, const json& value) {
      if (is_count(value)) return into(out, int64_t{}, [&](int64_t& count) { return read_integer(count, value, kAtLeastOne, allowed); });
      return into(out, E{}, [&](E& rule) { return read_choice(rule, value, allowed); });
    });
  }
  // A variant of an enum and blocks' indices.
  template <typename Member>
  Setting& choice_or_blocks(const std::string& key, Member member, const std::string& help) {
    using E = std::variant_alternative_t<0, MemberType<Member>>;
    std::string allowed;
    for (const auto& name : names_of<E>()) allowed += fmt::format("\"{}\", ", name);
    allowed += "or a list of block indices";
    return add(key, "", allowed, help, member, [=](auto& out, const json& value) {
      if (!value.is_string()) return into(out, std::vector<int64_t>{}, [&](auto& blocks) { return read_indices(blocks, value, allowed); });
      return into(out, E{}, [&](E& rule) { return read_choice(rule, value, allowed); });
    });
  }
  // Any other type that to_json knows; `read` as those of config/setting_values.h.
  template <typename Member, typename Read>
  Setting& custom(const std::string& key, Member member, const std::string& allowed, const std::string& help, const std::string& option,
                  Read read) {
    return add(key, option, allowed, help, member, read);
  }

  std::vector<Setting> settings;

 private:
  template <typename Member>
  using MemberType = std::decay_t<std::invoke_result_t<Member, RunConfig&>>;

  template <Named E>
  static std::string read_choice(E& out, const json& value, const std::string& allowed) {
    std::string name;
    auto problem = read_name(name, value, names_of<E>(), allowed);
    if (problem.empty()) out = parse_name<E>(name, "");
    return problem;
  }
  template <typename Variant, typename T, typename Read>
  static std::string into(Variant& out, T value, Read read) {
    auto problem = read(value);
    if (problem.empty()) out = std::move(value);
    return problem;
  }

  template <Named E>
  static json to_json(const E& value) {
    return std::string(name_of(value));
  }
  template <typename... T>
  static json to_json(const std::variant<T...>& value) {
    return std::visit([](const auto& held) { return to_json(held); }, value);
  }
  template <typename T>
  static json to_json(const T& value) {
    return json(value);
  }

  template <typename Member, typename Read>
  Setting& add(const std::string& key, const std::string& option, const std::string& allowed, const std::string& help, Member member,
               const Read& read) {
    std::string name = option == "-" ? "" : option;
    if (option.empty()) {
      name = "--" + key.substr(key.rfind('.') + 1);
      std::replace(name.begin(), name.end(), '_', '-');
    }
    settings.push_back({.key = key,
                        .option = name,
                        .values = allowed,
                        .help = help,
                        .get = [member](const RunConfig& config) { return to_json(member(config)); },
                        .set = [member, read](RunConfig& config, const json& value) { return read(member(config), value); }});
    return settings.back();
  }
};

}  // namespace distil_xlstm::config
