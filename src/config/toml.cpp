#include "config/toml.h"

#include <exception>

#define TOML_MAX_NESTED_VALUES 64  // lists and tables inside each other: what is read is walked by recursion
// Wrong keys such as [@data] reach assertions of the parser, which are undefined behaviour where NDEBUG is set: here they throw.
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(expression) distil_xlstm::check_assertion(static_cast<bool>(expression))
namespace distil_xlstm {
struct FailedAssertion : std::exception {};
constexpr void check_assertion(bool holds) {
  if (!holds) throw FailedAssertion();
}
}  // namespace distil_xlstm
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

#include <algorithm>
#include <array>
#include <limits>

#include "base/text.h"
#include "config/presets.h"

namespace distil_xlstm::config {
namespace {

// A value on its way into the table: key as in the file, and where it was said.
struct Entry {
  std::string key;
  json value;
  std::string where;
  int layer = 0;
};

// What is wrong, by line: the parser gives keys sorted by name.
using Problems = std::multimap<int64_t, std::string>;

// Line of "run.toml:14"; what has none (the command line, rules between keys) comes last.
int64_t line_of(const std::string& where) {
  const auto colon = where.rfind(':');
  const bool has_line =
      colon != std::string::npos && colon + 1 < where.size() && where.find_first_not_of("0123456789", colon + 1) == std::string::npos;
  return has_line ? std::stoll(where.substr(colon + 1)) : std::numeric_limits<int64_t>::max();
}

void report(Problems& problems, const std::string& where, const std::string& text) {
  problems.emplace(line_of(where), fmt::format("{}: {}", where, text));
}

std::optional<json> to_json_value(const toml::node& node) {
  if (auto text = node.as_string()) return json(text->get());
  if (auto number = node.as_integer()) return json(number->get());
  if (auto number = node.as_floating_point()) return json(number->get());
  if (auto flag = node.as_boolean()) return json(flag->get());
  if (auto list = node.as_array()) {
    json items = json::array();
    for (const auto& item : *list) {
      auto value = to_json_value(item);
      if (!value) return std::nullopt;
      items.push_back(*value);
    }
    return items;
  }
  if (auto table = node.as_table()) {
    json object = json::object();
    for (const auto& [name, item] : *table) {
      auto value = to_json_value(item);
      if (!value) return std::nullopt;
      object[std::string(name.str())] = *value;
    }
    return object;
  }
  return std::nullopt;  // dates and times
}

bool is_prefix_of_a_key(const std::string& path) {
  return std::any_of(all_settings().begin(), all_settings().end(),
                     [&](const Setting& setting) { return setting.key.starts_with(path + "."); });
}

// The key meant by an unknown one: a typing mistake, or the right word in the wrong section.
std::string suggest_key(const std::string& key) {
  std::vector<std::string> keys, same_word;
  const auto word = key.substr(key.rfind('.') + 1);
  for (const auto& setting : all_settings()) {
    keys.push_back(setting.key);
    if (setting.key.substr(setting.key.rfind('.') + 1) == word) same_word.push_back("'" + setting.key + "'");
  }
  if (!same_word.empty()) return fmt::format(" (did you mean {}?)", join(same_word, " or "));
  for (const auto& setting : all_settings()) {
    for (auto dot = setting.key.find('.'); dot != std::string::npos; dot = setting.key.find('.', dot + 1))
      keys.push_back(setting.key.substr(0, dot));
  }
  return did_you_mean(key, keys);
}

void collect(const std::string& path, const json& value, const std::string& where, int layer, std::vector<Entry>& entries,
             Problems& problems) {
  if (find_setting(path) != nullptr) {
    entries.push_back({path, value, where, layer});
  } else if (is_schedule(path) && value.is_number()) {
    entries.push_back({path + ".schedule", "constant", where, layer});
    entries.push_back({path + ".start", value, where, layer});
    entries.push_back({path + ".final", value, where, layer});
  } else if (value.is_object() && is_prefix_of_a_key(path)) {
    for (const auto& [name, part] : value.items()) collect(fmt::format("{}.{}", path, name), part, where, layer, entries, problems);
  } else if (is_schedule(path)) {
    report(problems, where,
           fmt::format("{} = {}: must be a number, or {{ schedule, start, final, decay, decay_mode }}", path, toml_value(value)));
  } else if (is_prefix_of_a_key(path)) {
    report(problems, where, fmt::format("{} = {}: must be a table", path, toml_value(value)));
  } else {
    report(problems, where, fmt::format("unknown key '{}'{}", path, suggest_key(path)));
  }
}

// Walks sections down to the keys of the table, so that each entry knows its own line.
void collect_table(const toml::table& table, const std::string& path, const std::string& name, int layer, std::vector<Entry>& entries,
                   Problems& problems) {
  for (const auto& [key, node] : table) {
    const std::string full = path.empty() ? std::string(key.str()) : path + "." + std::string(key.str());
    const std::string where = fmt::format("{}:{}", name, key.source().begin.line);
    if (full == "preset") continue;
    if (node.is_table() && find_setting(full) == nullptr && is_prefix_of_a_key(full)) {
      collect_table(*node.as_table(), full, name, layer, entries, problems);
    } else if (auto value = to_json_value(node)) {
      collect(full, *value, where, layer, entries, problems);
    } else {
      report(problems, where, fmt::format("{}: dates and times are not values of a setting", full));
    }
  }
}

constexpr int kMaxKeyParts = 32;

// Throws where the parser must not go: a key of more than kMaxKeyParts parts (it bounds how deep values lie in each other, but not the
// tables that `a.a.a...` opens, which are freed by recursion), and characters beyond ASCII outside of strings and comments, which are wrong
// there and reach undefined behaviour in it. Strings and comments are passed over as the parser does; a quote in the middle of a word
// begins no string for it, and is wrong.
void check_outside_strings(std::string_view text, const std::string& name) {
  int64_t line = 1;
  int parts = 1;
  char before = '\n';
  const auto pass = [&](size_t end) {  // of what may hold newlines
    before = text[std::min(end, text.size()) - 1];
    line += std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(std::min(end, text.size())), '\n');
    text.remove_prefix(std::min(end, text.size()));
  };
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // a mark of UTF-8 may stand at the beginning
  while (!text.empty()) {
    const char c = text.front();
    const std::string_view quotes = text.substr(0, 3);
    if ((c == '"' || c == '\'') && std::string_view(" \t\r\n=[{,.").find(before) == std::string_view::npos)
      throw ConfigError("{}:{}: a quote stands in the middle of a word", name, line);
    if (quotes == R"(""")" || quotes == "'''") {
      size_t end = 3;
      while (end < text.size() && text.substr(end, 3) != quotes) end += c == '"' && text[end] == '\\' ? 2 : 1;
      pass(end + 3);
    } else if (c == '"' || c == '\'') {
      size_t end = 1;
      while (end < text.size() && text[end] != c && text[end] != '\n') end += c == '"' && text[end] == '\\' ? 2 : 1;
      pass(end + 1);
    } else if (c == '#') {
      pass(std::min(text.find('\n'), text.size()));
    } else {
      if (static_cast<unsigned char>(c) >= 0x80)
        throw ConfigError("{}:{}: a letter or sign beyond ASCII stands outside of quotes", name, line);
      if (c == '.' && ++parts > kMaxKeyParts) throw ConfigError("{}:{}: a key of more than {} parts", name, line, kMaxKeyParts);
      if (std::string_view("=,[]{}\n").find(c) != std::string_view::npos) parts = 1;
      pass(1);
    }
  }
}

toml::table parse_toml(std::string_view text, const std::string& name) {
  check_outside_strings(text, name);
  try {
    return toml::parse(text, std::string_view(name));
  } catch (const toml::parse_error& error) {
    throw ConfigError("{}:{}:{}: {}", name, error.source().begin.line, error.source().begin.column, error.description());
  } catch (const FailedAssertion&) {
    throw ConfigError("{}: a key or the name of a [section] is empty or begins with a character that needs quotes", name);
  }
}

// Command-line text as a TOML value where it is one, as plain text otherwise.
json parse_text_value(const std::string& text) {
  try {
    const auto table = parse_toml("value = " + text, "value");
    if (table.size() == 1) {
      if (auto value = to_json_value(*table.get("value"))) return *value;
    }
  } catch (const ConfigError&) {
    return text;
  }
  return text;
}

constexpr std::array kLengths = {"train.num_epochs", "train.max_tokens", "train.max_steps"};

bool is_length(const std::string& key) {
  return std::find(kLengths.begin(), kLengths.end(), key) != kLengths.end();
}

// Settings that exclude each other: a later layer's choice drops an earlier layer's; within one layer both is a problem.
void drop_replaced(const Entry& entry, std::vector<Entry>& entries) {
  const bool says_something = !(entry.value.is_number() && entry.value == 0) &&
                              !(entry.value.is_string() && entry.value.get_ref<const std::string&>().empty()) && !entry.value.empty();
  if (!says_something) return;
  std::erase_if(entries, [&](const Entry& other) {
    if (other.layer >= entry.layer) return false;
    if (is_length(entry.key)) return is_length(other.key) && other.key != entry.key;
    return (entry.key == "data.train" && other.key == "data.sources") || (entry.key == "data.sources" && other.key == "data.train");
  });
}

std::string where_of(const LoadedConfig& loaded, const std::string& key) {
  auto it = loaded.sources.find(key);
  return it == loaded.sources.end() ? "default" : it->second;
}

// Rules between keys. What needs the teacher's shape is checked where it is known (student::derive_student, distill::make_method).
void check_together(const LoadedConfig& loaded, Problems& problems) {
  const auto& run = loaded.run;
  std::vector<std::string> lengths;
  for (const char* key : kLengths) {
    if (find_setting(key)->get(run) != 0) lengths.push_back(fmt::format("{} ({})", key, where_of(loaded, key)));
  }
  if (lengths.size() > 1) report(problems, "[train]", fmt::format("{} are set together: set one of them", join(lengths, " and ")));
  if (!run.data.train.empty() && !run.data.sources.empty()) {
    report(problems, where_of(loaded, "data.sources"),
           fmt::format("data.sources and data.train ({}) are set together: set one of them", where_of(loaded, "data.train")));
  }
  const auto& device = run.train.device;
  const bool is_numbered =
      device.starts_with("cuda:") && device.size() > 5 && device.find_first_not_of("0123456789", 5) == std::string::npos;
  if (device != "auto" && device != "cpu" && device != "cuda" && !is_numbered) {
    report(problems, where_of(loaded, "train.device"),
           fmt::format("train.device = \"{}\": must be \"auto\", \"cpu\", \"cuda\", or \"cuda:N\"", device));
  }
}

LoadedConfig apply(std::vector<Entry> entries, Problems problems) {
  for (size_t i = 0; i < entries.size();) {
    const Entry entry = entries[i];
    const size_t before = entries.size();
    drop_replaced(entry, entries);
    i += 1 - (before - entries.size());
  }
  LoadedConfig loaded;
  for (auto& entry : entries) {
    const auto& setting = *find_setting(entry.key);
    const auto problem = setting.set(loaded.run, entry.value);
    if (!problem.empty()) report(problems, entry.where, fmt::format("{} = {}: {}", entry.key, toml_value(entry.value), problem));
    loaded.sources[entry.key] = entry.where;
  }
  check_together(loaded, problems);
  if (problems.empty()) return loaded;
  std::vector<std::string> lines;
  for (const auto& [line, text] : problems) lines.push_back(text);
  throw ConfigError("{}", join(lines, "\n"));
}

std::string preset_of(const toml::table& table, const std::string& name, Problems& problems) {
  const auto* node = table.get("preset");
  if (node == nullptr) return "";
  if (!node->is_string()) {
    report(problems, fmt::format("{}:{}", name, node->source().begin.line), "preset must be text");
    return "";
  }
  return node->as_string()->get();
}

LoadedConfig load_layers(const toml::table& table, const std::string& name, std::string preset, const std::vector<Override>& overrides) {
  std::vector<Entry> entries;
  Problems problems;
  if (const auto of_file = preset_of(table, name, problems); preset.empty()) preset = of_file;
  if (!preset.empty()) {
    if (const auto text = preset_text(preset)) {
      collect_table(parse_toml(*text, "preset " + preset), "", "preset " + preset, 0, entries, problems);
      for (auto& entry : entries) entry.where = "preset " + preset;
    } else {
      report(problems, name,
             fmt::format("preset \"{}\": there are {}{}", preset, join(preset_names(), ", "), did_you_mean(preset, preset_names())));
    }
  }
  collect_table(table, "", name, 1, entries, problems);
  constexpr int kCommandLine = 2;  // one layer: settings that exclude each other are a mistake there too
  for (const auto& given : overrides) {
    const auto* setting = find_setting(given.key);
    auto value = parse_text_value(given.text);
    if (setting != nullptr && setting->takes_text && !value.is_string()) value = given.text;
    collect(given.key, value, given.origin, kCommandLine, entries, problems);
  }
  return apply(std::move(entries), std::move(problems));
}

}  // namespace

Override parse_override(const std::string& text) {
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0) throw ConfigError("--set {}: must be key=value, such as train.max_steps=100", text);
  const auto trim = [](const std::string& part) {
    const auto first = part.find_first_not_of(" \t");
    if (first == std::string::npos) return std::string();
    return part.substr(first, part.find_last_not_of(" \t") - first + 1);
  };
  return {trim(text.substr(0, equals)), trim(text.substr(equals + 1)), "--set"};
}

LoadedConfig load_config(const ConfigRequest& request) {
  if (!request.file) return load_layers({}, "command line", request.preset, request.overrides);
  const auto name = request.file->string();
  return load_layers(parse_toml(read_file(*request.file), name), name, request.preset, request.overrides);
}

LoadedConfig load_config_text(const std::string& text, const std::string& name, const std::vector<Override>& overrides) {
  return load_layers(parse_toml(text, name), name, "", overrides);
}

json parse_toml_tree(const std::string& text, const std::string& name) {
  auto tree = to_json_value(parse_toml(text, name));
  if (!tree) throw ConfigError("{}: holds a date or a time, which has no place here", name);
  return std::move(*tree);
}

std::string to_toml(const RunConfig& config) {
  std::string page, section, group, group_items;
  const auto end_group = [&] {
    if (!group.empty()) page += fmt::format("{} = {{ {} }}\n", group, group_items);
    group.clear();
    group_items.clear();
  };
  for (const auto& setting : all_settings()) {
    const auto of_section = setting.section();
    auto name = of_section.empty() ? setting.key : setting.key.substr(of_section.size() + 1);
    const auto dot = name.find('.');
    const auto of_group = dot == std::string::npos ? "" : name.substr(0, dot);
    if (of_group != group || of_section != section) end_group();
    if (of_section != section) page += fmt::format("\n[{}]\n", of_section);
    section = of_section;
    const auto value = toml_value(setting.get(config));
    if (of_group.empty()) {
      page += fmt::format("{} = {}\n", name, value);
    } else {
      group = of_group;
      group_items += fmt::format("{}{} = {}", group_items.empty() ? "" : ", ", name.substr(dot + 1), value);
    }
  }
  end_group();
  return page;
}

std::string describe(const LoadedConfig& config) {
  std::string page;
  for (const auto& setting : all_settings()) {
    page += fmt::format("{:<72} # {}\n", fmt::format("{} = {}", setting.key, toml_value(setting.get(config.run))),
                        where_of(config, setting.key));
  }
  return page;
}

json to_json(const RunConfig& config) {
  json object = json::object();
  for (const auto& setting : all_settings()) {
    json* place = &object;
    size_t begin = 0;
    for (auto dot = setting.key.find('.'); dot != std::string::npos; begin = dot + 1, dot = setting.key.find('.', begin)) {
      place = &(*place)[setting.key.substr(begin, dot - begin)];
    }
    (*place)[setting.key.substr(begin)] = setting.get(config);
  }
  return object;
}

}  // namespace distil_xlstm::config
