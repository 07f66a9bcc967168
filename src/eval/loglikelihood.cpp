#include "eval/loglikelihood.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "base/signals.h"
#include "nn/finite.h"

namespace distil_xlstm::eval {
namespace {

// Contexts shorter than this are computed with each of their continuations: copying the state costs as much.
constexpr size_t kMinSharedContext = 8;
constexpr int64_t kMaxStateBytes = int64_t{1} << 30;  // of the states of a batch
constexpr int64_t kMaxLogits = int64_t{16} << 20;     // at a time
constexpr size_t kMaxLengthDifference = 16;           // between contexts of a batch: what lies behind the shortest is computed per choice

// What a model reads for one request; the last `num_targets` positions predict the continuation.
struct Row {
  size_t request = 0;
  std::vector<int32_t> inputs;
  size_t num_targets = 0;
};

// Requests with one context.
struct ContextGroup {
  size_t context_size = 0;
  std::vector<size_t> rows;
};

// Padded on the right with zeros: what stands there changes nothing to its left, and is not looked at.
Tensor padded(std::span<const Row* const> rows, size_t first, size_t end, at::Device device) {
  size_t length = 0;
  for (const Row* row : rows) length = std::max(length, std::min(row->inputs.size(), end) - first);
  Tensor tokens_BS = at::zeros({static_cast<int64_t>(rows.size()), static_cast<int64_t>(length)}, at::kLong);
  auto* out = tokens_BS.mutable_data_ptr<int64_t>();
  for (const Row* row : rows) {
    std::copy(row->inputs.begin() + static_cast<ptrdiff_t>(first),
              row->inputs.begin() + static_cast<ptrdiff_t>(std::min(row->inputs.size(), end)), out);
    out += length;
  }
  return tokens_BS.to(device);
}

class Scorer {
 public:
  Scorer(nn::LanguageModel& model, std::span<const Request> requests, const LoglikelihoodOptions& options,
         const std::function<void(size_t)>& progress)
      : model_(model), requests_(requests), options_(options), progress_(progress), scores_(requests.size()) {
    if (!options.left_out_rows.empty()) {
      const std::vector<int64_t> ids(options.left_out_rows.begin(), options.left_out_rows.end());
      left_out_ = at::tensor(ids, at::kLong).to(model.device());
    }
    // A KV cache grows with its tokens, a recurrent state does not.
    const int64_t one = model.new_state(1, 1)->size_bytes();
    state_bytes_a_token_ = model.new_state(1, 2)->size_bytes() - one;
    state_bytes_ = one - state_bytes_a_token_;
    for (size_t i = 0; i < requests.size(); ++i) rows_.push_back(make_row(i));
  }

  std::vector<RequestScore> run() {
    auto groups = find_groups();
    score_groups(groups);
    score_single(std::move(single_));
    return std::move(scores_);
  }

 private:
  Row make_row(size_t request) const {
    const auto& [context, continuation] = requests_[request];
    if (context.empty() || continuation.empty()) throw ValueError("request {}: context and continuation need a token each", request);
    const auto max_length = static_cast<size_t>(options_.max_length);
    if (continuation.size() > max_length) {
      throw ValueError("a continuation of {} tokens is longer than the {} that {} sees at once: raise --context-length",
                       continuation.size(), max_length, options_.model_name);
    }
    Row row{.request = request, .inputs = context, .num_targets = continuation.size()};
    row.inputs.insert(row.inputs.end(), continuation.begin(), continuation.end() - 1);
    if (row.inputs.size() > max_length) row.inputs.erase(row.inputs.begin(), row.inputs.end() - static_cast<ptrdiff_t>(max_length));
    return row;
  }

