// Rows of a data set as JSON objects, whatever their keys: JSONL, one JSON array (either also .gz or .zst) or Parquet, streamed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace distil_xlstm::data {

class RecordReader {
 public:
  virtual ~RecordReader() = default;
  // Whether rows have this key: a column of Parquet; of JSON, a key of the first row.
  [[nodiscard]] virtual bool has_key(const std::string& key) = 0;
  // The keys of the first row, for messages; none where they are not known (Parquet).
  [[nodiscard]] virtual std::vector<std::string> first_keys() { return {}; }
  // The next row with these keys alone; false at the end. The keys must stay the same from call to call. Throws DataError that names file,
  // row and key: a key that the row lacks, what is no JSON object, no UTF-8.
  virtual bool next(const std::vector<std::string>& keys, json& row) = 0;
  [[nodiscard]] virtual std::string place() const = 0;  // of the row given last: "piqa.jsonl: line 7"
};

// By the name's ending; what is not .parquet is JSON. Throws IoError, DataError.
std::unique_ptr<RecordReader> open_records(const fs::path& path);

}  // namespace distil_xlstm::data
