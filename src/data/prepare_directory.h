// What `prepare` keeps beside its shards: prepare.json (settings and counts, written last) or, while unfinished, prepare.journal.
#pragma once

#include <string>

#include "base/json.h"
#include "base/output_directory.h"
#include "data/prepare.h"

namespace distil_xlstm::data {

// Which directories `prepare` may write to.
OutputKind prepared_text();
// Throws ConfigError where the output is none of them, or lies in what is read.
void check_output(const PrepareOptions& options);

bool is_prepared(const fs::path& directory);  // finished

// The first file, by name, that `prepare` did not write; "" where there is none.
std::string first_not_prepared(const fs::path& directory);

// The files of `prepare` and nothing else. The mark goes last: until then the directory is one that it may write to.
void remove_prepared(const fs::path& directory);

fs::path index_path(const fs::path& directory);
void write_index(const fs::path& directory, const json& settings, const PrepareReport& report);
PrepareReport report_of(const json& index, const std::string& where);

}  // namespace distil_xlstm::data
