// What a run records as it goes: metrics.jsonl (one JSON object a line, docs/formats/metrics.md) and a TensorBoard event file.
#pragma once

#include <fstream>
#include <memory>
#include <string>

#include "base/json.h"
#include "train/tensorboard.h"

namespace distil_xlstm::train {

// Where the files of a run ended when a checkpoint was made; part of trainer.json.
struct MetricsPosition {
  int64_t metrics_bytes = 0;
  std::string events_name;
  int64_t events_bytes = 0;

  [[nodiscard]] json to_json() const;
  static MetricsPosition from_json(const json& value, const std::string& where);
};

class MetricsLog {
 public:
  // Begins both files in an empty run.
  explicit MetricsLog(const fs::path& run_directory);
  // Cuts both files back to `position`, so that a resumed run leaves what an uninterrupted one would have left.
  MetricsLog(const fs::path& run_directory, const MetricsPosition& position);

  // Appends a line and flushes it. `kind` is the record's first key; numbers go to TensorBoard under kind/key at `step`.
  // Values that are not finite are written as null.
  void write(const std::string& kind, int64_t step, const json& values);
  [[nodiscard]] MetricsPosition position() const;

 private:
  void open();

  fs::path directory_;
  std::string events_name_;
  std::ofstream lines_;
  std::unique_ptr<EventWriter> events_;
};

}  // namespace distil_xlstm::train
