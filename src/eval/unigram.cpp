#include "eval/unigram.h"

#include <cmath>

#include "base/error.h"
#include "base/file.h"
#include "data/token_shard.h"

namespace distil_xlstm::eval {

Unigram::Unigram(const std::vector<std::string>& shards) {
  std::vector<uint64_t> counts;
  uint64_t total = 0;
  for (const auto& path : expand_paths(shards)) {
    if (path.extension() != data::kShardExtension) continue;
    const data::TokenShard shard(path);
    if (shard.split() != data::Split::train) continue;
    counts.resize(std::max<size_t>(counts.size(), shard.header().vocab_size), 0);
    std::vector<int32_t> ids(shard.header().num_tokens);
    shard.copy_tokens(0, ids);
    for (size_t at = 1; at < ids.size(); ++at) {  // a shard begins with the id that ends the one before
      if (!shard.counts(at)) continue;
      ++counts[static_cast<size_t>(ids[at])];
      ++total;
    }
  }
  if (total == 0) throw DataError("unigram: no training shards in {}", fmt::join(shards, ", "));
  for (const uint64_t count : counts) {
    log_probability_.push_back(std::log(static_cast<double>(count + 1) / static_cast<double>(total + counts.size())));
  }
}

void Unigram::add_nats(std::span<const int32_t> targets, double& sum) const {
  for (const int32_t id : targets) {
    if (id < 0 || static_cast<size_t>(id) >= log_probability_.size()) {
      throw ValueError("unigram: token {} lies outside the shards' vocabulary of {}", id, log_probability_.size());
    }
    sum -= log_probability_[static_cast<size_t>(id)];
  }
}

}  // namespace distil_xlstm::eval
