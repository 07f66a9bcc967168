// Shards of one directory by their names: which files are ours, whether they are as they were written, how they go.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "data/shard_writer.h"

namespace distil_xlstm::data {

// What the name of a shard says: train-00000.dxts, validation-00012.dxts, with .partial at the end while it is being written.
struct ShardName {
  Split split = Split::train;
  uint32_t number = 0;
  bool is_partial = false;
};
std::optional<ShardName> parse_shard_name(std::string_view name);

bool holds_shards(const fs::path& directory);

// What is wrong with a shard, every byte of it checked, or "".
std::string fault_of_shard(const fs::path& directory, const ShardSummary& listed);

// What is wrong with the shards that `listed` names, or with others that lie beside them; "" when all is well.
std::string fault_of_shards(const fs::path& directory, const std::vector<ShardSummary>& listed);

// Removes shards, finished or not, by their names; nothing else.
void remove_shards(const fs::path& directory);
// Those of one split, from a number on.
void remove_shards(const fs::path& directory, Split split, uint32_t first);

json to_json(const std::vector<ShardSummary>& shards);
std::vector<ShardSummary> shard_summaries(const json& list, std::string_view where);

}  // namespace distil_xlstm::data
