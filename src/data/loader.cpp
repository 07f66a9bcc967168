#include "data/loader.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/hash.h"
#include "base/random.h"

namespace distil_xlstm::data {

namespace {

struct RowPlace {
  uint32_t shard;
  uint32_t num_targets;
  uint64_t row;
};

// The rows of one LoaderSource and how many of them an epoch draws.
struct Source {
  std::vector<RowPlace> rows;
  uint64_t num_draws = 0;
  size_t end_shard = 0;  // one past its last in Impl::shards
};

constexpr uint64_t kOrderStream = 1ULL << 62;  // streams of permutation(): the epoch's order apart from the sources' own

}  // namespace

struct Loader::Impl {
  LoaderOptions options;
  std::vector<TokenShard> shards;
  std::vector<Source> sources;
  std::string fingerprint;  // of the shards, their order, weights and isolation
  int64_t context_length = 0;
  uint64_t num_rows = 0;  // of an epoch, all ranks
  bool has_other_begin = false;

  int64_t epoch = 0;
  uint64_t position = 0;        // rows given on this rank
  std::vector<RowPlace> order;  // of this rank
  int64_t num_blank = 0;        // last entries of `order` whose mask is emptied
  int64_t tokens_per_epoch = 0;
  bool has_told_of_template = false;

  explicit Impl(const LoaderOptions& given) : options(given) {
    check_options();
    for (const auto& source : options.sources) open_source(source);
    if (shards.empty()) {
      throw DataError("{}: no shards of the {} split here: prepare with a --validation-fraction above 0, or name other data",
                      options.sources.front().path, options.split);
    }
    describe_shards();
    share_out();
    begin_epoch(0);
  }

  void check_options() const {
    if (options.sources.empty()) throw ConfigError("data.sources is empty: name at least one directory of token shards");
    if (options.split != "train" && options.split != "validation" && options.split != "any") {
      throw ConfigError("data: split \"{}\": allowed are \"train\", \"validation\", \"any\"", options.split);
    }
    for (const auto& source : options.sources) {
      if (!(source.weight > 0) || !std::isfinite(source.weight)) {
        throw ConfigError("data.sources: weight {} of {}: it must be above 0", source.weight, source.path);
      }
    }
    if (options.micro_batch_size < 1) throw ConfigError("micro_batch_size = {}: it must be at least 1", options.micro_batch_size);
    if (options.ranks.world_size < 1 || options.ranks.rank < 0 || options.ranks.rank >= options.ranks.world_size) {
      throw ConfigError("data: rank {} of {} processes: a rank lies between 0 and the number of processes", options.ranks.rank,
                        options.ranks.world_size);
    }
  }

  void open_source(const LoaderSource& wanted) {
    Source source;
    for (const auto& path : find_shards(wanted.path)) {
      TokenShard shard(path, options.verify_checksums);
      if (options.split != "any" && options.split != split_name(shard.split())) continue;
      check_fit(shard);
      const auto number = static_cast<uint32_t>(shards.size());
      for (int64_t row = 0; row < shard.num_rows(); ++row) {
        const int64_t num_targets = shard.count_targets(row, options.document_isolation);
        if (num_targets > 0) source.rows.push_back({number, static_cast<uint32_t>(num_targets), static_cast<uint64_t>(row)});
      }
      shards.push_back(std::move(shard));
    }
    source.end_shard = shards.size();
    sources.push_back(std::move(source));
  }

  void check_fit(const TokenShard& shard) {
    const std::string where = shard.path().string();
    const int64_t wanted_length = context_length != 0 ? context_length : options.context_length;
    if (wanted_length != 0 && shard.context_length() != wanted_length) {
      throw DataError("{}: its rows have context_length {}, {} asks for {}: prepare the text again with --context-length {}", where,
                      shard.context_length(), shards.empty() ? "this run" : shards.front().path().string(), wanted_length, wanted_length);
    }
    context_length = shard.context_length();
    const std::string wanted =
        options.tokenizer_fingerprint.empty() && !shards.empty() ? shards.front().fingerprint() : options.tokenizer_fingerprint;
    if (!wanted.empty() && shard.fingerprint() != wanted) {
      throw DataError("{}: prepared with a tokenizer of fingerprint {}, but {} has {}: prepare the text again with that tokenizer", where,
                      shard.fingerprint(), options.tokenizer_fingerprint.empty() ? shards.front().path().string() : "this model", wanted);
    }
    if (options.begin_id && shard.header().bos_id != *options.begin_id && !has_other_begin) {
      has_other_begin = true;
      spdlog::warn(
          "{}: its documents begin with id {}, but the tokenizer puts id {} before a text (-1: none), and so will eval and generate: "
          "prepare the text again, to train as the model will be used",
          where, shard.header().bos_id, *options.begin_id);
    }
    check_chat_template(shard);
    // A tokenizer may have more tokens than a model has rows: what counts is what the text uses.
    if (options.vocab_size == 0 || static_cast<int64_t>(shard.header().vocab_size) <= options.vocab_size) return;
    if (const int64_t id = shard.greatest_id(); id >= options.vocab_size) {
      if (options.no_row_message) throw DataError("{}", options.no_row_message(static_cast<int32_t>(id), where));
      throw DataError("{}: holds id {}, but the model has {} rows: prepare the text again with the model's tokenizer", where, id,
                      options.vocab_size);
    }
  }

