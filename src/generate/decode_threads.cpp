#include "generate/decode_threads.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "base/log.h"

namespace distil_xlstm::generate {
namespace {

constexpr double kLookSeconds = 2;
constexpr int64_t kBytesPerThread = 16 << 20;  // of weights: a thread's first share

// What a step reads: all weights, of the embedding a row.
int64_t bytes_of_step(const nn::LanguageModel& model) {
  int64_t bytes = model.head_weight().nbytes();
  model.for_each_weight([&](const std::string&, const Tensor& weight) {
    if (weight.size(0) != model.vocab_size()) bytes += weight.nbytes();
  });
  return bytes;
}

bool keeps_its_bits(const nn::LanguageModel& model) {
  const std::string precision = model.precision();
  return model.device().is_cpu() && (precision == "fp32" || precision == "fp64") && !at::in_parallel_region();
}

}  // namespace

DecodeThreads::DecodeThreads(const nn::LanguageModel& model)
    : is_used_(keeps_its_bits(model)),
      before_(at::get_num_threads()),
      chooser_(before_, is_used_ ? static_cast<int>(std::min<int64_t>(bytes_of_step(model) / kBytesPerThread, before_)) : before_,
               kLookSeconds) {}

DecodeThreads::~DecodeThreads() {
  if (is_used_ && at::get_num_threads() != before_) at::set_num_threads(before_);
}

void DecodeThreads::start() {
  if (!is_used_) return;
  if (at::get_num_threads() != chooser_.threads()) at::set_num_threads(chooser_.threads());
  started_ = monotonic_seconds();
}

void DecodeThreads::stop() {
  if (is_used_ && started_ > 0) chooser_.record(monotonic_seconds() - started_);
}

}  // namespace distil_xlstm::generate
