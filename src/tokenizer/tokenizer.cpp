#include "tokenizer/tokenizer.h"

#include <utility>

#include "base/hash.h"
#include "base/warn_once.h"
#include "tokenizer/rust.h"

namespace distil_xlstm {

namespace {

// bos_token and its like are written as text, as {"content": text, ...}, or as null.
std::string special_piece(const json& config, std::string_view key, const std::string& origin) {
  const auto it = config.find(key);
  if (it == config.end() || it->is_null()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (it->is_object()) return require<std::string>(*it, "content", fmt::format("{}: {}", origin, key));
  throw DataError("{}: {} is {}: it must be a text, an object with 'content', or null", origin, key, it->dump());
}

}  // namespace

struct Tokenizer::Impl {
  io::TokenizerFiles files;
  rust::TokenizerHandle handle;
  std::string fingerprint;
  std::optional<int32_t> bos, eos, pad;
  std::vector<int32_t> prefix, suffix;

  explicit Impl(const io::TokenizerFiles& given) : files(given) {
    load();
    fingerprint = xxh3_128_hex(files.tokenizer_json);
    bos = special_id("bos_token");
    eos = special_id("eos_token");
    pad = special_id("pad_token");
    find_affixes();
  }

  void load() {
    rust::String changed_json;
    rust::Error error;
    const std::string added = files.added_tokens.dump(-1, ' ', false, json::error_handler_t::replace);
    if (!dx_tokenizer_load(rust::text(files.tokenizer_json), rust::text(added), handle.out(), changed_json.out(), error.out())) {
      throw DataError("{}: tokenizer.json cannot be used: {}", files.origin, error.message());
    }
    warn_of_other_ids();
    if (std::string changed = changed_json.str(); !changed.empty()) files.tokenizer_json = std::move(changed);
    files.added_tokens = json::array();
  }

  void warn_of_other_ids() const {
    std::string first;
    int64_t count = 0;
    for (const json& added : files.added_tokens) {
      const auto stated = get_or<int64_t>(added, "id", -1, files.origin);
      const auto content = require<std::string>(added["token"], "content", files.origin);
      const auto id = id_of(content);
      if (stated < 0 || !id || *id == stated) continue;
      if (count++ == 0) first = fmt::format("'{}' has id {}, but id {} in the file that adds it", content, *id, stated);
    }
    if (count == 0) return;
    const std::string more = count > 1 ? fmt::format(" ({} tokens differ so)", count) : "";
    warn_once(fmt::format("{}: added token {}{}: as in transformers the first is used", files.origin, first, more));
  }

  void find_affixes() {
    rust::Encodings affixes;
    rust::Error error;
    if (!dx_tokenizer_affixes(handle.get(), affixes.out(), error.out()))
      throw DataError("{}: tokenizer.json cannot be used: {}", files.origin, error.message());
    prefix = affixes.of(0);
    suffix = affixes.of(1);
  }

  [[nodiscard]] std::optional<int32_t> id_of(std::string_view piece) const {
    const int64_t id = dx_tokenizer_token_id(handle.get(), rust::text(piece));
    return id < 0 ? std::nullopt : std::optional(static_cast<int32_t>(id));
  }

  [[nodiscard]] std::optional<int32_t> special_id(std::string_view key) const {
    const std::string piece = special_piece(files.tokenizer_config, key, files.origin);
    return piece.empty() ? std::nullopt : id_of(piece);
  }

  [[nodiscard]] std::vector<int32_t> encode(std::string_view text, bool add_special_tokens, bool parse_special) const {
    const DxText one = rust::text(text);
    rust::Encodings encodings;
    rust::Error error;
    if (!dx_tokenizer_encode(handle.get(), &one, 1, add_special_tokens, parse_special, encodings.out(), error.out())) {
      throw DataError("{}: cannot encode: {}", files.origin, error.message());
    }
    return encodings.of(0);
  }
};

Tokenizer::Tokenizer(const io::TokenizerFiles& files) : impl_(std::make_unique<Impl>(files)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens, bool parse_special) const {
  return impl_->encode(text, add_special_tokens, parse_special);
}

std::vector<std::vector<int32_t>> Tokenizer::encode_batch(std::span<const std::string_view> texts, bool add_special_tokens) const {
  std::vector<DxText> borrowed;
  borrowed.reserve(texts.size());
  for (const std::string_view text : texts) borrowed.push_back(rust::text(text));
  rust::Encodings encodings;
  rust::Error error;
  if (!dx_tokenizer_encode(impl_->handle.get(), borrowed.data(), borrowed.size(), add_special_tokens, true, encodings.out(), error.out())) {
    throw DataError("{}: cannot encode: {}", impl_->files.origin, error.message());
  }
  std::vector<std::vector<int32_t>> result;
  result.reserve(texts.size());
  for (size_t index = 0; index < texts.size(); ++index) result.push_back(encodings.of(index));
  return result;
}

std::vector<EncodedText> Tokenizer::encode_ranges(std::span<const std::string_view> texts) const {
  std::vector<DxText> borrowed;
  borrowed.reserve(texts.size());
  for (const std::string_view text : texts) borrowed.push_back(rust::text(text));
  rust::Encodings encodings;
  rust::Ranges ranges;
  rust::Error error;
  if (!dx_tokenizer_encode_offsets(impl_->handle.get(), borrowed.data(), borrowed.size(), encodings.out(), ranges.out(), error.out())) {
    throw DataError("{}: cannot encode: {}", impl_->files.origin, error.message());
  }
  std::vector<EncodedText> result(texts.size());
  size_t next = 0;
  for (size_t index = 0; index < texts.size(); ++index) {
    result[index].ids = encodings.of(index);
    for (size_t i = 0; i < result[index].ids.size(); ++i) {
      const auto [begin, end] = ranges[next++];
      result[index].ranges.push_back({begin, end});
    }
  }
  return result;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  rust::String decoded;
  rust::Error error;
  if (!dx_tokenizer_decode(impl_->handle.get(), ids.data(), ids.size(), skip_special_tokens, decoded.out(), error.out())) {
    throw DataError("{}: cannot decode: {}", impl_->files.origin, error.message());
  }
  return decoded.str();
}

int64_t Tokenizer::vocab_size() const {
  return dx_tokenizer_vocab_size(impl_->handle.get());
}

std::optional<int32_t> Tokenizer::token_id(std::string_view piece) const {
  return impl_->id_of(piece);
}

std::string Tokenizer::piece(int32_t id) const {
  rust::String piece;
  return dx_tokenizer_piece(impl_->handle.get(), id, piece.out()) ? piece.str() : "";
}

std::optional<int32_t> Tokenizer::bos_id() const {
  return impl_->bos;
}
std::optional<int32_t> Tokenizer::eos_id() const {
  return impl_->eos;
}
std::optional<int32_t> Tokenizer::pad_id() const {
  return impl_->pad;
}
const std::vector<int32_t>& Tokenizer::prefix_ids() const {
  return impl_->prefix;
}
const std::vector<int32_t>& Tokenizer::suffix_ids() const {
  return impl_->suffix;
}
const std::string& Tokenizer::fingerprint() const {
  return impl_->fingerprint;
}
const io::TokenizerFiles& Tokenizer::files() const {
  return impl_->files;
}

}  // namespace distil_xlstm
