// Named settings that a run file or --preset starts from: run files themselves, read below the user's own.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace distil_xlstm::config {

std::vector<std::string> preset_names();

// The run file of that name, or nothing.
std::optional<std::string_view> preset_text(std::string_view name);

}  // namespace distil_xlstm::config
