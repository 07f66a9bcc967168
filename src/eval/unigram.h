// The simplest baseline: token frequencies of the training shards, whatever came before.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace distil_xlstm::eval {

// p(token) = (count + 1) / (all + V) over the ids of token shards that count as targets.
class Unigram {
 public:
  // `shards`: files, directories or globs of token shards (only training splits count). Throws DataError when there are none.
  explicit Unigram(const std::vector<std::string>& shards);

  // Adds -log p of each target to `sum`, in nats. Throws ValueError for an id outside the vocabulary.
  void add_nats(std::span<const int32_t> targets, double& sum) const;

 private:
  std::vector<double> log_probability_;
};

}  // namespace distil_xlstm::eval
