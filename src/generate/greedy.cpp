#include "generate/greedy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "nn/finite.h"
#include "ops/device.h"

namespace distil_xlstm::generate {
namespace {

using Ids = std::vector<int32_t>;

constexpr size_t kMaxLengthDifference = 16;  // between prompts of a batch: it is read token by token

// Columns [first, end) of the prompts, each of which reaches there.
Tensor columns_of(std::span<const Ids* const> prompts, size_t first, size_t end, at::Device device) {
  Tensor tokens_BS = at::empty({static_cast<int64_t>(prompts.size()), static_cast<int64_t>(end - first)}, at::kLong);
  auto* out = tokens_BS.mutable_data_ptr<int64_t>();
  for (const Ids* prompt : prompts) {
    out = std::copy(prompt->begin() + static_cast<ptrdiff_t>(first), prompt->begin() + static_cast<ptrdiff_t>(end), out);
  }
  return tokens_BS.to(device);
}

class Writer {
 public:
  Writer(nn::LanguageModel& model, const GreedyOptions& options) : model_(model), options_(options) {
    if (options.left_out_rows.empty()) return;
    const std::vector<int64_t> ids(options.left_out_rows.begin(), options.left_out_rows.end());
    left_out_ = at::tensor(ids, at::kLong).to(model.device());
  }

  // The prompts' lengths differ little.
  GreedyBatch write(std::span<const Ids* const> prompts, std::span<Ids* const> continuations) {
    const size_t rows = prompts.size();
    size_t shared = prompts.front()->size(), longest = shared;
    for (const Ids* prompt : prompts) {
      shared = std::min(shared, prompt->size());
      longest = std::max(longest, prompt->size());
    }
    GreedyBatch batch{.num_rows = static_cast<int64_t>(rows), .prefill_tokens = static_cast<int64_t>(rows * shared)};
    ops::synchronize(model_.device());
    const double begin = monotonic_seconds();
    const auto state = model_.new_state(batch.num_rows, static_cast<int64_t>(longest) + options_.max_new_tokens);
    const size_t piece = std::max<size_t>(1, static_cast<size_t>(options_.batch_tokens) / rows);
    Tensor hidden_BSD;
    for (size_t at = 0; at < shared; at += piece) {
      throw_if_interrupted();
      hidden_BSD = model_.forward_step(columns_of(prompts, at, std::min(shared, at + piece), model_.device()), *state);
    }
    std::vector<uint8_t> is_done(rows, 0);
    Tensor next_B = likeliest(hidden_BSD, prompts, continuations);
    const double decode_begin = monotonic_seconds();
    batch.prefill_seconds = decode_begin - begin;
    for (size_t position = shared;; ++position) {
      throw_if_interrupted();
      auto* next = next_B.mutable_data_ptr<int64_t>();
      for (size_t row = 0; row < rows; ++row) take(*prompts[row], position, *continuations[row], is_done[row], next[row]);
      if (std::ranges::all_of(is_done, [](uint8_t done) { return done != 0; })) break;
      hidden_BSD = model_.forward_step(next_B.unsqueeze(1).to(model_.device()), *state);
      next_B = likeliest(hidden_BSD, prompts, continuations);
      batch.decode_tokens += batch.num_rows;
    }
    batch.decode_seconds = monotonic_seconds() - decode_begin;
    batch.state_bytes = state->size_bytes();
    return batch;
  }

 private:
  // What a row reads at `position`, where it may choose `next`: its prompt as far as that goes, then what it writes.
  void take(const Ids& prompt, size_t position, Ids& continuation, uint8_t& is_done, int64_t& next) const {
    if (position < prompt.size()) {
      next = prompt[position];
      return;
    }
    if (is_done == 0) {
      const auto id = static_cast<int32_t>(next);
      if (std::ranges::find(options_.stop_ids, id) != options_.stop_ids.end()) {
        is_done = 1;
      } else {
        continuation.push_back(id);
        is_done = static_cast<int64_t>(continuation.size()) == options_.max_new_tokens ? 1 : 0;
      }
    }
    if (is_done != 0) next = prompt.front();  // carried along and thrown away
  }

  // The likeliest token after the last position, on the CPU.
  Tensor likeliest(const Tensor& hidden_BSD, std::span<const Ids* const> prompts, std::span<Ids* const> continuations) {
    Tensor logits_BV = model_.logits(hidden_BSD.select(1, hidden_BSD.size(1) - 1));
    if (left_out_.defined()) logits_BV = logits_BV.index_fill(1, left_out_, -INFINITY);
    const auto [greatest_B, next_B] = logits_BV.max(1);
    const Tensor greatest = greatest_B.to(at::kCPU, at::kFloat).contiguous();
    for (size_t row = 0; row < prompts.size(); ++row) {
      if (!std::isfinite(greatest.const_data_ptr<float>()[row])) throw Error(why_not_finite(*prompts[row], *continuations[row]));
    }
    return next_B.to(at::kCPU).contiguous();
  }

  std::string why_not_finite(const Ids& prompt, const Ids& continuation) {
    std::vector<int64_t> all(prompt.begin(), prompt.end());
    all.insert(all.end(), continuation.begin(), continuation.end());
    return nn::why_not_finite(model_, options_.model_name, "--precision", at::tensor(all, at::kLong).unsqueeze(0).to(model_.device()));
  }

  nn::LanguageModel& model_;
  const GreedyOptions& options_;
  Tensor left_out_;
};

}  // namespace

GreedyResult greedy_continuations(nn::LanguageModel& model, std::span<const std::vector<int32_t>> prompts, const GreedyOptions& options,
                                  const std::function<void(size_t)>& progress) {
  if (options.max_new_tokens < 1) throw ValueError("max_new_tokens = {}: must be at least 1", options.max_new_tokens);
  for (const Ids& prompt : prompts) {
    if (prompt.empty()) throw ValueError("greedy_continuations: a prompt has no tokens");
  }
  const at::NoGradGuard no_grad;
  GreedyResult result{.continuations = std::vector<Ids>(prompts.size()), .batches = {}};
  std::vector<size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::greater(), [&](size_t i) { return prompts[i].size(); });
  Writer writer(model, options);
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    const size_t longest = prompts[order[begin]].size();
    const size_t fitting = std::max<size_t>(1, static_cast<size_t>(options.batch_tokens) / longest);
    std::vector<const Ids*> of_batch;
    std::vector<Ids*> continuations;
    for (; end < order.size() && end - begin < fitting && longest - prompts[order[end]].size() <= kMaxLengthDifference; ++end) {
      of_batch.push_back(&prompts[order[end]]);
      continuations.push_back(&result.continuations[order[end]]);
    }
    result.batches.push_back(writer.write(of_batch, continuations));
    if (progress) progress(end);
  }
  return result;
}

}  // namespace distil_xlstm::generate
