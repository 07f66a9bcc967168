#include "io/builtin.h"

#include <algorithm>

#include "base/hash.h"
#include "io/pypi.h"

namespace distil_xlstm::io {
namespace {

constexpr std::string_view kShipped = "stories260K";
constexpr std::string_view kFetched = "smollm2-135m-instruct";

struct BuiltinFile {
  std::string name, sha256;
};

std::vector<BuiltinFile> files_of(std::string_view name) {
  std::vector<BuiltinFile> files;
  if (name == kFetched) {
    for (const auto& member : smollm2_wheel().members) files.push_back({member.target, member.sha256});
    return files;
  }
  return {{"config.json", "47a6bf520565687fa87a3aa4dd41a53a830a50060dba7dd2e347ad4e5d9e650b"},
          {"generation_config.json", "720858ddb18cc6e5fccab11219d725fa128fe9707bfdc42ad82c488e11e35fa5"},
          {"model.safetensors", "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd"},
          {"tokenizer.json", "122d22ca558413499eac24a0a4373c6ac76528aa97bd1f1a6a889214df0b254b"},
          {"tokenizer_config.json", "e41b99126d5d603be9b702a0a41586ed9e27ffe4e04010662c894205e20567ef"}};
}

bool is_plain_part(std::string_view part) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  };
  return !part.empty() && part.front() != '.' && std::all_of(part.begin(), part.end(), allowed);
}

// Plain parts joined by single slashes.
bool is_revision(std::string_view text) {
  for (size_t slash = text.find('/'); slash != std::string_view::npos; slash = text.find('/')) {
    if (!is_plain_part(text.substr(0, slash))) return false;
    text.remove_prefix(slash + 1);
  }
  return is_plain_part(text);
}

}  // namespace

std::vector<std::string> builtin_model_names() {
  return {std::string(kShipped), std::string(kFetched)};
}

std::optional<fs::path> builtin_model_directory(std::string_view name) {
  if (name == kShipped) return share_directory() / "models" / name;
  if (name == kFetched) return cache_directory() / "models" / name;
  return std::nullopt;
}

std::string builtin_model_fault(std::string_view name) {
  const fs::path directory = *builtin_model_directory(name);
  for (const BuiltinFile& file : files_of(name)) {
    if (!fs::is_regular_file(directory / file.name)) return file.name + " is missing";
    Sha256 digest;
    digest.update(MappedFile(directory / file.name).bytes());
    if (const std::string found = digest.hex_digest(); found != file.sha256)
      return fmt::format("{} is damaged (its sha256 is {}, {} is expected)", file.name, found, file.sha256);
  }
  return "";
}

std::optional<RepositoryName> parse_repository_name(std::string_view text) {
  RepositoryName repository{.revision = "main"};
  if (const size_t at = text.find('@'); at != std::string_view::npos) {
    repository.revision = text.substr(at + 1);
    text = text.substr(0, at);
  }
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  repository.organisation = text.substr(0, slash);
  repository.name = text.substr(slash + 1);
  if (!is_plain_part(repository.organisation) || !is_plain_part(repository.name) || !is_revision(repository.revision)) return std::nullopt;
  return repository;
}

fs::path fetched_model_directory(const RepositoryName& repository) {
  std::string revision = repository.revision;
  for (size_t slash = revision.find('/'); slash != std::string::npos; slash = revision.find('/')) revision.replace(slash, 1, "--");
  return cache_directory() / "models" / (repository.organisation + "--" + repository.name) / revision;
}

}  // namespace distil_xlstm::io