  // Only conversations mask targets. Turns in another form than the model's own would teach it what its --chat never writes.
  void check_chat_template(const TokenShard& shard) {
    if (!options.chat_template_fingerprint || !shard.has_loss_mask()) return;
    const auto rendered_by = get_or<std::string>(shard.metadata(), "chat_template", "", shard.path().string());
    const std::string& wanted = *options.chat_template_fingerprint;
    if (rendered_by.empty() || rendered_by == wanted) return;  // "" of a version that did not write it down
    if (!wanted.empty()) {
      throw DataError(
          "{}: its conversations were rendered with a chat template of fingerprint {}, but this model's has {}: prepare the text again "
          "with "
          "this model's, or give the model the other (chat_template.jinja)",
          shard.path().string(), rendered_by, wanted);
    }
    if (!has_told_of_template) {
      spdlog::warn("{}: its conversations were rendered with a chat template (fingerprint {}), and this model has none of its own",
                   shard.path().string(), rendered_by);
    }
    has_told_of_template = true;
  }

  void describe_shards() {
    std::string text;
    size_t next = 0;
    for (size_t s = 0; s < sources.size(); ++s) {
      text += fmt::format("source {}\n", options.sources[s].weight);
      for (; next < sources[s].end_shard; ++next) {
        text += fmt::format("{:016x}\n", shards[next].header().checksum);
      }
    }
    text += fmt::format("isolation {} shuffle {}", static_cast<int>(options.document_isolation), options.shuffle);
    fingerprint = xxh3_128_hex(text);
  }

  // How many rows an epoch draws of each source.
  void share_out() {
    double total_weight = 0;
    bool all_one = true;
    for (size_t s = 0; s < sources.size(); ++s) {
      num_rows += sources[s].rows.size();
      total_weight += options.sources[s].weight;
      all_one = all_one && options.sources[s].weight == 1.0;
    }
    if (num_rows == 0) {
      const bool is_chat = std::ranges::any_of(shards, [](const TokenShard& shard) { return shard.has_loss_mask(); });
      throw DataError(
          "{}: not a single target in its rows{}", options.sources.front().path,
          is_chat ? ": its conversations have no answer that counts (`prepare` names their roles; 'assistant' is the one that answers)"
                  : "");
    }
    double share_end = 0;
    uint64_t given = 0;
    for (size_t s = 0; s < sources.size(); ++s) {
      auto& source = sources[s];
      if (all_one) {
        source.num_draws = source.rows.size();
        continue;
      }
      if (source.rows.empty()) {
        throw DataError("{}: no row of the {} split, but a weight of {}", options.sources[s].path, options.split,
                        options.sources[s].weight);
      }
      // Rounding the running sum, so that the parts add up.
      share_end += options.sources[s].weight / total_weight;
      const auto end = s + 1 == sources.size() ? num_rows : static_cast<uint64_t>(std::llround(share_end * static_cast<double>(num_rows)));
      source.num_draws = end - given;
      given = end;
    }
  }

  // The rows that `source` gives in this epoch: it goes on through its own shuffled passes where the last epoch ended.
  void draw(size_t s, std::vector<RowPlace>& out) const {
    const auto& source = sources[s];
    const uint64_t size = source.rows.size();
    std::vector<uint64_t> pass_order;
    uint64_t pass_of_order = std::numeric_limits<uint64_t>::max();
    uint64_t draw = static_cast<uint64_t>(epoch) * source.num_draws;
    for (uint64_t i = 0; i < source.num_draws; ++i, ++draw) {
      const uint64_t pass = draw / size;
      if (options.shuffle && pass != pass_of_order) {
        pass_order = permutation(size, options.seed, (static_cast<uint64_t>(s) << 40) + pass);
        pass_of_order = pass;
      }
      out.push_back(source.rows[options.shuffle ? pass_order[draw % size] : draw % size]);
    }
  }

