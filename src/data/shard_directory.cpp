#include "data/shard_directory.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "data/token_shard.h"

namespace distil_xlstm::data {
namespace {

constexpr std::string_view kPartial = ".partial";

}  // namespace

std::optional<ShardName> parse_shard_name(std::string_view name) {
  ShardName parsed;
  parsed.is_partial = name.ends_with(kPartial);
  if (parsed.is_partial) name.remove_suffix(kPartial.size());
  if (!name.ends_with(kShardExtension)) return std::nullopt;
  name.remove_suffix(kShardExtension.size());
  const size_t dash = name.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const std::string_view split = name.substr(0, dash), digits = name.substr(dash + 1);
  if (split != split_name(Split::train) && split != split_name(Split::validation)) return std::nullopt;
  parsed.split = split == split_name(Split::train) ? Split::train : Split::validation;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), parsed.number);
  if (digits.size() < 5 || error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return parsed;
}

bool holds_shards(const fs::path& directory) {
  return std::any_of(fs::directory_iterator(directory), fs::directory_iterator(),
                     [](const fs::directory_entry& entry) { return entry.path().extension() == kShardExtension; });
}

std::string fault_of_shard(const fs::path& directory, const ShardSummary& listed) {
  try {
    const TokenShard shard(directory / listed.file);
    if (fmt::format("{:016x}", shard.header().checksum) != listed.checksum) return listed.file + ": not the shard that was written there";
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

std::string fault_of_shards(const fs::path& directory, const std::vector<ShardSummary>& listed) {
  for (const ShardSummary& shard : listed) {
    if (std::string fault = fault_of_shard(directory, shard); !fault.empty()) return fault;
  }
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    const bool is_listed = std::ranges::any_of(listed, [&](const ShardSummary& shard) { return shard.file == name; });
    if (entry.path().extension() == kShardExtension && !is_listed) return name + ": a shard that was not written with the others";
  }
  return "";
}

void remove_shards(const fs::path& directory) {
  remove_shards(directory, Split::train, 0);
  remove_shards(directory, Split::validation, 0);
}

void remove_shards(const fs::path& directory, Split split, uint32_t first) {
  std::vector<fs::path> shards;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const auto name = parse_shard_name(entry.path().filename().string());
    if (name && name->split == split && name->number >= first) shards.push_back(entry.path());
  }
  for (const fs::path& shard : shards) fs::remove(shard);
}

json to_json(const std::vector<ShardSummary>& shards) {
  json list = json::array();
  for (const ShardSummary& shard : shards) {
    list.push_back({{"file", shard.file},
                    {"num_rows", shard.num_rows},
                    {"num_tokens", shard.num_tokens},
                    {"num_documents", shard.num_documents},
                    {"checksum", shard.checksum}});
  }
  return list;
}

std::vector<ShardSummary> shard_summaries(const json& list, std::string_view where) {
  std::vector<ShardSummary> shards;
  for (const json& shard : list) {
    shards.push_back({require<std::string>(shard, "file", where), require<int64_t>(shard, "num_rows", where),
                      require<int64_t>(shard, "num_tokens", where), require<int64_t>(shard, "num_documents", where),
                      require<std::string>(shard, "checksum", where)});
  }
  return shards;
}

}  // namespace distil_xlstm::data
