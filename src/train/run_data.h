// The text of a run: shards as they are, or text that is prepared into the run's directory first.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "data/loader.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::train {

struct RunPlace {
  const config::RunConfig& config;
  const fs::path& run;
  bool resumes = false, replaces = false;
};

struct RunData {
  std::vector<std::string> prepared;                // directories of the run whose shards it reads
  std::unique_ptr<data::Loader> train, validation;  // no validation: null
};

// Missing files are found before anything is read, written or removed. A resumed run needs its text no more once it is prepared.
void check_texts(const RunPlace& place);

// Throws ConfigError, DataError or IoError; Interrupted after a signal.
RunData open_data(const RunPlace& place, const Tokenizer& tokenizer, int64_t vocab_size);

}  // namespace distil_xlstm::train