  // Whole rows of several requests with the same context; all others go to single_.
  std::vector<ContextGroup> find_groups() {
    std::unordered_map<std::string_view, size_t> place_of;
    std::vector<ContextGroup> groups;
    for (const Row& row : rows_) {
      const auto& context = requests_[row.request].context;
      const bool is_whole = row.inputs.size() == context.size() + row.num_targets - 1;
      if (!options_.shares_contexts || !is_whole || context.size() < kMinSharedContext) {
        single_.push_back(row.request);
        continue;
      }
      const std::string_view key(reinterpret_cast<const char*>(context.data()), context.size() * sizeof(int32_t));
      const auto [found, is_new] = place_of.emplace(key, groups.size());
      if (is_new) groups.push_back({context.size(), {}});
      groups[found->second].rows.push_back(row.request);
    }
    std::erase_if(groups, [&](const ContextGroup& group) {
      if (group.rows.size() > 1) return false;
      single_.push_back(group.rows.front());
      return true;
    });
    std::ranges::stable_sort(groups, std::greater(), &ContextGroup::context_size);
    return groups;
  }

  // Groups of nearly the same context length at a time. What all contexts of a batch reach is computed once each, and its state repeated;
  // the rest of a context comes again before each of its continuations.
  void score_groups(const std::vector<ContextGroup>& groups) {
    for (size_t begin = 0; begin < groups.size();) {
      size_t end = begin, num_rows = 0, longest = 0;
      for (; end < groups.size(); ++end) {
        const ContextGroup& next = groups[end];
        const size_t shared = next.context_size - 1;
        if (end > begin && groups[begin].context_size - next.context_size > kMaxLengthDifference) break;
        size_t longest_row = longest;
        for (const size_t row : next.rows) longest_row = std::max(longest_row, rows_[row].inputs.size());
        const auto rows = static_cast<int64_t>(num_rows + next.rows.size());
        const int64_t state_bytes = rows * (state_bytes_ + state_bytes_a_token_ * static_cast<int64_t>(longest_row));
        const int64_t prefix_tokens = static_cast<int64_t>((end - begin + 1) * shared);
        const int64_t rest_tokens = rows * static_cast<int64_t>(longest_row - shared);
        if (end > begin && (state_bytes > kMaxStateBytes || std::max(prefix_tokens, rest_tokens) > options_.batch_tokens)) break;
        num_rows += next.rows.size();
        longest = longest_row;
      }
      score_batch(std::span(groups).subspan(begin, end - begin));
      begin = end;
    }
  }

  void score_batch(std::span<const ContextGroup> groups) {
    const size_t shared = groups.back().context_size - 1;  // so that every row has a token of its own
    std::vector<const Row*> contexts, rows;
    std::vector<int64_t> context_of;
    size_t longest = 0;
    for (const ContextGroup& group : groups) {
      for (const size_t row : group.rows) {
        context_of.push_back(static_cast<int64_t>(contexts.size()));
        rows.push_back(&rows_[row]);
        longest = std::max(longest, rows_[row].inputs.size());
      }
      contexts.push_back(&rows_[group.rows.front()]);
    }
    const auto state = model_.new_state(static_cast<int64_t>(contexts.size()), static_cast<int64_t>(longest));
    (void)model_.forward_step(padded(contexts, 0, shared, model_.device()), *state);
    state->gather_rows(at::tensor(context_of, at::kLong));
    const Tensor tokens_BS = padded(rows, shared, longest, model_.device());
    take_scores(rows, shared, model_.forward_step(tokens_BS, *state));
  }

  // Rows of nearly the same length at a time.
  void score_single(std::vector<size_t> order) {
    std::ranges::stable_sort(order, std::greater(), [&](size_t row) { return rows_[row].inputs.size(); });
    for (size_t begin = 0; begin < order.size();) {
      const size_t longest = rows_[order[begin]].inputs.size();
      const size_t fitting = std::max<size_t>(1, static_cast<size_t>(options_.batch_tokens) / longest);
      const size_t end = std::min(order.size(), begin + fitting);
      std::vector<const Row*> rows;
      for (size_t at = begin; at < end; ++at) rows.push_back(&rows_[order[at]]);
      take_scores(rows, 0, model_.forward_hidden(padded(rows, 0, longest, model_.device())));
      begin = end;
    }
  }

