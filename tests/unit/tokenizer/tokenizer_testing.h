// The golden tokenizer and the recorded cases.
#pragma once

#include "base/json.h"
#include "io/model_files.h"
#include "support/source_directory.h"

namespace distil_xlstm {

inline fs::path golden_tokenizer_directory() {
  return golden_directory() / "tokenizer";
}

inline const json& golden_cases() {
  static const json cases = read_json(golden_tokenizer_directory() / "cases.json");
  return cases;
}

inline io::TokenizerFiles golden_files() {
  return {.tokenizer_json = read_file(golden_tokenizer_directory() / "tokenizer.json"),
          .tokenizer_config = {{"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}, {"lstrip", false}}}, {"pad_token", nullptr}},
          .origin = "golden/tokenizer.json"};
}

template <typename Function>
std::string message_of(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace distil_xlstm
