#include "io/hub.h"

#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>

#include "base/json.h"
#include "base/log.h"
#include "base/output_directory.h"
#include "base/output_lock.h"
#include "base/temporary_path.h"
#include "base/text.h"
#include "io/fetched_directory.h"
#include "io/http.h"

namespace distil_xlstm::io {

namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string trimmed(std::string text) {
  constexpr const char* kSpace = " \t\r\n";
  text.erase(text.find_last_not_of(kSpace) + 1);
  return text.erase(0, std::min(text.find_first_not_of(kSpace), text.size()));
}

std::string token_from_environment() {
  std::string token = trimmed(environment("HF_TOKEN"));
  if (token.empty()) {
    fs::path path = environment("HF_TOKEN_PATH");
    if (path.empty()) {
      const std::string home = environment("HF_HOME");
      path = (home.empty() ? fs::path(environment("HOME")) / ".cache" / "huggingface" : fs::path(home)) / "token";
    }
    if (fs::is_regular_file(path)) token = trimmed(read_file(path));
  }
  if (std::ranges::any_of(token, [](unsigned char c) { return c <= ' ' || c >= 0x7F; })) {
    throw ConfigError("the Hugging Face token (HF_TOKEN, or the file $HF_HOME/token) holds characters that no token has");
  }
  return token;
}

const char* kind_name(RepositoryKind kind) {
  return kind == RepositoryKind::model ? "models" : "datasets";
}

std::string full_name(const RepositoryName& repository) {
  return repository.organisation + "/" + repository.name;
}

[[noreturn]] void explain(const HttpError& error, const HubSettings& hub, RepositoryKind kind, const RepositoryName& repository) {
  const std::string what = fmt::format("{} '{}'", kind == RepositoryKind::model ? "model" : "data set", full_name(repository));
  const std::string page = shown_url(hub.endpoint + (kind == RepositoryKind::model ? "/" : "/datasets/") + full_name(repository));
  const char* who = hub.token.empty() ? "no token was given" : "the token is not valid or may not read it";
  switch (error.status()) {
    case 401:
      throw IoError("{} is not there, or is private or gated, and {} (401): check the name, and set HF_TOKEN if it needs one", what, who);
    case 403:
      throw IoError("{} refuses access (403), {}: accept its terms at {} with the account of the token", what, who, page);
    case 404:
      throw IoError("{} has no revision '{}', or is not there (404): see {}", what, repository.revision, page);
    default:
      throw IoError("{}: {}", what, error.what());
  }
}

// A name from a server becomes a path here: it must stay below the directory.
bool is_safe_name(const std::string& name) {
  if (name.empty() || name.front() == '/' || name.find('\\') != std::string::npos || name.find('\0') != std::string::npos) return false;
  const fs::path path(name);
  return std::all_of(path.begin(), path.end(), [](const fs::path& part) { return !part.empty() && part != "." && part != ".."; });
}

HubFile parse_file(const json& entry, const std::string& where) {
  HubFile file{.name = require<std::string>(entry, "rfilename", where), .size_bytes = get_or<int64_t>(entry, "size", -1, where)};
  if (!is_safe_name(file.name)) throw DataError("{}: the file name '{}' is not allowed", where, file.name);
  if (const auto lfs = entry.find("lfs"); lfs != entry.end() && lfs->is_object()) {
    file.sha256 = get_or<std::string>(*lfs, "sha256", get_or<std::string>(*lfs, "oid", "", where), where);
    file.size_bytes = get_or<int64_t>(*lfs, "size", file.size_bytes, where);
  } else {
    file.git_blob_sha1 = get_or<std::string>(entry, "blobId", "", where);
  }
  if (file.size_bytes < 0 || (file.sha256.empty() && file.git_blob_sha1.empty())) {
    throw DataError("{}: '{}' comes without size or checksum: is this a Hugging Face hub?", where, file.name);
  }
  return file;
}

bool matches_any(const std::string& name, std::span<const std::string> globs, int flags) {
  return std::ranges::any_of(globs, [&](const std::string& glob) { return ::fnmatch(glob.c_str(), name.c_str(), flags) == 0; });
}

// Weights once: the index with its shards, or model.safetensors, or what safetensors there are. Names as Hugging Face writes them;
// other copies (consolidated.safetensors, variants like model.fp16.safetensors, *.bin, *.pth) stay where they are.
std::vector<std::string> weight_globs(const HubListing& listing) {
  const auto has = [&](const std::string& name) {
    return std::ranges::any_of(listing.files, [&](const HubFile& file) { return file.name == name; });
  };
  if (has("model.safetensors.index.json"))
    return {"model.safetensors.index.json",
            "model-?????"
            "-of-?????.safetensors"};
  if (has("model.safetensors")) return {"model.safetensors"};
  return {"*.safetensors", "*.safetensors.index.json"};
}

std::vector<std::string> default_model_globs(const HubListing& listing) {
  std::vector<std::string> globs = {"config.json",
                                    "generation_config.json",
                                    "tokenizer.json",
                                    "tokenizer_config.json",
                                    "special_tokens_map.json",
                                    "added_tokens.json",
                                    "chat_template.jinja",
                                    "chat_template.json",
                                    "additional_chat_templates/*.jinja",
                                    "LICENSE*",
                                    "README.md"};
  const std::vector<std::string> weights = weight_globs(listing);
  globs.insert(globs.end(), weights.begin(), weights.end());
  return globs;
}

void check_free_space(const fs::path& directory, int64_t needed) {
  fs::path existing = directory;
  while (!fs::exists(existing) && existing.has_relative_path()) existing = existing.parent_path();
  std::error_code error;
  const fs::space_info space = fs::space(existing, error);
  if (!error && space.available < static_cast<uintmax_t>(needed)) {
    throw IoError("{}: the download needs {}, the disk has {} free: free some, or set DISTIL_XLSTM_CACHE to a larger disk",
                  directory.string(), format_bytes(static_cast<double>(needed)), format_bytes(static_cast<double>(space.available)));
  }
}

// Shows all files of a download as one.
class FetchProgress {
 public:
  explicit FetchProgress(int64_t total_bytes) : total_bytes_(total_bytes), begin_seconds_(monotonic_seconds()) {}