  // hidden_BSD: of the rows' inputs from `first` on.
  void take_scores(const std::vector<const Row*>& rows, size_t first, const Tensor& hidden_BSD) {
    throw_if_interrupted();
    std::vector<int64_t> places, targets;
    const int64_t length = hidden_BSD.size(1);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto& continuation = requests_[rows[i]->request].continuation;
      const auto begin = static_cast<int64_t>(i) * length + static_cast<int64_t>(rows[i]->inputs.size() - rows[i]->num_targets - first);
      for (size_t at = 0; at < continuation.size(); ++at) {
        places.push_back(begin + static_cast<int64_t>(at));
        targets.push_back(continuation[at]);
      }
    }
    const Tensor values = target_values(hidden_BSD.reshape({-1, hidden_BSD.size(2)}), places, targets);
    const auto* value = values.const_data_ptr<double>();
    for (const Row* row : rows) {
      RequestScore& score = scores_[row->request];
      for (size_t at = 0; at < row->num_targets; ++at, value += 2) {
        score.log_likelihood += value[0];
        score.is_greedy = score.is_greedy && value[1] != 0.0;
      }
      if (!std::isfinite(score.log_likelihood)) throw Error(why_not_finite(*row));
    }
    num_scored_ += rows.size();
    if (progress_) progress_(num_scored_);
  }

  // [N, 2] on the CPU in float64: log-probability of each target, and whether it is the most likely token.
  Tensor target_values(const Tensor& hidden_ND, const std::vector<int64_t>& places, const std::vector<int64_t>& targets) {
    const at::Device device = hidden_ND.device();
    const Tensor places_N = at::tensor(places, at::kLong).to(device), targets_N = at::tensor(targets, at::kLong).to(device);
    const int64_t tile = std::max<int64_t>(1, kMaxLogits / model_.vocab_size());
    std::vector<Tensor> parts;
    for (int64_t begin = 0; begin < places_N.size(0); begin += tile) {
      const int64_t count = std::min(tile, places_N.size(0) - begin);
      Tensor logits_NV = model_.logits(hidden_ND.index_select(0, places_N.narrow(0, begin, count)));
      if (left_out_.defined()) logits_NV = logits_NV.index_fill(1, left_out_, -INFINITY);
      const Tensor targets_T = targets_N.narrow(0, begin, count);
      const Tensor chosen = logits_NV.gather(1, targets_T.unsqueeze(1)).squeeze(1).to(at::kDouble);
      const Tensor log_probability = chosen - logits_NV.logsumexp(1).to(at::kDouble);
      parts.push_back(at::stack({log_probability, (logits_NV.argmax(1) == targets_T).to(at::kDouble)}, 1));
    }
    return at::cat(parts).to(at::kCPU).contiguous();
  }

  std::string why_not_finite(const Row& row) {
    const Row* const rows[] = {&row};
    return nn::why_not_finite(model_, options_.model_name, "--precision", padded(rows, 0, row.inputs.size(), model_.device()));
  }

  nn::LanguageModel& model_;
  std::span<const Request> requests_;
  const LoglikelihoodOptions& options_;
  const std::function<void(size_t)>& progress_;
  std::vector<RequestScore> scores_;
  std::vector<Row> rows_;
  std::vector<size_t> single_;
  Tensor left_out_;
  int64_t state_bytes_ = 0, state_bytes_a_token_ = 0;  // of a row
  size_t num_scored_ = 0;
};

}  // namespace

std::vector<RequestScore> log_likelihoods(nn::LanguageModel& model, std::span<const Request> requests, const LoglikelihoodOptions& options,
                                          const std::function<void(size_t)>& progress) {
  const at::NoGradGuard no_grad;
  return Scorer(model, requests, options, progress).run();
}

}  // namespace distil_xlstm::eval
