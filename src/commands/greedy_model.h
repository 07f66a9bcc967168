// A model that `eval` lets write, with what it needs for that.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "generate/greedy.h"
#include "load/model.h"

namespace distil_xlstm::cli {
struct EvalOptions;
}

namespace distil_xlstm::commands {

class GreedyModel {
 public:
  // `other`: whose tokenizer serves where the model has none.
  GreedyModel(const std::string& name, const cli::EvalOptions& options, const GreedyModel* other);
  GreedyModel(const GreedyModel&) = delete;  // tokenizer_ may lie inside
  GreedyModel& operator=(const GreedyModel&) = delete;
  ~GreedyModel() = default;

  [[nodiscard]] const load::LoadedModel& loaded() const { return loaded_; }
  [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }
  [[nodiscard]] const std::string& name() const { return greedy_.model_name; }

  // The ids of prompts, each with a row. Warns where prompt and answer have more tokens than the model has positions for; `what` asks for
  // them.
  std::vector<std::vector<int32_t>> encode(std::span<const std::string> texts, int64_t max_new_tokens, const std::string& what) const;

  // Also how much device memory was in use at most beyond what there was before.
  struct Written : generate::GreedyResult {
    int64_t memory_bytes = 0;
  };
  Written write(std::span<const std::vector<int32_t>> prompts, int64_t max_new_tokens, const std::function<void(size_t)>& progress) const;

 private:
  load::LoadedModel loaded_;
  const Tokenizer& tokenizer_;
  generate::GreedyOptions greedy_;
};

// Speed and memory: medians over batches.
json speed_json(const GreedyModel::Written& written);

// What the figures depend on, of any measure that lets models write.
json greedy_settings(const cli::EvalOptions& options, const GreedyModel& model);

}  // namespace distil_xlstm::commands