  void begin_epoch(int64_t number) {
    if (number < 0) throw ValueError("epoch {}: it must be at least 0", number);
    epoch = number;
    position = 0;
    std::vector<RowPlace> drawn;
    drawn.reserve(num_rows);
    for (size_t s = 0; s < sources.size(); ++s) draw(s, drawn);
    const auto world_size = static_cast<uint64_t>(options.ranks.world_size);
    const auto rank = static_cast<uint64_t>(options.ranks.rank);
    std::vector<uint64_t> shuffled;
    if (options.shuffle) shuffled = permutation(num_rows, options.seed, kOrderStream + static_cast<uint64_t>(epoch));
    order.clear();
    tokens_per_epoch = 0;
    for (uint64_t i = rank; i < num_rows; i += world_size) {
      order.push_back(drawn[options.shuffle ? shuffled[i] : i]);
      tokens_per_epoch += order.back().num_targets;
    }
    const uint64_t rows_per_rank = (num_rows + world_size - 1) / world_size;
    num_blank = static_cast<int64_t>(rows_per_rank - order.size());
    if (num_blank > 0) order.push_back(drawn.front());
  }

  void read_row(const RowPlace& place, int64_t slot, bool blank, Batch& batch) const {
    const auto length = static_cast<size_t>(context_length);
    const size_t first = static_cast<size_t>(slot) * length;
    const std::span mask(batch.mask.data() + first, length);
    const std::span targets(batch.targets.data() + first, length);
    const int64_t num_targets =
        shards[place.shard].read_row(static_cast<int64_t>(place.row), options.document_isolation, {batch.tokens.data() + first, length},
                                     targets, mask, {batch.is_start.data() + first, length});
    batch.row_ids[static_cast<size_t>(slot)] = {shards[place.shard].header().checksum, place.row};
    if (blank) {
      std::fill(mask.begin(), mask.end(), uint8_t{0});
      std::fill(targets.begin(), targets.end(), 0);
    } else {
      batch.num_targets += num_targets;
    }
  }
};

Loader::Loader(const LoaderOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Loader::~Loader() = default;

bool Loader::next(Batch& batch) {
  auto& s = *impl_;
  const uint64_t left = s.order.size() - s.position;
  if (left == 0) return false;
  batch.num_rows = static_cast<int64_t>(std::min<uint64_t>(left, static_cast<uint64_t>(s.options.micro_batch_size)));
  batch.context_length = s.context_length;
  batch.num_targets = 0;
  const auto size = static_cast<size_t>(batch.num_rows * batch.context_length);
  batch.tokens.resize(size);
  batch.targets.resize(size);
  batch.mask.resize(size);
  batch.is_start.resize(size);
  batch.row_ids.resize(static_cast<size_t>(batch.num_rows));
  for (int64_t slot = 0; slot < batch.num_rows; ++slot, ++s.position) {
    const bool blank = s.num_blank > 0 && s.position + 1 == s.order.size();
    s.read_row(s.order[s.position], slot, blank, batch);
  }
  return true;
}

void Loader::begin_epoch(int64_t epoch) {
  impl_->begin_epoch(epoch);
}
int64_t Loader::epoch() const {
  return impl_->epoch;
}
int64_t Loader::context_length() const {
  return impl_->context_length;
}
int64_t Loader::rows_per_epoch() const {
  return static_cast<int64_t>(impl_->order.size());
}
int64_t Loader::tokens_per_epoch() const {
  return impl_->tokens_per_epoch;
}
bool Loader::is_synthetic() const {
  return std::any_of(impl_->shards.begin(), impl_->shards.end(), [](const TokenShard& shard) { return shard.is_synthetic(); });
}

json Loader::state() const {
  const auto& s = *impl_;
  return {{"epoch", s.epoch},
          {"position", s.position},
          {"seed", s.options.seed},
          {"rank", s.options.ranks.rank},
          {"world_size", s.options.ranks.world_size},
          {"shards_fingerprint", s.fingerprint}};
}

void Loader::restore(const json& state) {
  auto& s = *impl_;
  const auto shards = require<std::string>(state, "shards_fingerprint", "data state");
  if (shards != s.fingerprint) {
    throw DataError(
        "the checkpoint was trained on other shards, weights or document_isolation (fingerprint {}) than {} (fingerprint {}): "
        "name the same data to resume",
        shards, s.options.sources.front().path, s.fingerprint);
  }
  const auto seed = require<uint64_t>(state, "seed", "data state");
  const auto world_size = require<int>(state, "world_size", "data state");
  const auto rank = require<int>(state, "rank", "data state");
  if (seed != s.options.seed) throw DataError("data state: seed {}, but this run has {}: resume with the same seed", seed, s.options.seed);
  if (world_size != s.options.ranks.world_size || rank != s.options.ranks.rank) {
    throw DataError("data state: rank {} of {} processes, but this is rank {} of {}: resume with as many processes", rank, world_size,
                    s.options.ranks.rank, s.options.ranks.world_size);
  }
  const auto epoch = require<int64_t>(state, "epoch", "data state");
  const auto position = require<uint64_t>(state, "position", "data state");
  if (epoch < 0) throw DataError("data state: epoch {}", epoch);
  s.begin_epoch(epoch);
  if (position > s.order.size()) throw DataError("data state: row {} of an epoch of {} rows", position, s.order.size());
  s.position = position;
}

}  // namespace distil_xlstm::data
