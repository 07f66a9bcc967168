// The Hugging Face hub: what a repository holds, and its files on the disk.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/builtin.h"
#include "io/download.h"

namespace distil_xlstm::io {

// Where the hub is and who asks.
struct HubSettings {
  std::string endpoint = "https://huggingface.co";
  std::string token;  // empty: nobody in particular
  RetryPolicy retry;
};

// $HF_ENDPOINT; the token of $HF_TOKEN, else of the file $HF_TOKEN_PATH, else $HF_HOME/token (~/.cache/huggingface/token).
HubSettings hub_settings_from_environment();

enum class RepositoryKind { model, dataset };

struct HubFile {
  std::string name;  // path in the repository, checked to stay inside it
  int64_t size_bytes = 0;
  std::string sha256;         // of large files
  std::string git_blob_sha1;  // of the others
};

struct HubListing {
  std::string commit;
  std::vector<HubFile> files;
};

// GET /api/{models,datasets}/org/name/revision/REVISION?blobs=true. Throws IoError that says what 401, 403 and 404 mean here.
HubListing list_repository(const HubSettings& hub, RepositoryKind kind, const RepositoryName& repository);

// The files to bring: those that match one of `globs` (* also matches '/'), else, of a model, what open_model needs (configuration,
// tokenizer, chat template, safetensors once) with its licence, and of a data set all. Throws DataError when none is left.
std::vector<HubFile> select_files(const HubListing& listing, RepositoryKind kind, const std::vector<std::string>& globs,
                                  const std::string& where);

// <cache>/models/... of fetched_model_directory, or the same below <cache>/datasets.
fs::path repository_directory(RepositoryKind kind, const RepositoryName& repository);

struct FetchResult {
  fs::path directory;
  std::string commit;
  size_t num_files = 0;
  int64_t size_bytes = 0;
  int64_t downloaded_bytes = 0;
};

// Brings the selected files to repository_directory. They are gathered in <directory>.incomplete, where an interrupted run continues,
// and moved when all are right. Files that an earlier run brought are read again and not brought again where they are as they should be.
// Throws ConfigError while another process fetches the same; where all is there already, nothing is locked or written.
FetchResult fetch_repository(const HubSettings& hub, RepositoryKind kind, const RepositoryName& repository,
                             const std::vector<std::string>& globs);

}  // namespace distil_xlstm::io
