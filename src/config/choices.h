// The closed sets of values that settings choose from. What may be added to from outside (methods, schedules, kinds of students) is
// text, and its registry's to check.
#pragma once

#include "config/names.h"

namespace distil_xlstm::config {

// Gives an enum its names, in the order of its values.
#define DX_NAMES(E, ...) \
  template <>            \
  inline constexpr auto kNames<E> = std::to_array<std::string_view>({__VA_ARGS__})

// [student]
enum class BlocksRule { half, same };  // of the teacher's layers
DX_NAMES(BlocksRule, "half", "same");

enum class HeadsRule { ceil4, ceil4_div4 };
DX_NAMES(HeadsRule, "ceil4", "ceil4_div4");

enum class SlstmRule { alternate, all, none };
DX_NAMES(SlstmRule, "alternate", "all", "none");

enum class Activation { gelu, relu, relu_squared, sigmoid, swish, selu };
DX_NAMES(Activation, "gelu", "relu", "relu^2", "sigmoid", "swish", "selu");

enum class BiasInit { powerlaw_blockdependent, small_init, zeros, standard };
DX_NAMES(BiasInit, "powerlaw_blockdependent", "small_init", "zeros", "standard");

enum class RecurrentWeightInit { zeros, standard };
DX_NAMES(RecurrentWeightInit, "zeros", "standard");

enum class SlstmLayout { cuda, vanilla };  // how the package's backends store R and b
DX_NAMES(SlstmLayout, "cuda", "vanilla");

enum class GateInit { look_back, spread };  // of forget gates: from how far the teacher's heads look back; spread over the heads
DX_NAMES(GateInit, "look-back", "spread");

enum class ValueInit { copied, least_squares };  // of values: as they are, or scaled so that a mixer comes nearest to its attention
DX_NAMES(ValueInit, "copied", "least-squares");

enum class Normalizer { sum, bounded };  // what divides a converted mLSTM's output: the sum of its weights, or at least the cell's bound
DX_NAMES(Normalizer, "sum", "bounded");

// [data]
enum class DocumentIsolation { full, loss, none };  // what a document's border cuts: attention, state and loss; the loss alone; nothing
DX_NAMES(DocumentIsolation, "full", "loss", "none");

// [distill]
enum class DecayMode { multiply, subtract };
DX_NAMES(DecayMode, "multiply", "subtract");

enum class LossVocabulary { model, tokenizer };
DX_NAMES(LossVocabulary, "model", "tokenizer");

enum class Combine { convex, additive };
DX_NAMES(Combine, "convex", "additive");

enum class Divergence { forward_kl, reverse_kl, jsd };
DX_NAMES(Divergence, "forward_kl", "reverse_kl", "jsd");

enum class Boundary { epoch, slice };
DX_NAMES(Boundary, "epoch", "slice");

enum class AlignmentKind { average, ratio, block_wise };
DX_NAMES(AlignmentKind, "average", "ratio", "block_wise");

enum class AlignmentDistance { frobenius, cosine };
DX_NAMES(AlignmentDistance, "frobenius", "cosine");

enum class LayerState { block_output, attention_output };  // after the layer; of attention after its projection, before the sum
DX_NAMES(LayerState, "block_output", "attention_output");

enum class AlignmentState { pre_norm, post_norm };
DX_NAMES(AlignmentState, "pre_norm", "post_norm");

enum class AlignmentScope { sequence, batch };
DX_NAMES(AlignmentScope, "sequence", "batch");

// [train]
enum class Checkpointing { none, blocks };
DX_NAMES(Checkpointing, "none", "blocks");

// [optimizer]
enum class LearningRateSchedule { cosine, linear, constant };
DX_NAMES(LearningRateSchedule, "cosine", "linear", "constant");

#undef DX_NAMES

}  // namespace distil_xlstm::config
