#include "config/names.h"

#include "base/text.h"

namespace distil_xlstm::config {

ConfigError unknown_name(std::string_view text, const std::vector<std::string>& allowed, std::string_view key) {
  return ConfigError("{} = \"{}\": allowed are {}{}", key, text, join(allowed, ", "), did_you_mean(text, allowed));
}

}  // namespace distil_xlstm::config
