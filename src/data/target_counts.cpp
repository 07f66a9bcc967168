#include "data/target_counts.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/text.h"

namespace distil_xlstm::data {

void TargetCounts::add(const TokenDocument& document, size_t num_ids) {
  constexpr size_t kMaxRoles = 8;
  const size_t first = document.begins && num_ids > 0 ? 1 : 0;  // nothing predicts the first id
  const std::span<const uint8_t> counts = std::span(document.counts).first(std::min(num_ids, document.counts.size()));
  target_tokens += document.is_conversation ? std::ranges::count(counts.subspan(std::min(first, counts.size())), 1)
                                            : static_cast<int64_t>(num_ids - first);
  if (!document.is_conversation) return;
  ++conversations;
  missing_answers += static_cast<uint64_t>(document.missing_answers);
  if (document.roles.empty()) return;
  ++without_answer;
  const bool is_new = std::find(roles.begin(), roles.end(), document.roles) == roles.end();
  if (is_new && roles.size() < kMaxRoles) roles.push_back(document.roles);
}

json to_json(const TargetCounts& targets) {
  return {{"conversations", targets.conversations},
          {"without_answer", targets.without_answer},
          {"missing_answers", targets.missing_answers},
          {"roles", targets.roles},
          {"target_tokens", targets.target_tokens}};
}

TargetCounts target_counts(const json& value, std::string_view where) {
  TargetCounts targets;
  targets.conversations = require<uint64_t>(value, "conversations", where);
  targets.without_answer = require<uint64_t>(value, "without_answer", where);
  targets.missing_answers = get_or<uint64_t>(value, "missing_answers", 0, where);
  targets.roles = require<std::vector<std::string>>(value, "roles", where);
  targets.target_tokens = require<int64_t>(value, "target_tokens", where);
  return targets;
}

void warn_of_no_answers(const TargetCounts& targets, const fs::path& output) {
  if (targets.missing_answers > 0) {
    spdlog::warn(
        "{}: {} answers do not count: the chat template leaves them out, or writes them so that they are not found (look at one with: "
        "distil-xlstm tokenize --chat --json)",
        output.string(), targets.missing_answers);
  }
  if (targets.without_answer == 0) return;
  std::vector<std::string> roles;
  for (const json& set : targets.roles) roles.push_back(set.get<std::string>());
  spdlog::warn(
      "{}: {} of {} have no answer that counts (roles: {}): the loss counts what the role 'assistant' says, or what the template marks",
      output.string(), targets.without_answer,
      targets.conversations == 1 ? "1 conversation" : fmt::format("{} conversations", targets.conversations), join(roles, "; "));
}

}  // namespace distil_xlstm::data
