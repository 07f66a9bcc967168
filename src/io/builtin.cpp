#include "io/builtin.h"

#include <algorithm>

namespace distil_xlstm::io {
namespace {

constexpr std::string_view kShipped = "stories260K";
constexpr std::string_view kFetched = "smollm2-135m-instruct";

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
