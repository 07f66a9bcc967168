#include "student/convert/attention_state.h"

#include <algorithm>

namespace distil_xlstm::student {

AttentionState::AttentionState(const AttentionSpan& span, int64_t batch, int64_t num_kv_heads, int64_t head_dim,
                               const at::TensorOptions& options)
    : span_(span) {
  const int64_t room = span.window > 0 ? span.sinks + span.window : 0;
  keys_BGTK_ = at::zeros({batch, num_kv_heads, room, head_dim}, options);
  values_BGTK_ = at::zeros({batch, num_kv_heads, room, head_dim}, options);
  first_B_ = at::zeros({batch}, options.dtype(at::kLong));
}

int64_t AttentionState::num_filled() const {
  return span_.window > 0 ? std::min(num_tokens_, span_.sinks + span_.window) : num_tokens_;
}

AttentionColumns AttentionState::columns() const {
  const int64_t filled = num_filled();
  return {keys_BGTK_.narrow(2, 0, filled), values_BGTK_.narrow(2, 0, filled), std::min(span_.sinks, filled)};
}

Tensor AttentionState::positions_BC() const {
  const auto options = first_B_.options();
  const int64_t B = first_B_.size(0), filled = num_filled(), sinks = std::min(span_.sinks, filled), last = num_tokens_ - 1;
  Tensor late_C = at::arange(sinks, filled, options);
  if (span_.window > 0) late_C = last - (last - late_C).remainder(span_.window);  // the last position that stands there
  const Tensor early_BN = first_B_.unsqueeze(1) + at::arange(sinks, options);
  return at::cat({early_BN.masked_fill(early_BN > last, -1), late_C.unsqueeze(0).expand({B, -1})}, 1);
}

void AttentionState::append(const Tensor& k_BGSK, const Tensor& v_BGSK, const Tensor& first_B) {
  const at::NoGradGuard no_grad;
  if (first_B.defined()) {
    first_B_ = first_B.clone();
    hides_ = true;
  }
  if (span_.window > 0) {
    write_window(k_BGSK, v_BGSK);
  } else {
    const int64_t needed = num_tokens_ + k_BGSK.size(2), room = keys_BGTK_.size(2);
    constexpr int64_t kLeastRoom = 64;
    if (needed > room) grow(std::max({needed, room + room / 2, kLeastRoom}));
    write(num_tokens_, k_BGSK, v_BGSK, 0, k_BGSK.size(2));
  }
  num_tokens_ += k_BGSK.size(2);
}

// Runs of positions that lie side by side in the ring; what the ring no longer holds is passed over.
void AttentionState::write_window(const Tensor& k_BGSK, const Tensor& v_BGSK) {
  const int64_t S = k_BGSK.size(2), end = num_tokens_ + S;
  for (int64_t at = std::max({num_tokens_, span_.sinks, end - span_.window}); at < end;) {
    const int64_t place = (at - span_.sinks) % span_.window, count = std::min(end - at, span_.window - place);
    write(span_.sinks + place, k_BGSK, v_BGSK, at - num_tokens_, count);
    at += count;
  }
  if (span_.sinks == 0) return;
  if (hides_) return write_sinks(k_BGSK, v_BGSK);
  if (const int64_t count = std::min(span_.sinks, end) - num_tokens_; count > 0) write(num_tokens_, k_BGSK, v_BGSK, 0, count);
}

// Rows whose documents began at places of their own.
void AttentionState::write_sinks(const Tensor& k_BGSK, const Tensor& v_BGSK) {
  const int64_t S = k_BGSK.size(2);
  const Tensor place_BN = first_B_.unsqueeze(1) + at::arange(span_.sinks, first_B_.options()) - num_tokens_;
  const Tensor is_new_B1N1 = ((place_BN >= 0) & (place_BN < S)).unsqueeze(1).unsqueeze(3);
  const Tensor from_B1N1 = place_BN.clamp(0, S - 1).unsqueeze(1).unsqueeze(3);
  for (const auto& [to, from] : {std::pair{keys_BGTK_, k_BGSK}, std::pair{values_BGTK_, v_BGSK}}) {
    const Tensor sinks = to.narrow(2, 0, span_.sinks);
    sinks.copy_(at::where(is_new_B1N1, from.gather(2, from_B1N1.expand_as(sinks)).to(sinks.scalar_type()), sinks));
  }
}

void AttentionState::write(int64_t column, const Tensor& k_BGSK, const Tensor& v_BGSK, int64_t begin, int64_t count) {
  keys_BGTK_.narrow(2, column, count).copy_(k_BGSK.narrow(2, begin, count));
  values_BGTK_.narrow(2, column, count).copy_(v_BGSK.narrow(2, begin, count));
}

void AttentionState::grow(int64_t room) {
  for (Tensor* tensor : {&keys_BGTK_, &values_BGTK_}) {
    std::vector<int64_t> shape = tensor->sizes().vec();
    shape[2] = room;
    const Tensor larger = at::empty(shape, tensor->options());
    larger.narrow(2, 0, num_tokens_).copy_(tensor->narrow(2, 0, num_tokens_));
    *tensor = larger;
  }
}

void AttentionState::for_each(const std::function<void(Tensor&)>& visit) {
  for (Tensor* tensor : {&keys_BGTK_, &values_BGTK_, &first_B_}) visit(*tensor);
}

std::unique_ptr<MixerState> AttentionState::clone() const {
  auto copy = std::make_unique<AttentionState>(*this);
  copy->for_each([](Tensor& tensor) { tensor = tensor.clone(); });
  return copy;
}

void AttentionState::reserve(int64_t max_tokens) {
  const at::NoGradGuard no_grad;
  if (span_.window == 0 && max_tokens > keys_BGTK_.size(2)) grow(max_tokens);
}

void AttentionState::match(MixerState& other) {
  auto* own = dynamic_cast<AttentionState*>(&other);
  if (own == nullptr) return;
  const int64_t room = std::max(keys_BGTK_.size(2), own->keys_BGTK_.size(2));
  reserve(room);
  own->reserve(room);
  hides_ = own->hides_ = hides_ || own->hides_;
}

}  // namespace distil_xlstm::student
