// What a run left behind, read for a report: metrics.jsonl (docs/formats/metrics.md), run.json.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace distil_xlstm::report {

// One quantity over the run: y[i] was recorded at step[i], after tokens[i] training tokens.
struct Series {
  std::vector<double> step, tokens, y;
};

struct RunMetrics {
  std::string name;  // the run directory's name, made unique by its parents where runs share it
  fs::path path;
  json description;                          // run.json
  std::map<std::string, Series> train;       // "ce_loss", "grad_norm", ...
  std::map<std::string, Series> validation;  // "perplexity", "teacher_perplexity", ...
  int64_t num_skipped = 0;                   // steps that were not taken
};

// Reads run directories. A last line that was cut by an interruption is passed over. Throws IoError for a path that is no run, DataError
// that names file and line for a broken record.
std::vector<RunMetrics> read_runs(const std::vector<std::string>& paths);

}  // namespace distil_xlstm::report
