// What a run records as it goes: metrics.jsonl (one JSON object a line, docs/formats/metrics.md) and a TensorBoard event file.
#pragma once

#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "base/hash.h"
#include "base/json.h"
#include "train/tensorboard.h"

namespace distil_xlstm::train {

// Where the files of a run ended when a checkpoint was made; part of trainer.json.
struct MetricsPosition {
  int64_t metrics_bytes = 0;
  int64_t metrics_records = -1;  // -1: not recorded, by an older version
  std::string metrics_xxh3;      // of those bytes; "" likewise
  std::string events_name;
  int64_t events_bytes = 0;

  [[nodiscard]] json to_json() const;
  static MetricsPosition from_json(const json& value, const std::string& where);
};

class MetricsLog {
 public:
  // Begins both files in an empty run.
  explicit MetricsLog(const fs::path& run_directory);
  // Cuts both files back to `position`, so that a resumed run leaves what an uninterrupted one would have left. A metrics.jsonl that is no
  // longer what it was at the checkpoint, of `step`, is mended with a warning: its whole records up to that step stay, once each, and the
  // file as it was becomes metrics.jsonl.damaged. In place of a shorter event file a new one is begun.
  MetricsLog(const fs::path& run_directory, const MetricsPosition& position, int64_t step);

  // Appends a line and flushes it. `kind` is the record's first key; numbers go to TensorBoard under kind/key at `step`.
  // Values that are not finite are written as null. Throws IoError where it cannot be written or the run's directory is gone.
  void write(const std::string& kind, int64_t step, const json& values);
  [[nodiscard]] MetricsPosition position() const;

  // Throws IoError when the run's directory was removed, renamed or replaced since.
  void check_in_place() const;

 private:
  void open();

  fs::path directory_;
  std::string events_name_;
  std::pair<uint64_t, uint64_t> directory_id_, lines_id_;
  std::ofstream lines_;
  std::unique_ptr<EventWriter> events_;
  std::unique_ptr<Xxh3Stream> hash_;  // of metrics.jsonl so far
  int64_t num_bytes_ = 0, num_records_ = 0;
};

}  // namespace distil_xlstm::train
