// A directory of files that were fetched, and its record: what is there, so that the next fetch knows it.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "base/json.h"
#include "io/hub.h"

namespace distil_xlstm::io {

// Which of the files that fetch_repository left in a directory is missing or of another size now, or "".
std::string fetched_fault(const fs::path& directory);

// The rest is what fetch_repository does it with.

// "files": name -> checksum_of, "sizes": name -> bytes, and what repository they are of. Empty ones where there is no record.
json read_record(const fs::path& directory);
std::string checksum_of(const HubFile& file);

// Whether `directory` holds the file as it is now in the repository, every byte of it read. What is damaged is told where `warns`.
bool is_there(const fs::path& directory, const json& record, const HubFile& file, bool warns);

// Recorded files that the repository has no more, or has otherwise, and that are not brought now: beside files of another commit they
// would make a model that never was.
std::set<std::string> stale_files(const json& record, const HubListing& listing, const std::vector<HubFile>& selected);

// Whether all is there as it should be, seen without the lock: so a cache may be read-only, and any number of processes may look at once.
bool is_complete(const fs::path& directory, const HubListing& listing, const std::vector<HubFile>& selected);

// Removes what a killed call left beside a directory that is complete. It is in nobody's way: where it cannot be removed, or another
// process is at work, it stays.
void remove_leftovers(const fs::path& directory);

// Replaces `directory` by one with the files that were brought, those of before that are still good, and the record. Nobody sees a
// mixture, and what else an interrupted run left in `staging` goes.
void move_into_place(const fs::path& staging, const fs::path& directory, const std::vector<HubFile>& brought,
                     const std::set<std::string>& stale, const json& record);

}  // namespace distil_xlstm::io
