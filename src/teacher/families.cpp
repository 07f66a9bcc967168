#include "teacher/families.h"

#include <array>

#include "base/text.h"

namespace distil_xlstm::teacher {

const Family& find_family(const json& config, std::string_view where) {
  static const std::array<const Family*, 3> families = {&kLlama, &kQwen2, &kQwen3};
  const std::string model_type = config.is_object() && config.contains("model_type") ? config["model_type"].dump() : "missing";
  std::vector<std::string> supported;
  for (const Family* family : families) {
    if (model_type == fmt::format("\"{}\"", family->model_type)) return *family;
    supported.emplace_back(family->model_type);
  }
  throw ConfigError("{}: model_type = {} is not supported: supported are {}", where, model_type, join(supported, ", "));
}

nn::TransformerConfig read_config(const Family& family, const json& config, const std::string& where) {
  ConfigReader reader(config, where);
  nn::TransformerConfig result = family.read_config(reader);
  reader.finish();
  return result;
}

}  // namespace distil_xlstm::teacher
