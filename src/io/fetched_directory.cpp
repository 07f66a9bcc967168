#include "io/fetched_directory.h"

#include <algorithm>

#include "base/log.h"
#include "base/output_directory.h"
#include "base/output_lock.h"
#include "base/temporary_path.h"

namespace distil_xlstm::io {
namespace {

// .fetched.json in a directory: what is there, so that the next run knows it without reading it.
constexpr const char* kRecord = ".fetched.json";

}  // namespace

json read_record(const fs::path& directory) {
  const fs::path path = directory / kRecord;
  json record = fs::exists(path) ? read_json(path) : json::object();
  const bool is_record = record.is_object() && (!record.contains("files") || record["files"].is_object());
  if (!is_record) throw DataError("{}: it must be an object whose key 'files' is an object: delete it, and fetch again", path.string());
  record.emplace("files", json::object());
  return record;
}

std::string checksum_of(const HubFile& file) {
  return file.sha256.empty() ? "git:" + file.git_blob_sha1 : "sha256:" + file.sha256;
}

bool is_there(const fs::path& directory, const json& record, const HubFile& file, bool warns) {
  const auto known = record["files"].find(file.name);
  if (known == record["files"].end() || *known != checksum_of(file)) return false;
  const fs::path path = directory / file.name;
  if (!fs::is_regular_file(path)) return false;
  const std::string fault = fault_of(path, {.size_bytes = file.size_bytes, .sha256 = file.sha256, .git_blob_sha1 = file.git_blob_sha1});
  if (!fault.empty() && warns) spdlog::warn("{}: damaged ({}): bringing it again", path.string(), fault);
  return fault.empty();
}

std::set<std::string> stale_files(const json& record, const HubListing& listing, const std::vector<HubFile>& selected) {
  std::set<std::string> stale;
  for (const auto& [name, checksum] : record["files"].items()) stale.insert(name);
  for (const HubFile& file : listing.files) {
    const auto known = record["files"].find(file.name);
    if (known != record["files"].end() && *known == checksum_of(file)) stale.erase(file.name);
  }
  for (const HubFile& file : selected) stale.erase(file.name);
  return stale;
}

bool is_complete(const fs::path& directory, const HubListing& listing, const std::vector<HubFile>& selected) {
  if (!fs::is_directory(directory)) return false;
  try {
    const json record = read_record(directory);
    return stale_files(record, listing, selected).empty() &&
           std::ranges::all_of(selected, [&](const HubFile& file) { return is_there(directory, record, file, /*warns=*/false); });
  } catch (const IoError& error) {  // another process replaces the directory: who holds the lock knows more
    spdlog::debug("{}", error.what());
  } catch (const fs::filesystem_error& error) {
    spdlog::debug("{}", error.what());
  }
  return false;
}

void remove_leftovers(const fs::path& directory) {
  const std::string name = directory.filename().string();
  const auto is_leftover = [&](const fs::directory_entry& entry) {
    const std::string other = entry.path().filename().string();
    return other == name + ".incomplete" || (other.starts_with(name + ".") && is_temporary_name(other)) ||
           (is_lock_name(other) && other.starts_with("." + name + "."));
  };
  try {
    const fs::directory_iterator entries(directory.parent_path());
    if (std::none_of(begin(entries), end(entries), is_leftover)) return;
    const OutputLock lock(directory, OutputLock::Place::beside);
    clear_abandoned(directory);
    fs::remove_all(directory.string() + ".incomplete");
  } catch (const Error& error) {
    spdlog::debug("{}", error.what());
  } catch (const fs::filesystem_error& error) {
    spdlog::debug("{}", error.what());
  }
}

void move_into_place(const fs::path& staging, const fs::path& directory, const std::vector<HubFile>& brought,
                     const std::set<std::string>& stale, const json& record) {
  write_directory_atomic(directory, [&](const fs::path& fresh) {
    for (const HubFile& file : brought) link_or_copy(staging / file.name, fresh / file.name);
    if (fs::exists(directory)) {
      for (const auto& entry : fs::recursive_directory_iterator(directory)) {
        const fs::path name = entry.path().lexically_relative(directory);
        const bool is_kept = entry.is_regular_file() && !stale.contains(name.string()) && name != kRecord;
        if (is_kept && !fs::exists(fresh / name)) link_or_copy(entry.path(), fresh / name);
      }
    }
    write_json(fresh / kRecord, record);
  });
  fs::remove_all(staging);
}

std::string fetched_fault(const fs::path& directory) {
  const json record = read_record(directory), sizes = record.value("sizes", json::object());
  for (const auto& [name, size] : sizes.items()) {
    std::error_code error;
    const auto found = fs::file_size(directory / name, error);
    if (error) return fmt::format("{}: {}", (directory / name).string(), error.message());
    if (size != found) return fmt::format("{}: {} bytes, {} were fetched", (directory / name).string(), found, size.dump());
  }
  return "";
}

}  // namespace distil_xlstm::io
