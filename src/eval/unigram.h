// The simplest baseline: token frequencies of the training shards, whatever came before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/perplexity.h"

namespace distil_xlstm::eval {

// p(token) = (count + 1) / (all + V) over the ids of token shards that count as targets.
class Unigram {
 public:
  // `shards`: files, directories or globs of token shards (only training splits count). Throws DataError when there are none.
  explicit Unigram(const std::vector<std::string>& shards);

  // Sum of -log p over every token of the documents but each one's first, in nats. Throws ValueError for an id outside the vocabulary.
  [[nodiscard]] double nats(const std::vector<EvalDocument>& documents) const;

 private:
  std::vector<double> log_probability_;
};

}  // namespace distil_xlstm::eval