  void show(const std::string& name, int64_t bytes) {
    if (!line_.due()) return;
    const int64_t done = finished_bytes_ + bytes;
    const double per_second = static_cast<double>(done - resumed_bytes_) / std::max(monotonic_seconds() - begin_seconds_, 1e-3);
    line_.update(fmt::format("{} of {}, {}/s, {} left: {}", format_bytes(static_cast<double>(done)),
                             format_bytes(static_cast<double>(total_bytes_)), format_bytes(per_second),
                             format_duration(static_cast<double>(total_bytes_ - done) / std::max(per_second, 1.0)), name));
  }
  void resumed(int64_t bytes) { resumed_bytes_ += bytes; }
  void finished(int64_t bytes) { finished_bytes_ += bytes; }
  void finish() {
    line_.finish(
        fmt::format("{} in {}", format_bytes(static_cast<double>(finished_bytes_)), format_duration(monotonic_seconds() - begin_seconds_)));
  }

 private:
  ProgressLine line_;
  int64_t total_bytes_, finished_bytes_ = 0, resumed_bytes_ = 0;
  double begin_seconds_;
};

Download download_of(const HubSettings& hub, RepositoryKind kind, const RepositoryName& repository, const std::string& commit,
                     const HubFile& file, const fs::path& directory) {
  return {.url = fmt::format("{}/{}{}/resolve/{}/{}", hub.endpoint, kind == RepositoryKind::dataset ? "datasets/" : "",
                             full_name(repository), url_encode(commit), url_encode(file.name, "/")),
          .token = hub.token,
          .target = directory / file.name,
          .size_bytes = file.size_bytes,
          .sha256 = file.sha256,
          .git_blob_sha1 = file.git_blob_sha1};
}

// What an interrupted run left of a file that it had not finished.
int64_t size_of_part(const Download& download) {
  std::error_code error;
  const auto size = static_cast<int64_t>(fs::file_size(download.target.string() + ".incomplete", error));
  return error ? 0 : std::min(size, *download.size_bytes);
}

// What of a file takes room on the disk already.
int64_t size_on_disk(const Download& download) {
  std::error_code error;
  const bool is_whole = fs::file_size(download.target, error) == static_cast<uintmax_t>(*download.size_bytes);
  return is_whole && !error ? *download.size_bytes : size_of_part(download);
}

}  // namespace

HubSettings hub_settings_from_environment() {
  HubSettings hub;
  if (std::string endpoint = trimmed(environment("HF_ENDPOINT")); !endpoint.empty()) {
    while (endpoint.ends_with('/')) endpoint.pop_back();
    if (!endpoint.starts_with("http://") && !endpoint.starts_with("https://")) {
      throw ConfigError("HF_ENDPOINT is '{}': it must begin with https:// or http://", endpoint);
    }
    hub.endpoint = endpoint;
  }
  hub.token = token_from_environment();
  return hub;
}

HubListing list_repository(const HubSettings& hub, RepositoryKind kind, const RepositoryName& repository) {
  const std::string url = fmt::format("{}/api/{}/{}/revision/{}?blobs=true", hub.endpoint, kind_name(kind), full_name(repository),
                                      url_encode(repository.revision));
  const std::string where = shown_url(url);
  json answer;
  try {
    answer = parse_json(get_text({.url = url, .token = hub.token}, hub.retry), where);
  } catch (const HttpError& error) {
    explain(error, hub, kind, repository);
  }
  HubListing listing{.commit = require<std::string>(answer, "sha", where)};
  for (const json& entry : require<json>(answer, "siblings", where)) listing.files.push_back(parse_file(entry, where));
  return listing;
}

