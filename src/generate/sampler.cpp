#include "generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/error.h"

namespace distil_xlstm::generate {
namespace {

int32_t argmax(std::span<const float> logits) {
  int32_t best = -1;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (std::isnan(logits[id])) continue;
    if (best < 0 || logits[id] > logits[static_cast<size_t>(best)]) best = static_cast<int32_t>(id);
  }
  if (best < 0 || !std::isfinite(logits[static_cast<size_t>(best)])) {
    throw ValueError("sample: none of the {} logits is finite: the model's weights or its input are broken", logits.size());
  }
  return best;
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

Sampler::Sampler(const SamplingOptions& options, uint64_t stream) : options_(options), random_(options.seed, stream) {
  check(options);
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> context) {
  if (options_.repetition_penalty != 1.0) {
    penalized_.assign(logits.begin(), logits.end());
    const std::unordered_set<int32_t> seen(context.begin(), context.end());
    const auto penalty = static_cast<float>(options_.repetition_penalty);
    for (const int32_t id : seen) {
      if (id < 0 || static_cast<size_t>(id) >= penalized_.size()) continue;
      float& logit = penalized_[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / penalty : logit * penalty;
    }
    logits = penalized_;
  }
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
