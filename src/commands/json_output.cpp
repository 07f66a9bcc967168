#include "commands/json_output.h"

#include "base/json.h"
#include "base/output_directory.h"

namespace distil_xlstm::commands {

void check_json_output(const std::string& path, const std::vector<fs::path>& inputs, const std::string& key) {
  if (path.empty() || path == "-") return;
  check_output_file(path, "--json", inputs, [&](const fs::path& file) {
    try {
      const json content = read_json(file);
      return content.is_object() && content.contains(key);
    } catch (const Error&) {
      return false;
    }
  });
}

}  // namespace distil_xlstm::commands