std::vector<HubFile> select_files(const HubListing& listing, RepositoryKind kind, const std::vector<std::string>& globs,
                                  const std::string& where) {
  const bool is_default_model = globs.empty() && kind == RepositoryKind::model;
  const std::vector<std::string> wanted = is_default_model ? default_model_globs(listing)
                                          : globs.empty()  ? std::vector<std::string>{"*"}
                                                           : globs;
  const int flags = is_default_model ? FNM_PATHNAME : 0;  // other copies of a model lie in folders (onnx/)
  std::vector<HubFile> selected;
  for (const HubFile& file : listing.files) {
    if (matches_any(file.name, wanted, flags) && file.name != ".gitattributes") selected.push_back(file);
  }
  const bool has_weights = std::ranges::any_of(selected, [](const HubFile& file) { return file.name.ends_with(".safetensors"); });
  if (!selected.empty() && (has_weights || !is_default_model)) return selected;
  std::vector<std::string> names;
  for (const HubFile& file : listing.files) names.push_back(file.name);
  constexpr size_t kShown = 20;
  const std::string more = names.size() > kShown ? fmt::format(", and {} more", names.size() - kShown) : "";
  names.resize(std::min(names.size(), kShown));
  throw DataError("{}: {}; it holds {}{}: choose with --files GLOB", where,
                  is_default_model ? "there are no weights as safetensors" : fmt::format("no file matches {}", join(wanted, ", ")),
                  join(names, ", "), more);
}

fs::path repository_directory(RepositoryKind kind, const RepositoryName& repository) {
  const fs::path model = fetched_model_directory(repository);
  return kind == RepositoryKind::model ? model : cache_directory() / "datasets" / model.lexically_relative(cache_directory() / "models");
}

FetchResult fetch_repository(const HubSettings& hub, RepositoryKind kind, const RepositoryName& repository,
                             const std::vector<std::string>& globs) {
  const HubListing listing = list_repository(hub, kind, repository);
  const std::vector<HubFile> selected = select_files(listing, kind, globs, full_name(repository));
  FetchResult result{.directory = repository_directory(kind, repository), .commit = listing.commit, .num_files = selected.size()};
  for (const HubFile& file : selected) {
    if (__builtin_add_overflow(result.size_bytes, file.size_bytes, &result.size_bytes)) {
      throw DataError("{}: the sizes of its files add up to more than 2^63 bytes: is this a Hugging Face hub?", full_name(repository));
    }
  }
  if (is_complete(result.directory, listing, selected)) {
    remove_leftovers(result.directory);
    return result;
  }
  const OutputLock lock(result.directory, OutputLock::Place::beside);
  clear_abandoned(result.directory);
  const fs::path staging = result.directory.string() + ".incomplete";
  json record = read_record(result.directory);
  std::vector<HubFile> missing;
  int64_t missing_bytes = 0, present_bytes = 0;
  for (const HubFile& file : selected) {
    if (is_there(result.directory, record, file, /*warns=*/true)) continue;
    missing.push_back(file);
    missing_bytes += file.size_bytes;
    present_bytes += size_on_disk(download_of(hub, kind, repository, listing.commit, file, staging));
  }
  const std::set<std::string> stale = stale_files(record, listing, selected);
  if (missing.empty() && stale.empty()) {
    fs::remove_all(staging);  // of a call that was killed after it had moved everything
    return result;
  }
  check_free_space(staging, missing_bytes - present_bytes);
  FetchProgress progress(missing_bytes);
  for (const HubFile& file : missing) {
    const Download download = download_of(hub, kind, repository, listing.commit, file, staging);
    if (is_as_expected(download.target, download)) {
      progress.resumed(file.size_bytes);
    } else {
      const int64_t already = size_of_part(download);
      progress.resumed(already);
      try {
        download_file(download, hub.retry, [&](int64_t bytes) { progress.show(file.name, bytes); });
      } catch (const HttpError& error) {
        explain(error, hub, kind, repository);
      }
      result.downloaded_bytes += file.size_bytes - already;
    }
    progress.finished(file.size_bytes);
    record["files"][file.name] = checksum_of(file);
    record["sizes"][file.name] = file.size_bytes;
  }
  record["repository"] = full_name(repository);
  record["revision"] = repository.revision;
  record["commit"] = listing.commit;
  for (const std::string& name : stale) {
    record["files"].erase(name);
    record["sizes"].erase(name);
  }
  move_into_place(staging, result.directory, missing, stale, record);
  progress.finish();
  return result;
}

}  // namespace distil_xlstm::io
