// A layer that keeps its teacher's attention, over whole documents or over a window of them (docs/convert.md).
#include <algorithm>
#include <utility>

#include "nn/attention.h"
#include "student/convert/attention_state.h"
#include "student/convert/layer.h"
#include "student/convert/per_device.h"

namespace distil_xlstm::student {
namespace {

// As the teacher has them: keys and values of a group stand once. E = (H + 2 G) K.
struct KeptWeights {
  Tensor qkv_ED, qkv_bias_E, q_norm_K, k_norm_K;

  template <typename Visit>
  void for_each(const Visit& visit) {
    visit("self_attn.qkv_proj.weight", qkv_ED);
    visit("self_attn.qkv_proj.bias", qkv_bias_E);
    visit("self_attn.q_norm.weight", q_norm_K);
    visit("self_attn.k_norm.weight", k_norm_K);
  }
};

SpecList kept_parameters(const ConvertConfig& config) {
  const auto& decoder = config.decoder;
  SpecList specs;
  specs.add_linear("self_attn.qkv_proj", (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim, decoder.hidden_size,
                   "attention", decoder.has_qkv_bias);
  if (decoder.has_qk_norm) {
    specs.add("self_attn.q_norm.weight", {decoder.head_dim}, "norm", false, "copied");
    specs.add("self_attn.k_norm.weight", {decoder.head_dim}, "norm", false, "copied");
  }
  return specs;
}

// Position by position, where the document of each new token began [B, S]; undefined: with the row. `before_B`: where the one began that
// goes on, or undefined.
Tensor document_starts(const Tensor& is_start_BS, const Tensor& before_B, int64_t num_before, int64_t B, int64_t S) {
  // A row begins with a document by itself. On a GPU the host would have to wait for the answer.
  const int64_t looked_at = num_before == 0 ? 1 : 0;
  const bool begins = is_start_BS.defined() && S > looked_at &&
                      (!is_start_BS.is_cpu() || is_start_BS.narrow(1, looked_at, S - looked_at).any().item<bool>());
  if (!begins) return before_B.defined() ? before_B.unsqueeze(1).expand({B, S}) : Tensor();
  const Tensor position_S = at::arange(num_before, num_before + S, is_start_BS.options().dtype(at::kLong));
  const Tensor started_BS = std::get<0>((is_start_BS.to(at::kBool) * position_S).cummax(1));
  return before_B.defined() ? at::maximum(started_BS, before_B.unsqueeze(1)) : started_BS;
}

class KeptAttention final : public nn::TokenMixer {
 public:
  // All must outlive the mixer; `state` may be null.
  KeptAttention(const nn::Attention& attention, const nn::AttentionWeights& weights, const AttentionSpan& span, const MixerCall& call,
                AttentionState* state)
      : attention_(attention), weights_(weights), span_(span), call_(call), state_(state) {}

  [[nodiscard]] Tensor mix(const nn::MatrixInput& u_BSD) override {
    const int64_t B = u_BSD.sizes[0], S = u_BSD.sizes[1];
    if (state_ == nullptr && (span_.window == 0 || S <= span_.window)) {
      const nn::Sight sight = attention_.sight(B, S, u_BSD.values.options(), call_.is_start_BS);
      return attention_.attended(weights_, u_BSD, sight, 0);
    }
    const int64_t before = state_ ? state_->num_tokens() : 0;
    const nn::AttentionHeads heads = attention_.heads(weights_, u_BSD, before);
    const Tensor k_BGSK = heads.k_BSGK.transpose(1, 2), v_BGSK = heads.v_BSGK.transpose(1, 2);
    const Tensor first_BS = document_starts(call_.is_start_BS, state_ ? state_->first_B() : Tensor(), before, B, S);
    if (state_ != nullptr && S == 1 && !ops::any_requires_grad({heads.q_BSHK, k_BGSK, v_BGSK})) {
      append(k_BGSK, v_BGSK, first_BS);
      return next_token(heads.q_BSHK, k_BGSK, first_BS);
    }
    const bool sees_all = before == 0 && !first_BS.defined() && (span_.window == 0 || S <= span_.window);
    Tensor attended_BSE =
        sees_all ? nn::attend(heads.q_BSHK, k_BGSK, v_BGSK, k_BGSK, {}, S > 1) : in_blocks(heads.q_BSHK, k_BGSK, v_BGSK, first_BS, before);
    if (state_ != nullptr) append(k_BGSK, v_BGSK, first_BS);
    return attended_BSE;
  }

 private:
  void append(const Tensor& k_BGSK, const Tensor& v_BGSK, const Tensor& first_BS) {
    const Tensor last_B = first_BS.defined() ? first_BS.select(1, first_BS.size(1) - 1) : Tensor();
    state_->append(k_BGSK.detach(), v_BGSK.detach(), last_B);
  }

  // Over what the state holds, itself among it. Where no document began inside the row, a token sees it all.
  [[nodiscard]] Tensor next_token(const Tensor& q_BSHK, const Tensor& k_BGSK, const Tensor& first_BS) const {
    const AttentionColumns held = state_->columns();
    const auto type = q_BSHK.scalar_type();
    Tensor mask;
    if (first_BS.defined()) {
      const Tensor positions_BC = state_->positions_BC();
      mask = visible(state_->num_tokens() - 1, 1, first_BS, positions_BC, held.num_sinks, positions_BC.size(1)).unsqueeze(1);
    }
    return nn::attend(q_BSHK, held.k_BGCK.to(type), held.v_BGCK.to(type), k_BGSK, mask, false);
  }

  // Queries in blocks that see a window's length beyond themselves; without a window in one. `before`: how many tokens the state has seen.
  [[nodiscard]] Tensor in_blocks(const Tensor& q_BSHK, const Tensor& k_BGSK, const Tensor& v_BGSK, const Tensor& first_BS,
                                 int64_t before) const {
    constexpr int64_t kLeastBlock = 64;
    const int64_t S = q_BSHK.size(1), block = span_.window > 0 ? std::max(span_.window, kLeastBlock) : S;
    AttentionColumns past;
    Tensor past_positions_BC;
    if (before > 0) {
      past = state_->columns();
      past_positions_BC = state_->positions_BC();
    }
    const bool sinks_may_be_anywhere = span_.sinks > 0 && first_BS.defined();
    std::vector<Tensor> blocks;
    for (int64_t begin = 0; begin < S; begin += block) {
      const int64_t end = std::min(begin + block, S);
      const int64_t first = span_.window == 0 || sinks_may_be_anywhere ? 0 : std::max<int64_t>(begin - span_.window + 1, 0);
      std::vector<Tensor> keys, values, positions;
      const auto add = [&](const Tensor& k, const Tensor& v, const Tensor& position_BC) {
        keys.push_back(k.to(q_BSHK.scalar_type()));
        values.push_back(v.to(q_BSHK.scalar_type()));
        positions.push_back(position_BC);
      };
      const auto add_new = [&](int64_t from, int64_t to) {
        if (from >= to) return;
        add(k_BGSK.narrow(2, from, to - from), v_BGSK.narrow(2, from, to - from),
            at::arange(before + from, before + to, q_BSHK.options().dtype(at::kLong)).unsqueeze(0));
      };
      if (before > 0) add(past.k_BGCK, past.v_BGCK, past_positions_BC);
      add_new(0, std::min(span_.sinks, first));
      add_new(first, end);
      if (before > 0) {
        for (Tensor& position_BC : positions) position_BC = position_BC.expand({past_positions_BC.size(0), -1});
      }
      const Tensor mask = visible(before + begin, end - begin, first_BS.defined() ? first_BS.narrow(1, begin, end - begin) : Tensor(),
                                  at::cat(positions, 1), past.num_sinks, before > 0 ? past.k_BGCK.size(2) : 0);
      blocks.push_back(nn::attend(q_BSHK.narrow(1, begin, end - begin), at::cat(keys, 2), at::cat(values, 2),
                                  k_BGSK.narrow(2, first, end - first), mask.unsqueeze(1), false));
    }
    return blocks.size() == 1 ? blocks.front() : at::cat(blocks, 1);
  }

  // Which columns the S tokens from position `first_query` on see [B or 1, S, C]. Of the first `num_held` columns, which a state holds, the
  // first `num_sinks` are a document's first tokens, and the others show none of these.
  [[nodiscard]] Tensor visible(int64_t first_query, int64_t S, const Tensor& first_BS, const Tensor& position_BC, int64_t num_sinks,
                               int64_t num_held) const {
    const Tensor query_S1 = at::arange(first_query, first_query + S, position_BC.options()).unsqueeze(1);
    const Tensor position_B1C = position_BC.unsqueeze(1);
    const Tensor first_BS1 = first_BS.defined() ? first_BS.unsqueeze(2) : at::zeros({1, 1, 1}, position_BC.options());
    Tensor seen_BSC = (position_B1C <= query_S1) & (position_B1C >= first_BS1);
    if (span_.window == 0) return seen_BSC;
    const Tensor is_near_BSC = query_S1 - position_B1C < span_.window;
    if (span_.sinks == 0) return seen_BSC & is_near_BSC;
    const Tensor is_sink_BSC = position_B1C - first_BS1 < span_.sinks;
    const Tensor column_C = at::arange(position_BC.size(1), position_BC.options());
    const Tensor is_ring_C = (column_C >= num_sinks) & (column_C < num_held);
    return seen_BSC & at::where(is_ring_C, is_near_BSC & ~is_sink_BSC, is_near_BSC | is_sink_BSC);
  }

  const nn::Attention& attention_;
  const nn::AttentionWeights& weights_;
  const AttentionSpan& span_;
  const MixerCall& call_;
  AttentionState* state_;
};

class AttentionLayer final : public ConvertLayer {
 public:
  AttentionLayer(const ConvertConfig& config, const std::string& mixer)
      : ConvertLayer(config, mixer, layer_parameters(config, kept_parameters(config))),
        span_{.window = config.attention_window, .sinks = config.attention_sinks},
        bind_(parameters()),
        attention_([decoder = config.decoder](at::Device device) { return std::make_unique<const nn::Attention>(decoder, device); }) {}

  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType compute_dtype,
                                                       at::TensorOptions options) const override {
    const auto& decoder = config().decoder;
    return std::make_unique<AttentionState>(span_, batch, decoder.num_kv_heads, decoder.head_dim, options.dtype(compute_dtype));
  }

  [[nodiscard]] bool is_teachers() const override { return span_.window == 0; }

 protected:
  [[nodiscard]] Tensor with_mixer(const MixerWeights& weights, const MixerCall& call, at::Device device, MixerState* state,
                                  const WithMixer& layer) const override {
    const KeptWeights w = bind_(&weights), products = bind_(call.products);
    const auto in_type = [&](const Tensor& x) { return x.defined() ? x.to(call.compute_dtype) : x; };
    const nn::AttentionWeights own{.qkv_ED = matrix_of(w.qkv_ED, products.qkv_ED),
                                   .qkv_bias_E = in_type(w.qkv_bias_E),
                                   .q_norm_K = in_type(w.q_norm_K),
                                   .k_norm_K = in_type(w.k_norm_K)};
    KeptAttention mixer(attention_.on(device), own, span_, call, own_state<AttentionState>(state));
    return layer(mixer);
  }

  // q, k, v before and after they are turned, keys and values for each head, the sums of rows; and a row of the mask where there is one.
  [[nodiscard]] KeptValues mixer_kept_values() const override {
    const auto& decoder = config().decoder;
    const int64_t E = config().inner_size(), joined = E + 2 * decoder.num_kv_heads * decoder.head_dim;
    const int64_t seen = span_.window > 0 ? 2 * span_.window + span_.sinks : config().context_length;
    return {.compute = 2 * joined + 2 * E + std::min(seen, config().context_length), .full = decoder.num_heads};
  }

 private:
  AttentionSpan span_;
  WeightBinder<KeptWeights> bind_;
  mutable PerDevice<nn::Attention> attention_;
};

}  // namespace

std::unique_ptr<const ConvertLayer> make_attention_layer(const ConvertConfig& config, const std::string& mixer) {
  return std::make_unique<AttentionLayer>(config, mixer);
}

}  // namespace distil_xlstm::student
