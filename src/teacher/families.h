// The transformer families: one file each. A new one is a file with its read_config, and a line in the table of families.cpp.
#pragma once

#include <span>
#include <string_view>

#include "teacher/config.h"

namespace distil_xlstm::teacher {

struct Family {
  std::string_view model_type;  // as config.json has it
  std::string_view title;       // for people
  nn::TransformerConfig (*read_config)(ConfigReader& reader);
};

extern const Family kLlama;
extern const Family kQwen2;
extern const Family kQwen3;

// By `model_type`; throws ConfigError that names it and lists the supported ones.
const Family& find_family(const json& config, std::string_view where);

// Everything the configuration says, every key accounted for.
nn::TransformerConfig read_config(const Family& family, const json& config, const std::string& where);

}  // namespace distil_xlstm::teacher
