#include "generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>

namespace distil_xlstm::generate {
namespace {

int32_t argmax(std::span<const float> logits) {
  size_t best = 0, num_nan = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    num_nan += std::isnan(logits[id]) ? 1 : 0;
    if (logits[id] > logits[best]) best = id;
  }
  if (num_nan > 0 || logits.empty() || !std::isfinite(logits[best])) {
    throw NotFiniteLogits(fmt::format("sample: {} of the {} logits are not numbers, and none can be chosen", num_nan, logits.size()));
  }
  return static_cast<int32_t>(best);
}

// How many of the last ids of all are left out.
size_t num_at_end(std::span<const int32_t> left_out, size_t num_ids) {
  size_t count = 0;
  while (count < left_out.size() && static_cast<size_t>(left_out[left_out.size() - 1 - count]) == num_ids - 1 - count) ++count;
  return count;
}

}  // namespace

void check(const SamplingOptions& options) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    throw ValueError("temperature = {}: must be at least 0 (0 = greedy)", options.temperature);
  }
  if (options.top_k < 0) throw ValueError("top_k = {}: must be at least 0 (0 = all tokens)", options.top_k);
  if (!(options.top_p > 0 && options.top_p <= 1)) throw ValueError("top_p = {}: must be in (0, 1]", options.top_p);
  if (!(options.min_p >= 0 && options.min_p < 1)) throw ValueError("min_p = {}: must be in [0, 1)", options.min_p);
  if (!(options.repetition_penalty > 0)) {
    throw ValueError("repetition_penalty = {}: must be above 0 (1 = none)", options.repetition_penalty);
  }
}

Sampler::Sampler(const SamplingOptions& options, uint64_t stream, std::span<const int32_t> left_out)
    : options_(options), random_(options.seed, stream), left_out_(left_out.begin(), left_out.end()) {
  check(options);
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> context) {
  const size_t padding = num_at_end(left_out_, logits.size());
  const std::span holes = std::span(left_out_).first(left_out_.size() - padding);
  logits = logits.first(logits.size() - padding);
  if (options_.repetition_penalty != 1.0 || !holes.empty()) {
    changed_.assign(logits.begin(), logits.end());
    logits = changed_;
  }
  if (options_.repetition_penalty != 1.0) {
    const std::unordered_set<int32_t> seen(context.begin(), context.end());
    const auto penalty = static_cast<float>(options_.repetition_penalty);
    for (const int32_t id : seen) {
      if (id < 0 || static_cast<size_t>(id) >= changed_.size()) continue;
      float& logit = changed_[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / penalty : logit * penalty;
    }
  }
  for (const int32_t id : holes) changed_[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
  const int32_t best = argmax(logits);
  if (options_.temperature == 0) return best;

  const double top = logits[static_cast<size_t>(best)];
  candidates_.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    const double weight = std::exp((static_cast<double>(logits[id]) - top) / options_.temperature);
    if (weight > 0 && weight >= options_.min_p) candidates_.emplace_back(weight, static_cast<int32_t>(id));
  }
  const bool needs_order = options_.top_k > 0 || options_.top_p < 1;
  if (needs_order) {
    std::sort(candidates_.begin(), candidates_.end(),
              [](const auto& a, const auto& b) { return a.first > b.first || (a.first == b.first && a.second < b.second); });
    if (options_.top_k > 0 && candidates_.size() > static_cast<size_t>(options_.top_k))
      candidates_.resize(static_cast<size_t>(options_.top_k));
  }
  double total = 0;
  for (const auto& [weight, id] : candidates_) total += weight;
  if (options_.top_p < 1) {
    double reached = 0;
    size_t kept = 0;
    while (kept < candidates_.size() && reached < options_.top_p * total) reached += candidates_[kept++].first;
    candidates_.resize(std::max<size_t>(kept, 1));
    total = reached;
  }
  double point = random_.uniform() * total;
  for (const auto& [weight, id] : candidates_) {
    point -= weight;
    if (point < 0) return id;
  }
  return candidates_.back().second;
}

}  // namespace distil_xlstm::generate
