// The life of a run's directory: what may become one, how an old run makes way, which names are the run's own
// (docs/formats/run-directory.md).
#pragma once

#include <string>
#include <vector>

#include "base/file.h"

namespace distil_xlstm::train {

inline constexpr const char* kRunFormat = "distil-xlstm run 1";  // of run.json: what makes a directory a run
inline constexpr const char* kData = "data";
inline constexpr const char* kValidationData = "validation-data";
inline constexpr const char* kNewSuffix = ".new";  // of text prepared anew while the run that is to be replaced still keeps its own

// The status in run.json; "" where there is no run.
std::string run_status(const fs::path& directory);

// Whether a new run may begin in `run`; true where it replaces one that lies there: with `overwrite`, or when that one was killed before
// training began. `inputs` are read, and `models`. Throws ConfigError.
bool check_new_run(const fs::path& run, bool overwrite, const std::vector<fs::path>& inputs, const std::vector<fs::path>& models);

// Text goes into the directory before the run is made. Until then a run.json with status "starting" says that the text is the run's own and
// not a user's; it goes again where no text was begun.
class BegunRun {
 public:
  explicit BegunRun(const fs::path& run);
  ~BegunRun();
  BegunRun(const BegunRun&) = delete;
  BegunRun& operator=(const BegunRun&) = delete;

 private:
  fs::path run_;
};

// Throws ConfigError where a user's file lies in `directory`, whose text is to make way for other text.
void check_makes_way(const fs::path& directory);

// Moves text prepared anew to its place and removes what an earlier run has left, by the names that this program writes. `prepared` are the
// directories with text that the new run uses. run.json stays until the new one replaces it: the directory is a run all the time.
void make_run_directory(const fs::path& run, const std::vector<std::string>& prepared, bool replaces);

}  // namespace distil_xlstm::train
